//! Settings as people write and read them: names, words, defaults, and what was probably meant.

use std::sync::LazyLock;

use reclora_trainer::config::{self, Config};
use serde_json::Value as Json;
use toml::{Table, Value};

/// One setting.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Section, or "" for the top level.
    pub section: String,
    /// Name within its section.
    pub name: String,
    /// Its part of the schema.
    pub schema: &'static Json,
}

impl Setting {
    /// `section.name`, or `name` at the top level.
    pub fn path(&self) -> String {
        join(&self.section, &self.name)
    }

    /// Default value.
    pub fn default(&self) -> Value {
        Value::try_from(&self.schema["default"]).unwrap_or_else(|_| Value::String(String::new()))
    }

    /// Whether it is a path, relative to the config file.
    pub fn is_path(&self) -> bool {
        self.schema["format"] == "path"
    }

    /// Its choices, or those of each value of a list.
    pub fn choices(&self) -> Vec<(String, String)> {
        let choices = self.schema["oneOf"].as_array().or(self.schema["items"]["oneOf"].as_array());
        let choices = choices.into_iter().flatten();
        choices.map(|choice| (config::choice_name(choice), words(choice))).collect()
    }

    /// Its value in a config.
    pub fn get<'a>(&self, table: &'a Table) -> Option<&'a Value> {
        let mut parts = self.section.split('.').filter(|part| !part.is_empty());
        parts.try_fold(table, |table, part| table.get(part)?.as_table())?.get(&self.name)
    }

    /// Sets its value in a config.
    pub fn put(&self, mut table: &mut Table, value: Value) {
        for part in self.section.split('.').filter(|part| !part.is_empty()) {
            let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            // A section that is no table has been taken out.
            let Value::Table(inner) = inner else { return };
            table = inner;
        }
        table.insert(self.name.clone(), value);
    }
}

/// Every section and setting, in the order of the structs.
#[derive(Debug)]
pub struct Settings {
    /// Section name and its sentence; the first is the top level, "".
    pub sections: Vec<(String, String)>,
    /// Every setting.
    pub all: Vec<Setting>,
}

/// The settings of this build.
pub static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let mut settings = Settings { sections: Vec::new(), all: Vec::new() };
    settings.add("", config::schema());
    settings
});

/// `section.name`, or `name` when the section is "".
fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// Section and name of a path.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// What the schema says of something, on one line.
pub fn words(schema: &Json) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Settings {
    /// Adds a section with its settings, and the sections inside it behind them, as TOML needs it.
    fn add(&mut self, section: &str, schema: &'static Json) {
        self.sections.push((section.to_owned(), words(schema)));
        let names = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
        let (sections, settings): (Vec<_>, Vec<_>) = names
            .map(|name| (name, &schema["properties"][name]))
            .partition(|(_, schema)| schema["properties"].is_object());
        self.all.extend(settings.into_iter().map(|(name, schema)| Setting {
            section: section.to_owned(),
            name: name.to_owned(),
            schema,
        }));
        for (name, schema) in sections {
            self.add(&join(section, name), schema);
        }
    }

    /// The setting of a dotted path.
    pub fn get(&self, path: &str) -> Option<&Setting> {
        self.all.iter().find(|setting| setting.path() == path)
    }

    /// Whether a section of this name exists.
    pub fn has_section(&self, name: &str) -> bool {
        self.section_names().contains(&name)
    }

    fn section_names(&self) -> Vec<&str> {
        self.sections.iter().skip(1).map(|(name, _)| name.as_str()).collect()
    }

    /// Names of the settings of a section.
    pub fn names_in(&self, section: &str) -> Vec<&str> {
        let settings = self.all.iter().filter(|setting| setting.section == section);
        settings.map(|setting| setting.name.as_str()).collect()
    }

    /// Advice for a path that does not exist: those that are nearest to it, or all names of its section.
    pub fn advice(&self, path: &str) -> String {
        let (section, name) = split(path);
        let sections = self.section_names().into_iter().map(str::to_owned);
        let sections = sections.filter(|_| section.is_empty());
        let scored = self.all.iter().map(Setting::path).chain(sections).map(|path| {
            let there = split(&path);
            // A name in its place is nearer than in another section.
            let place = Some(similarity(section, there.0)).filter(|near| *near >= TYPO);
            (similarity(name, there.1) * (0.8 + 0.2 * place.unwrap_or(0.0)), path)
        });
        let scored: Vec<_> = scored.collect();
        let best = scored.iter().fold(TYPO, |best, (score, _)| best.max(*score));
        let meant = scored.iter().filter(|(score, _)| *score == best);
        let meant: Vec<_> = meant.map(|(_, path)| format!("`{path}`")).collect();
        match section {
            _ if !meant.is_empty() => format!("did you mean {}?", meant.join(" or ")),
            "" => {
                let names = [self.names_in(""), self.section_names()].concat().join(", ");
                format!("keys and sections at the top level: {names}")
            }
            _ if self.has_section(section) => {
                format!("keys of [{section}]: {}", self.names_in(section).join(", "))
            }
            _ => self.section_advice(section),
        }
    }

    /// Advice for a section that does not exist.
    pub fn section_advice(&self, section: &str) -> String {
        match nearest(section, &self.section_names()) {
            Some(best) => format!("did you mean [{best}]?"),
            None => format!("sections: {}", self.section_names().join(", ")),
        }
    }

    /// Advice for a value that can't be: the choice that is nearest to it.
    pub fn choice_advice(&self, path: &str, value: &Value) -> Option<String> {
        let choices = self.get(path)?.choices();
        let names: Vec<&str> = choices.iter().map(|(name, _)| name.as_str()).collect();
        let one = std::slice::from_ref(value);
        let mut given =
            value.as_array().map_or(one, Vec::as_slice).iter().filter_map(Value::as_str);
        let wrong = given.find(|word| !names.contains(word))?;
        Some(format!("did you mean `{}`?", nearest(wrong, &names)?))
    }
}

/// How similar two words are that differ by a typo, at least.
const TYPO: f64 = 0.6;

fn similarity(word: &str, other: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(&word.to_lowercase().replace('-', "_"), other)
}

/// The candidate closest to `word`, when it is close enough to be a typo.
fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let scored = candidates.iter().map(|candidate| (similarity(word, candidate), *candidate));
    let near = scored.filter(|(score, _)| *score >= TYPO);
    near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

/// A config as a TOML table. By way of text, because that keeps f32 values short (0.1, not
/// 0.10000000149011612).
pub fn to_table(config: &Config) -> Table {
    let text = toml::to_string(config).unwrap_or_default();
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_finds_typos_and_misplaced_keys() {
        let advice = |path| SETTINGS.advice(path);
        assert_eq!(advice("tune.epoch"), "did you mean `tune.epochs`?");
        assert_eq!(advice("tunne"), "did you mean `tune`?");
        assert_eq!(advice("epochs"), "did you mean `crm.epochs` or `tune.epochs`?");
        assert!(advice("qqqq").ends_with("top level: name, seed, run_dir, data, data.columns, backbone, retrieve, crm, prompt, adapter, tune, evaluate, export, runtime"));
        assert_eq!(advice("tune.temperature"), "did you mean `adapter.temperature`?");
        assert_eq!(advice("tune.learning-rate"), "did you mean `tune.learning_rate`?");
        assert_eq!(advice("tunne.epochs"), "did you mean `tune.epochs`?");
        assert_eq!(SETTINGS.section_advice("adaptor"), "did you mean [adapter]?");
        assert_eq!(advice("data.columns.usr"), "did you mean `data.columns.user`?");
        assert!(advice("export.qqqq").starts_with("keys of [export]: pairs"));
    }

    #[test]
    fn defaults_and_order_are_those_of_the_structs() {
        let mut table = Table::new();
        for setting in &SETTINGS.all {
            setting.put(&mut table, setting.default());
        }
        assert_eq!(table.try_into::<Config>().expect("reads"), Config::default());
        assert_eq!(SETTINGS.names_in("")[..2], ["name", "seed"]);
        assert_eq!(SETTINGS.names_in("retrieve")[1], "text_k");
        assert_eq!(SETTINGS.section_names()[..3], ["data", "data.columns", "backbone"]);
        let paths = SETTINGS.all.iter().filter(|setting| setting.is_path());
        let paths: Vec<_> = paths.map(Setting::path).collect();
        assert_eq!(paths, ["data.path", "backbone.path", "prompt.template", "adapter.scale_of"]);
    }
}
