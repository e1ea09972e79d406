//! The JSON schema of a config, derived from its types, and what a config breaks of it.

use std::collections::HashSet;
use std::sync::LazyLock;

use schemars::generate::{Contract, SchemaSettings};
use schemars::transform::RecursiveTransform;
use serde::Serialize;
use serde_json::{Value, json};

use super::Config;

/// What is wrong with a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `section.key`.
    pub field: String,
    /// What is wrong and what would be right.
    pub what: String,
    /// Advice, where there is any besides.
    pub help: Option<String>,
}

impl Problem {
    /// What is wrong with a setting.
    pub fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into(), help: None }
    }
}

/// The schema, with nothing by reference. `required` of a section names its settings in their order.
pub fn schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| generate(Contract::Serialize));
    &SCHEMA
}

/// The schema as editors take it: in a file no setting is required.
pub fn editor_schema() -> Value {
    generate(Contract::Deserialize)
}

/// Draft 7, which every editor knows.
fn generate(contract: Contract) -> Value {
    let mut settings = SchemaSettings::draft07();
    settings.inline_subschemas = true;
    settings.contract = contract;
    // Settings have defaults, sections need none. An f32 is shown in the digits it needs, not in those of the f64
    // it becomes.
    let settings = settings.with_transform(RecursiveTransform(|schema: &mut schemars::Schema| {
        if schema.get("properties").is_some() {
            schema.remove("default");
        }
        let default = schema.get("default").and_then(Value::as_f64);
        if let (Some("float"), Some(value)) =
            (schema.get("format").and_then(Value::as_str), default)
        {
            schema.insert("default".into(), short(value));
        }
    }));
    settings.into_generator().into_root_schema_for::<Config>().to_value()
}

/// An f32 that has become an f64, in the digits it needs.
fn short(value: f64) -> Value {
    (value as f32).to_string().parse::<f64>().map_or(Value::Null, |value| json!(value))
}

/// What is wrong with a section of a config ("" is all of it): keys that don't exist, values of a wrong type, that
/// are no choice or out of range.
pub fn check(section: &str, values: &impl Serialize) -> Vec<Problem> {
    let schema = if section.is_empty() { schema() } else { &schema()["properties"][section] };
    match serde_json::to_value(values) {
        Ok(values) => found_in(section, schema, &values),
        Err(error) => vec![Problem::new(section, error.to_string())],
    }
}

fn found_in(path: &str, schema: &Value, value: &Value) -> Vec<Problem> {
    let Some(known) = schema["properties"].as_object() else {
        return fault(schema, value).map(|what| Problem::new(path, what)).into_iter().collect();
    };
    let Some(table) = value.as_object() else {
        return vec![Problem::new(path, format!("expected a section, found {value}"))];
    };
    let found = table.iter().flat_map(|(key, value)| {
        let field = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match known.get(key) {
            Some(schema) => found_in(&field, schema, value),
            None if path.is_empty() && value.is_object() => {
                vec![Problem::new(field, format!("unknown section [{key}]"))]
            }
            None if path.is_empty() => vec![Problem::new(field, format!("unknown key `{key}`"))],
            None => vec![Problem::new(field, format!("unknown key `{key}` in [{path}]"))],
        }
    });
    found.collect()
}

/// What is wrong with a value by itself.
fn fault(schema: &Value, value: &Value) -> Option<String> {
    if let Some(choices) = schema["oneOf"].as_array() {
        return no_choice(choices, value);
    }
    let expected = match schema["type"].as_str().unwrap_or_default() {
        "array" => return fault_of_list(schema, value),
        // JSON has neither infinity nor NaN.
        "number" if value.is_null() => return Some("is not a finite number".into()),
        "number" if !value.is_number() => "a number",
        "integer" if !value.is_u64() => "a whole number, 0 or more",
        "integer" if schema["format"] == "uint32" && value.as_u64() > Some(u32::MAX.into()) => {
            "a whole number up to 4294967295"
        }
        "boolean" if !value.is_boolean() => "true or false",
        "string" if !value.is_string() && schema["format"] == "path" => "a path in quotes",
        "string" if !value.is_string() => "text in quotes",
        _ => return out_of_range(schema, value),
    };
    Some(format!("expected {expected}, found {}", shown(value)))
}

/// A value as it was written: a date of TOML comes as a table with this key.
fn shown(value: &Value) -> String {
    value.get("$__toml_private_datetime").unwrap_or(value).to_string()
}

fn fault_of_list(schema: &Value, value: &Value) -> Option<String> {
    let Some(items) = value.as_array() else {
        return Some(format!("expected a list in brackets, found {}", shown(value)));
    };
    let (least, most) = (schema["minItems"].as_u64(), schema["maxItems"].as_u64());
    let length = items.len() as u64;
    if least.is_some_and(|least| length < least) || most.is_some_and(|most| length > most) {
        let number = least.or(most).unwrap_or_default();
        let at_least = if most.is_none() { "at least " } else { "" };
        return Some(format!("must have {at_least}{number} values, not {length}"));
    }
    let mut seen = HashSet::new();
    let twice = items.iter().find(|item| !seen.insert(item.to_string()));
    match twice.filter(|_| schema["uniqueItems"] == true) {
        Some(item) => Some(format!("names {item} twice")),
        None => items.iter().find_map(|item| fault(&schema["items"], item)),
    }
}

/// Choices are words, or tables of one key such as `{ at_least = 8.0 }`.
fn no_choice(choices: &[Value], value: &Value) -> Option<String> {
    if choices.iter().any(|choice| &choice["const"] == value) {
        return None;
    }
    if let Some((key, inner)) =
        value.as_object().filter(|t| t.len() == 1).and_then(|t| t.iter().next())
        && let Some(schema) = choices.iter().find_map(|choice| choice["properties"].get(key))
    {
        return fault(schema, inner);
    }
    let names: Vec<_> = choices.iter().map(|choice| format!("`{}`", choice_name(choice))).collect();
    let expected = format!("expected one of {}", names.join(", "));
    Some(match value {
        Value::String(word) => format!("`{word}` is not a choice; {expected}"),
        other => format!("{expected}, found {}", shown(other)),
    })
}

/// A choice as it is written in a config.
pub fn choice_name(choice: &Value) -> String {
    match choice["properties"].as_object().and_then(|table| table.keys().next()) {
        Some(key) => format!("{{ {key} = NUMBER }}"),
        None => choice["const"].as_str().unwrap_or_default().to_owned(),
    }
}

fn out_of_range(schema: &Value, value: &Value) -> Option<String> {
    let number = value.as_f64()?;
    let holds = |key: &str, holds: fn(&f64, &f64) -> bool| {
        schema[key].as_f64().is_none_or(|bound| holds(&number, &bound))
    };
    let shown = if schema["format"] == "float" { short(number) } else { value.clone() };
    let is_inside = holds("minimum", f64::ge)
        && holds("exclusiveMinimum", f64::gt)
        && holds("maximum", f64::le)
        && holds("exclusiveMaximum", f64::lt);
    (!is_inside).then(|| format!("is {shown}; it must be {}", range(schema).unwrap_or_default()))
}

/// The range of a setting in words, "at least 0 and below 1".
pub fn range(schema: &Value) -> Option<String> {
    let bounds = [
        ("minimum", "at least"),
        ("exclusiveMinimum", "more than"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    ];
    let said = bounds.map(|(key, words)| Some(format!("{words} {}", schema.get(key)?)));
    let said: Vec<_> = said.into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(field: &str, value: Value) -> Option<String> {
        let (section, key) = field.split_once('.').unwrap();
        let found = check("", &json!({ section: { key: value } }));
        assert!(found.iter().all(|problem| problem.field == field), "{found:?}");
        found.into_iter().next().map(|problem| problem.what)
    }

    #[test]
    fn types_are_in_words() {
        let said = what("tune.epochs", json!("x")).unwrap();
        assert_eq!(said, "expected a whole number, 0 or more, found \"x\"");
        assert_eq!(what("tune.learning_rate", json!(1)), None);
        assert!(what("data.k_core", json!(1_u64 << 32)).unwrap().contains("up to 4294967295"));
        assert!(what("tune.learning_rate", json!(true)).unwrap().starts_with("expected a number"));
        assert!(what("data.path", json!(3)).unwrap().starts_with("expected a path in quotes"));
        assert!(what("data.columns", json!(3)).unwrap().starts_with("expected a section"));
        assert_eq!(what("data.split", json!([0.5, 0.5])).unwrap(), "must have 3 values, not 2");
    }

    #[test]
    fn choices_are_named() {
        let said = what("retrieve.text_order", json!("sequental")).unwrap();
        assert!(
            said.starts_with("`sequental` is not a choice; expected one of `recent`, "),
            "{said}"
        );
        assert_eq!(what("data.label", json!({ "greater": 3 })), None);
        let said = what("data.label", json!({ "more": 3 })).unwrap();
        assert!(said.contains("`{ greater = NUMBER }`, `{ at_least = NUMBER }`"), "{said}");
        assert!(what("data.label", json!({ "greater": "x" })).unwrap().contains("a number"));
        assert!(what("adapter.targets", json!(["q_proj", "x"])).unwrap().contains("`down_proj`"));
        assert_eq!(
            what("adapter.targets", json!(["q_proj", "q_proj"])).unwrap(),
            "names \"q_proj\" twice"
        );
    }

    #[test]
    fn ranges_hold_at_their_ends() {
        assert_eq!(what("tune.epochs", json!(0)).unwrap(), "is 0; it must be at least 1");
        assert_eq!(what("tune.epochs", json!(1)), None);
        assert_eq!(what("crm.dropout", json!(0.0)), None);
        let said = what("crm.dropout", json!(1.0)).unwrap();
        assert_eq!(said, "is 1.0; it must be at least 0.0 and below 1.0");
        assert!(what("adapter.temperature", json!(0)).unwrap().contains("more than 0.0"));
        assert_eq!(what("data.memory_limit_mib", json!(1 << 30)), None);
    }

    /// What is derived can be relied on by who walks it.
    #[test]
    fn every_setting_has_words_and_a_default_and_the_defaults_are_in_range() {
        let mut pending = vec![(String::new(), schema().clone())];
        let mut settings = 0;
        while let Some((path, schema)) = pending.pop() {
            if let Some(inner) = schema["properties"].as_object() {
                assert_eq!(inner.len(), schema["required"].as_array().unwrap().len(), "{path}");
                pending.extend(inner.iter().map(|(key, s)| (format!("{path}.{key}"), s.clone())));
            } else {
                settings += 1;
                assert!(!schema["description"].as_str().unwrap().is_empty(), "{path}");
                assert_eq!(fault(&schema, &schema["default"]), None, "{path}");
            }
        }
        assert!(settings > 80, "{settings}");
        assert_eq!(schema()["properties"]["crm"]["properties"]["dropout"]["default"], json!(0.1));
        assert!(editor_schema()["properties"]["crm"].get("required").is_none());
    }
}
