//! A made-up sample, which knows what a template asks of it and does not find.

use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object};
use minijinja::{ErrorKind, Value};
use reclora_storage::raw::TextColumns;

/// What every text of a made-up sample is.
pub const TEXT: &str = "text";

/// The newest name that was asked for in vain, with those that were there beside it.
#[derive(Debug, Default)]
struct Missing(Mutex<Option<(String, Vec<String>)>>);

/// Named values, as templates see them.
#[derive(Debug)]
struct Record {
    values: Vec<(String, Value)>,
    missing: Arc<Missing>,
}

impl Object for Record {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let wanted = key.as_str()?;
        let found = self.values.iter().find(|(name, _)| name == wanted);
        if found.is_none() {
            let there = self.values.iter().map(|(name, _)| name.clone()).collect();
            let mut newest = self.missing.0.lock().unwrap_or_else(PoisonError::into_inner);
            *newest = Some((wanted.to_owned(), there));
        }
        found.map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.values.iter().map(|(name, _)| name.as_str().into()).collect())
    }
}

/// The values of a piece of a template.
#[derive(Debug)]
pub struct MadeUp {
    root: Value,
    missing: Arc<Missing>,
}

impl MadeUp {
    /// A sample of a dataset with these columns, shown with so many items of its history, whose item has
    /// `target` as every text.
    pub fn sample(columns: &TextColumns, history: usize, target: &str) -> Self {
        let missing = Arc::default();
        let record = |values| record(values, &missing);
        let texts = |names: &[String], text: &str| -> Vec<(String, Value)> {
            names.iter().map(|name| (name.clone(), text.into())).collect()
        };
        let counted = |mut values: Vec<(String, Value)>| {
            values.extend([("mean".into(), 0.25.into()), ("count".into(), 3.into())]);
            values
        };
        let shown = (0..history).map(|index| {
            let mut values = texts(&columns.items, TEXT);
            values.push(("index".into(), index.into()));
            values.push(("stars".into(), (index % 5 + 1).into()));
            record(values)
        });
        let root = record(vec![
            ("history".into(), shown.collect()),
            ("target".into(), record(counted(texts(&columns.items, target)))),
            ("user".into(), record(counted(texts(&columns.users, TEXT)))),
        ]);
        Self { root, missing }
    }

    /// What the piece for an item sees.
    pub fn item(columns: &TextColumns) -> Self {
        let missing = Arc::default();
        let texts = columns.items.iter().map(|name| (name.clone(), TEXT.into())).collect();
        let values =
            vec![("item".into(), record(texts, &missing)), ("every_column".into(), TEXT.into())];
        Self { root: record(values, &missing), missing }
    }

    /// What the wrapper sees.
    pub fn wrapped(body: String) -> Self {
        let missing = Arc::default();
        Self { root: record(vec![("body".into(), body.into())], &missing), missing }
    }

    /// For rendering.
    pub fn values(&self) -> Value {
        self.root.clone()
    }

    /// What is not there, as the source has it (`item.titel`), and what is, if that is the error.
    pub fn explain(&self, error: &minijinja::Error, source: &str) -> Option<String> {
        if error.kind() != ErrorKind::UndefinedError {
            return None;
        }
        let (name, there) =
            self.missing.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let line = source.lines().nth(error.line()?.checked_sub(1)?)?;
        // What was asked for in another line was not the fault.
        let prefix = prefix(line, &name)?;
        let there: Vec<String> = there.iter().map(|name| format!("{prefix}{name}")).collect();
        Some(match there.as_slice() {
            [] => format!("{prefix}{name} is not there: this data has no such columns"),
            [only] => format!("{prefix}{name} is not there; there is {only}"),
            all => format!("{prefix}{name} is not there; there are {}", all.join(", ")),
        })
    }
}

fn record(values: Vec<(String, Value)>, missing: &Arc<Missing>) -> Value {
    Value::from_object(Record { values, missing: Arc::clone(missing) })
}

/// What stands before a name in a line (`item.`), where the name is there as a word.
fn prefix<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name).find_map(|(at, _)| {
        let (before, after) = (line.get(..at)?, line.get(at + name.len()..)?);
        if before.ends_with(is_word) || after.starts_with(is_word) {
            return None;
        }
        let is_path = |c: char| is_word(c) || ".[]".contains(c);
        let start = match before.ends_with('.') {
            true => before.trim_end_matches(is_path).len(),
            false => before.len(),
        };
        before.get(start..)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_said_as_it_is_written() {
        assert_eq!(prefix("{{ item.nme }} ({{ item.stars }})", "nme"), Some("item."));
        assert_eq!(prefix("{{ name }}{{ x.history[0].nme|upper }}", "nme"), Some("x.history[0]."));
        assert_eq!(prefix("{{ titel }}", "titel"), Some(""));
        assert_eq!(prefix("titel", "titel"), Some(""));
        assert_eq!(prefix("{{ item[\"nme\"] }}", "nme"), Some(""));
        assert_eq!(prefix("{{ item.nmes }}", "nme"), None);
    }
}
