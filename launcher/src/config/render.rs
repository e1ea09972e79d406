//! Writes configs as TOML a person can read: inline values, one section after another.

use reclora_storage::raw::ColumnMapping;
use reclora_trainer::config::Config;
use toml::Value;

use super::schema::{self, SCHEMA, Schema, to_table};

/// The config as TOML text, every key explicit (but for a mapping of columns that is the default).
pub fn render(config: &Config) -> String {
    let table = to_table(config);
    let mut out = String::new();
    for (section, _) in &SCHEMA.sections {
        // Most formats have no use for it.
        if section == "data.columns" && config.data.columns == ColumnMapping::default() {
            continue;
        }
        if !section.is_empty() {
            out.push_str(&format!("\n[{section}]\n"));
        }
        let values = schema::section(&table, section);
        for key in SCHEMA.keys.iter().filter(|key| &key.section == section) {
            let value = values.and_then(|values| values.get(&key.name));
            out.push_str(&line(&key.name, value.unwrap_or(&key.default)));
        }
    }
    out
}

/// Every key with its sentence and default, as a TOML file.
pub fn reference() -> String {
    let schema: &Schema = &SCHEMA;
    let mut out = String::from(
        "# Every setting of an experiment with its default. Any key may be left out.\n\
         # Set one for a single run with: reclora-launch run CONFIG --set section.key=value\n",
    );
    for (section, doc) in &schema.sections {
        if !section.is_empty() {
            out.push_str(&format!("\n# {doc}\n[{section}]\n"));
        }
        for key in schema.keys.iter().filter(|key| &key.section == section) {
            out.push_str(&format!("# {}\n{}", key.doc, line(&key.name, &key.default)));
        }
    }
    out
}

fn line(name: &str, value: &Value) -> String {
    format!("{name} = {value}\n")
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
    fn reference_is_a_config_of_defaults() {
        let text = reference();
        assert_eq!(toml::from_str::<Config>(&text).expect("parses"), Config::default());
        assert!(
            text.contains("# Softmax temperature T of the gate.\ntemperature = 5.0\n"),
            "{text}"
        );
    }
}
