//! Which keys exist, what they mean and what they default to.
//!
//! Keys and defaults come from serialising `Config::default()`; the sentences come from the doc
//! comments of the structs themselves, so there is one place to write them. A struct inside a
//! section's is a section of its own, `[data.columns]`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use reclora_trainer::config::Config;
use toml::Value;

/// Sources of the config structs: their doc comments are the reference.
const CONFIG_SOURCES: [&str; 3] = [
    include_str!("../../../trainer/src/config/mod.rs"),
    include_str!("../../../trainer/src/config/runtime.rs"),
    include_str!("../../../storage/src/raw/mapped/mapping.rs"),
];

/// One key of the config.
#[derive(Clone, Debug)]
pub struct Key {
    /// Section, or "" for the top level.
    pub section: String,
    /// Name within its section.
    pub name: String,
    /// What it means.
    pub doc: String,
    /// Default value.
    pub default: Value,
}

impl Key {
    /// `section.name`, or `name` at the top level.
    pub fn path(&self) -> String {
        join(&self.section, &self.name)
    }
}

/// Every section and key, in the order of the structs.
#[derive(Debug)]
pub struct Schema {
    /// Section name and its sentence; the first is the top level, "".
    pub sections: Vec<(String, String)>,
    /// Every key.
    pub keys: Vec<Key>,
}

/// The schema of this build.
pub static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::new);

/// Keys whose value is a path relative to the config file.
pub const PATH_KEYS: [&str; 4] =
    ["data.path", "backbone.path", "prompt.template", "adapter.scale_of"];

/// `section.name`, or `name` when the section is "".
pub fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

impl Schema {
    fn new() -> Self {
        let mut docs = BTreeMap::new();
        CONFIG_SOURCES.iter().for_each(|source| docs.append(&mut parse_docs(source)));
        let defaults = to_table(&Config::default());
        let mut sections = vec![(String::new(), String::new())];
        let mut keys = Vec::new();
        let root = docs.get("Config").cloned().unwrap_or_default();
        // Top-level keys first, as TOML needs them before the first header.
        for field in &root {
            if let Some(default) = defaults.get(&field.name).filter(|v| !v.is_table()) {
                keys.push(field.key("", default));
            }
        }
        for field in &root {
            let Some(table) = defaults.get(&field.name).and_then(Value::as_table) else { continue };
            add_section(&docs, &field.name, field, table, &mut sections, &mut keys);
        }
        Self { sections, keys }
    }

    /// The key of a dotted path.
    pub fn key(&self, path: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.path() == path)
    }

    /// Whether a section of this name exists ("" is the top level).
    pub fn has_section(&self, name: &str) -> bool {
        self.sections.iter().any(|(section, _)| section == name)
    }

    /// Names of the keys of a section.
    pub fn names_in<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a str> {
        self.keys.iter().filter(move |k| k.section == section).map(|k| k.name.as_str())
    }

    /// Advice for a key that does not exist: the nearest name, or where it does exist, or all names.
    pub fn advice(&self, section: &str, name: &str) -> String {
        let mut candidates: Vec<&str> = self.names_in(section).collect();
        if section.is_empty() {
            candidates.extend(self.sections.iter().skip(1).map(|(s, _)| s.as_str()));
        }
        if let Some(best) = nearest(name, &candidates) {
            return format!("did you mean `{}`?", join(section, best));
        }
        let elsewhere: Vec<String> = self
            .keys
            .iter()
            .filter(|k| k.name == name)
            .map(|k| format!("`{}`", k.path()))
            .collect();
        if !elsewhere.is_empty() {
            return format!("did you mean {}?", elsewhere.join(" or "));
        }
        let all: Vec<&str> = self.keys.iter().map(|k| k.name.as_str()).collect();
        if let Some(key) = nearest(name, &all).and_then(|n| self.keys.iter().find(|k| k.name == n))
        {
            return format!("did you mean `{}`?", key.path());
        }
        match section {
            "" => format!("keys and sections at the top level: {}", candidates.join(", ")),
            _ => format!("keys of [{section}]: {}", candidates.join(", ")),
        }
    }

    /// Advice for a section that does not exist.
    pub fn section_advice(&self, section: &str) -> String {
        let names: Vec<&str> = self.sections.iter().skip(1).map(|(s, _)| s.as_str()).collect();
        match nearest(section, &names) {
            Some(best) => format!("did you mean [{best}]?"),
            None => format!("sections: {}", names.join(", ")),
        }
    }
}

/// Adds a section with its keys, and the sections inside it behind them.
fn add_section(
    docs: &BTreeMap<String, Vec<Field>>,
    name: &str,
    field: &Field,
    defaults: &toml::Table,
    sections: &mut Vec<(String, String)>,
    keys: &mut Vec<Key>,
) {
    sections.push((name.to_owned(), field.doc.clone()));
    let mut inner = Vec::new();
    for field in docs.get(&field.kind).into_iter().flatten() {
        match defaults.get(&field.name) {
            Some(Value::Table(table)) if docs.contains_key(&field.kind) => {
                inner.push((field, table));
            }
            Some(default) => keys.push(field.key(name, default)),
            None => {}
        }
    }
    for (field, table) in inner {
        add_section(docs, &join(name, &field.name), field, table, sections, keys);
    }
}

/// The table of a section, `a` or `a.b`, in a config.
pub fn section<'a>(table: &'a toml::Table, name: &str) -> Option<&'a toml::Table> {
    let parts = name.split('.').filter(|part| !part.is_empty());
    parts.into_iter().try_fold(table, |table, part| table.get(part)?.as_table())
}

/// The candidate closest to `word`, when it is close enough to be a typo.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .iter()
        .map(|c| (strsim::normalized_damerau_levenshtein(&word, c), *c))
        .filter(|(score, _)| *score >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

/// A config as a TOML table. By way of text, because that keeps f32 values short (0.1, not
/// 0.10000000149011612).
pub fn to_table(config: &Config) -> toml::Table {
    let text = toml::to_string(config).unwrap_or_default();
    text.parse().unwrap_or_default()
}

/// A field of a struct in the source.
#[derive(Clone, Debug)]
struct Field {
    name: String,
    kind: String,
    doc: String,
}

impl Field {
    fn key(&self, section: &str, default: &Value) -> Key {
        Key {
            section: section.to_owned(),
            name: self.name.clone(),
            doc: self.doc.clone(),
            default: default.clone(),
        }
    }
}

/// Fields with doc comments of each struct in Rust source.
fn parse_docs(source: &str) -> BTreeMap<String, Vec<Field>> {
    let mut structs: BTreeMap<String, Vec<Field>> = BTreeMap::new();
    let mut current: Option<String> = None;
    let mut doc: Vec<&str> = Vec::new();
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim());
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            current = rest.split([' ', '{']).next().map(str::to_owned);
            doc.clear();
        } else if line.starts_with("pub enum") || line == "}" {
            current = None;
            doc.clear();
        } else if let (Some(owner), Some((name, kind))) =
            (&current, line.strip_prefix("pub ").and_then(|field| field.split_once(": ")))
        {
            structs.entry(owner.clone()).or_default().push(Field {
                name: name.to_owned(),
                kind: kind.trim_end_matches(',').to_owned(),
                doc: doc.join(" "),
            });
            doc.clear();
        }
    }
    structs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_covers_every_serialised_key_with_a_sentence() {
        let mut expected = Vec::new();
        let mut pending = vec![(String::new(), Value::Table(to_table(&Config::default())))];
        while let Some((path, value)) = pending.pop() {
            match value {
                // The one setting that is a table.
                Value::Table(table) if path != "data.label" => {
                    pending
                        .extend(table.into_iter().map(|(key, value)| (join(&path, &key), value)));
                }
                _ => expected.push(path),
            }
        }
        assert!(expected.len() > 50, "{expected:?}");
        for path in &expected {
            let key = SCHEMA.key(path).unwrap_or_else(|| panic!("no documentation of {path}"));
            assert!(!key.doc.is_empty(), "{path}");
        }
        assert_eq!(SCHEMA.keys.len(), expected.len());
        for path in PATH_KEYS {
            assert!(SCHEMA.key(path).is_some(), "{path}");
        }
    }

    #[test]
    fn advice_finds_typos_and_misplaced_keys() {
        assert_eq!(SCHEMA.advice("tune", "epoch"), "did you mean `tune.epochs`?");
        assert_eq!(SCHEMA.advice("", "tunne"), "did you mean `tune`?");
        assert_eq!(SCHEMA.advice("tune", "temperature"), "did you mean `adapter.temperature`?");
        assert_eq!(SCHEMA.advice("tune", "learning-rate"), "did you mean `tune.learning_rate`?");
        assert_eq!(SCHEMA.section_advice("adaptor"), "did you mean [adapter]?");
        assert_eq!(SCHEMA.advice("data.columns", "usr"), "did you mean `data.columns.user`?");
        assert!(SCHEMA.advice("export", "qqqq").starts_with("keys of [export]: pairs"));
    }
}
