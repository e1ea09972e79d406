//! `--set section.key=value`.

use reclora_trainer::config::Config;
use toml::{Table, Value};

use super::explain::explain;
use super::schema::{Key, PATH_KEYS, SCHEMA};
use crate::error::{LaunchError, Result};

/// Applies one `key=value` to the parsed config. The value is TOML; bare words are strings.
pub fn apply(table: &mut Table, text: &str) -> Result<()> {
    let fail = |message: &str, help: Option<String>| {
        let help = help.map(|h| format!("\n  help: {h}")).unwrap_or_default();
        LaunchError::Usage(format!("--set {text}: {message}{help}"))
    };
    let Some((path, value)) = text.split_once('=') else {
        let help = "write section.key=value, for example --set tune.epochs=3".to_owned();
        return Err(fail("there is no `=`", Some(help)).into());
    };
    let (path, value) = (path.trim(), value.trim());
    let Some(key) = SCHEMA.key(path) else {
        return Err(fail(&unknown(path), Some(advice(path))).into());
    };
    insert(table, key, value_of(key, value));
    // Checked after each override, so that the error belongs to the one that made it.
    table.clone().try_into::<Config>().map(drop).map_err(|error| {
        let explained = explain(Some(path), error.message());
        fail(&explained.message, explained.help).into()
    })
}

fn unknown(path: &str) -> String {
    if SCHEMA.has_section(path) && !path.is_empty() {
        format!("`{path}` is a section")
    } else {
        format!("unknown key `{path}`")
    }
}

fn advice(path: &str) -> String {
    if SCHEMA.has_section(path) && !path.is_empty() {
        let names: Vec<&str> = SCHEMA.names_in(path).collect();
        return format!("name one of its keys, {path}.KEY: {}", names.join(", "));
    }
    match path.rsplit_once('.') {
        Some((section, name)) if SCHEMA.has_section(section) => SCHEMA.advice(section, name),
        Some((section, name)) => {
            let corrected = SCHEMA.section_advice(section);
            match corrected.strip_prefix("did you mean [").and_then(|s| s.strip_suffix("]?")) {
                Some(right) if SCHEMA.key(&format!("{right}.{name}")).is_some() => {
                    format!("did you mean `{right}.{name}`?")
                }
                _ => corrected,
            }
        }
        None => SCHEMA.advice("", path),
    }
}

/// The value as TOML; what is not TOML, or not text where text belongs, is taken as it stands.
fn value_of(key: &Key, text: &str) -> Value {
    let parsed = format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let value = match parsed {
        Some(value) if !key.default.is_str() || value.is_str() => value,
        _ => Value::String(text.to_owned()),
    };
    match &value {
        Value::String(path) if PATH_KEYS.contains(&key.path().as_str()) => {
            let full = std::path::absolute(path).map(|full| full.display().to_string());
            Value::String(full.unwrap_or_else(|_| path.clone()))
        }
        _ => value,
    }
}

fn insert(mut table: &mut Table, key: &Key, value: Value) {
    for part in key.section.split('.').filter(|part| !part.is_empty()) {
        let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
        // A section that is no table is refused before overrides are applied.
        let Value::Table(inner) = inner else { return };
        table = inner;
    }
    table.insert(key.name.clone(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Result<Config, String> {
        let mut table = Table::new();
        apply(&mut table, text).map_err(|error| error.to_string())?;
        table.try_into().map_err(|error: toml::de::Error| error.to_string())
    }

    #[test]
    fn values_are_toml_or_bare() {
        assert_eq!(set("tune.epochs=3").unwrap().tune.epochs, 3);
        assert_eq!(set("name=quick").unwrap().name, "quick");
        assert_eq!(set("name=42").unwrap().name, "42");
        assert_eq!(set("data.split=[0.6, 0.2, 0.2]").unwrap().data.split, [0.6, 0.2, 0.2]);
        assert_eq!(set("export.pairs=[\"1:2\"]").unwrap().export.pairs, ["1:2"]);
        assert!(set("data.label={ greater = 3 }").is_ok());
        assert!(set("data.path=x").unwrap().data.path.is_absolute());
        assert_eq!(set("data.columns.user=who").unwrap().data.columns.user, "who");
        assert_eq!(set("data.columns.user_texts=[\"a\"]").unwrap().data.columns.user_texts, ["a"]);
        assert!(!set("tune.plain_lora=false").unwrap().tune.plain_lora);
    }

    #[test]
    fn typos_are_answered() {
        let error = set("tune.epoch=3").unwrap_err();
        assert!(error.contains("did you mean `tune.epochs`?"), "{error}");
        let error = set("tunes.epochs=3").unwrap_err();
        assert!(error.contains("did you mean `tune.epochs`?"), "{error}");
        let error = set("data.columns.usr=x").unwrap_err();
        assert!(error.contains("did you mean `data.columns.user`?"), "{error}");
        let error = set("data.columns=x").unwrap_err();
        assert!(error.contains("`data.columns` is a section"), "{error}");
        let error = set("epochs=3").unwrap_err();
        assert!(error.contains("`crm.epochs` or `tune.epochs`"), "{error}");
        let error = set("tune=3").unwrap_err();
        assert!(error.contains("`tune` is a section"), "{error}");
        let error = set("tune.epochs").unwrap_err();
        assert!(error.contains("no `=`"), "{error}");
        let error = set("tune.epochs=many").unwrap_err();
        assert!(error.contains("expected a whole number"), "{error}");
        let error = set("tune.epochs=-1").unwrap_err();
        assert!(error.contains("expected a whole number, 0 or more"), "{error}");
        let error = set("adapter.form=factors").unwrap_err();
        assert!(error.contains("did you mean `factor`?"), "{error}");
    }
}
