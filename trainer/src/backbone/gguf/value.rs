//! Values of the metadata, and reading them by key.

use std::ops::Range;

use super::Gguf;
use crate::error::{Result, TrainerError};

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// By the number the file has for it.
    pub fn of(id: u32) -> Option<Self> {
        use Kind::*;
        let kinds = [U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64];
        kinds.get(id as usize).copied()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::F32 => "float32",
            Self::Bool => "bool",
            Self::Text => "string",
            Self::Array => "array",
            Self::U64 => "uint64",
            Self::I64 => "int64",
            Self::F64 => "float64",
        }
    }

    /// Bytes of a number; the fewest bytes of a text or an array.
    pub fn bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Text => 8,
            Self::Array => 12,
        }
    }
}

/// A value, or where it is in the file.
#[derive(Debug)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array(Array),
}

/// Where the elements of an array are.
#[derive(Debug)]
pub struct Array {
    pub kind: Kind,
    pub count: usize,
    pub range: Range<usize>,
}

impl Value {
    /// A number from exactly its bytes; `None` for a bool that is neither 0 nor 1.
    pub fn number(kind: Kind, bytes: &[u8]) -> Option<Self> {
        fn exactly<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
            bytes.try_into().ok()
        }
        Some(match kind {
            Kind::U8 => Self::Unsigned(u8::from_le_bytes(exactly(bytes)?).into()),
            Kind::U16 => Self::Unsigned(u16::from_le_bytes(exactly(bytes)?).into()),
            Kind::U32 => Self::Unsigned(u32::from_le_bytes(exactly(bytes)?).into()),
            Kind::U64 => Self::Unsigned(u64::from_le_bytes(exactly(bytes)?)),
            Kind::I8 => Self::Signed(i8::from_le_bytes(exactly(bytes)?).into()),
            Kind::I16 => Self::Signed(i16::from_le_bytes(exactly(bytes)?).into()),
            Kind::I32 => Self::Signed(i32::from_le_bytes(exactly(bytes)?).into()),
            Kind::I64 => Self::Signed(i64::from_le_bytes(exactly(bytes)?)),
            Kind::F32 => Self::Float(f32::from_le_bytes(exactly(bytes)?).into()),
            Kind::F64 => Self::Float(f64::from_le_bytes(exactly(bytes)?)),
            Kind::Bool => match exactly(bytes)? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                _ => return None,
            },
            Kind::Text | Kind::Array => return None,
        })
    }

    fn as_number(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(n) => Some(n as f64),
            Self::Signed(n) => Some(n as f64),
            Self::Float(x) => Some(x),
            _ => None,
        }
    }
}

/// Metadata by key: `None` where the file has no such key, an error where it has another type.
impl Gguf {
    /// An error about a key.
    pub fn fail_key<T>(&self, key: &str, what: &str) -> Result<T> {
        Err(TrainerError::file(&self.path, format!("key {key}: {what}")))
    }

    /// The value of a key that must be there.
    pub fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        match value {
            Some(value) => Ok(value),
            None => self.fail_key(key, "is missing; convert the model again"),
        }
    }

    fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        self.fail_key(key, &format!("is not {expected}; convert the model again"))
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => self.text_at(key, range.clone()).map(Some),
            Some(_) => self.wrong(key, "a string"),
        }
    }

    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(Value::Signed(n)) if *n >= 0 => Ok(Some(n.unsigned_abs())),
            Some(Value::Array(_)) => {
                self.fail_key(key, "differs by layer; supported: one value for all layers")
            }
            Some(_) => self.wrong(key, "an integer >= 0"),
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.header.metadata.get(key) else { return Ok(None) };
        match value.as_number().filter(|x| x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => self.wrong(key, "a finite number"),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => self.wrong(key, "a bool"),
        }
    }

    /// An array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let array = match self.header.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) if array.kind == Kind::Text => array,
            Some(_) => return self.wrong(key, "an array of strings"),
        };
        let mut at = array.range.start;
        let mut texts = Vec::with_capacity(array.count);
        for _ in 0..array.count {
            let prefix = self.bytes().get(at..).and_then(|bytes| bytes.first_chunk());
            let length = prefix.map_or(0, |bytes| u64::from_le_bytes(*bytes)) as usize;
            texts.push(self.text_at(key, at + 8..at + 8 + length)?);
            at += 8 + length;
        }
        Ok(Some(texts))
    }

    /// An array of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let expected = "an array of numbers";
        let array = match self.header.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) if array.kind != Kind::Text => array,
            Some(_) => return self.wrong(key, expected),
        };
        let bytes = self.bytes().get(array.range.clone()).unwrap_or_default();
        let elements = bytes.chunks_exact(array.kind.bytes() as usize);
        let numbers = elements.map(|bytes| Value::number(array.kind, bytes)?.as_number());
        match numbers.collect() {
            Some(numbers) => Ok(Some(numbers)),
            None => self.wrong(key, expected),
        }
    }

    fn text_at(&self, key: &str, range: Range<usize>) -> Result<&str> {
        match self.bytes().get(range).map(str::from_utf8) {
            Some(Ok(text)) => Ok(text),
            _ => self.wrong(key, "UTF-8"),
        }
    }
}
