//! Typed access to a JSON object of `config.json`; errors name the file and the field.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::ADVICE;
use crate::error::{Result, TrainerError};

/// Upper limit of every size in a config: larger ones are mistakes or attacks.
const MAX_SIZE: u64 = 1 << 24;

/// An object of the config. A field that is null counts as absent, except in [`Fields::has`].
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub path: &'a Path,
    /// What stands before the names of its fields in errors: empty, or `rope_scaling.`.
    pub prefix: &'static str,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(TrainerError::file(self.path, what))
    }

    /// Whether the field is there, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A field that is present and not null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// An object in the object, named `prefix` (with its dot) in errors.
    pub fn object(&self, name: &str, prefix: &'static str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { path: self.path, prefix, map })),
            Some(other) => self.fail(format!("{}{name} = {other} is not an object", self.prefix)),
        }
    }

    pub fn integer(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n as usize)),
            None => {
                let prefix = self.prefix;
                self.fail(format!("{prefix}{name} = {value} is not an integer in {range:?}"))
            }
        }
    }

    pub fn size(&self, name: &str) -> Result<Option<usize>> {
        self.integer(name, 1..=MAX_SIZE)
    }

    pub fn need_size(&self, name: &str) -> Result<usize> {
        self.need(name, self.size(name)?)
    }

    pub fn number(&self, name: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(x) => Ok(Some(x as f32)),
            None => self.fail(format!("{}{name} = {value} is not a number", self.prefix)),
        }
    }

    /// `value`, an error where the field is absent.
    pub fn need<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        match value {
            Some(value) => Ok(value),
            None => self.fail(format!("has no \"{}{name}\"; {ADVICE}", self.prefix)),
        }
    }

    /// A boolean that is false by default.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => self.fail(format!("{}{name} = {other} is not a bool", self.prefix)),
        }
    }

    /// A token id or a list of them.
    pub fn tokens(&self, name: &str) -> Result<Vec<u32>> {
        let values = match self.get(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        match values.iter().map(id).collect() {
            Some(ids) => Ok(ids),
            None => self.fail(format!("{name} is not a token id or a list of token ids")),
        }
    }
}
