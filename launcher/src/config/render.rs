//! Writes configs as TOML a person can read: inline values, one section after another.

use std::path::Path;

use reclora_storage::raw::ColumnMapping;
use reclora_trainer::config::{self, Config};
use toml::{Table, Value};

use super::Draft;
use super::schema::{SETTINGS, Setting, to_table};
use super::source::Source;
use crate::error::Result;

/// Columns of a line of the reference.
const WIDTH: usize = 110;

/// The config as TOML text, every key explicit (but for a mapping of columns that is the default).
pub fn render(config: &Config) -> String {
    let table = to_table(config);
    // Most formats have no use for it.
    let is_shown = |section: &str| {
        section != "data.columns" || config.data.columns != ColumnMapping::default()
    };
    let sections = SETTINGS.sections.iter().filter(|(section, _)| is_shown(section));
    write(sections.map(|(section, _)| (section, String::new())), |setting| {
        line(setting, &value(setting, &table))
    })
}

/// Every setting with its words, choices, range and default, as a TOML file. A config's settings have its values, and
/// its head is kept, so a commented config is brought up to date by this.
pub fn reference(path: Option<&Path>) -> Result<String> {
    let mut table = Table::new();
    let mut head = "# Every setting of an experiment with its default. Any key may be left out.\n\
         # Set one for a single run with: reclora-launch run CONFIG --set section.key=value\n"
        .to_owned();
    if let Some(path) = path {
        let source = Source::read(path)?;
        let comment = source.text.lines().take_while(|line| line.starts_with('#'));
        head = comment.map(|line| format!("{line}\n")).collect();
        table = source.table()?;
        Draft::new(Some(&source), table.clone()).finish(|_| None)?;
    }
    let sections =
        SETTINGS.sections.iter().map(|(section, words)| (section, wrap("# ", "# ", words)));
    let body = write(sections, |setting| {
        let value = value(setting, &table);
        comment(setting, &value) + &line(setting, &value)
    });
    Ok(format!("{head}\n{body}"))
}

/// Sections, each with the text above its head, and the text of their settings.
fn write<'a>(
    sections: impl Iterator<Item = (&'a String, String)>,
    text: impl Fn(&Setting) -> String,
) -> String {
    let mut out = String::new();
    for (section, above) in sections {
        if !section.is_empty() {
            out += &format!("\n{above}[{section}]\n");
        }
        out.extend(SETTINGS.all.iter().filter(|s| &s.section == section).map(&text));
    }
    out
}

fn value(setting: &Setting, table: &Table) -> Value {
    setting.get(table).cloned().unwrap_or_else(|| setting.default())
}

fn line(setting: &Setting, value: &Value) -> String {
    format!("{} = {value}\n", setting.name)
}

fn comment(setting: &Setting, value: &Value) -> String {
    let mut text = super::schema::words(setting.schema);
    if let Some(range) = config::range(setting.schema).filter(|range| range != "at least 0") {
        text += &format!(" Range: {range}.");
    }
    let default = setting.default();
    if *value != default {
        text += &format!(" Default: {default}.");
    }
    let choices = setting.choices().into_iter();
    let choices = choices.map(|(name, words)| wrap("#   ", "#     ", &format!("{name}: {words}")));
    wrap("# ", "# ", &text) + &choices.collect::<String>()
}

/// Comment lines, the first of which begins with `first`, others with `rest`.
fn wrap(first: &str, rest: &str, text: &str) -> String {
    let mut lines = vec![first.to_owned()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() <= WIDTH => {
                line.push_str(word);
                line.push(' ');
            }
            _ => lines.push(format!("{rest}{word} ")),
        }
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendered_config_reads_back_equal() {
        let mut config = Config { name: "a \"quoted\" name".into(), ..Config::default() };
        config.export.pairs = vec!["1:2".into()];
        config.crm.dropout = 0.3;
        assert!(!render(&config).contains("[data.columns]"));
        config.data.columns.item_texts = vec!["title".into()];
        let text = render(&config);
        assert!(text.contains("dropout = 0.3\n"), "{text}");
        assert!(text.contains("label = { at_least = 8.0 }"), "{text}");
        assert_eq!(toml::from_str::<Config>(&text).expect("parses"), config);
    }

    #[test]
    fn comments_are_wrapped() {
        let text = wrap("# ", "#   ", &"word ".repeat(30));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 2 && lines.iter().all(|line| line.len() <= WIDTH), "{text}");
        assert!(lines[0].starts_with("# word") && lines[1].starts_with("#   word"), "{text}");
    }

    #[test]
    fn reference_is_a_config_of_defaults() {
        let text = reference(None).expect("is printed");
        assert_eq!(toml::from_str::<Config>(&text).expect("parses"), Config::default());
        assert!(
            text.contains("mixes more evenly. Range: more than 0.0.\ntemperature = 5.0\n"),
            "{text}"
        );
    }
}
