//! A column of a table, as a look into it tells.

use serde::{Serialize, Serializer};

/// Values that are written out.
const SHOWN: usize = 3;

/// A column of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds: its type in Parquet, and what its first values look like in CSV.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it can be read.
    pub readable: bool,
    /// Its values in the first rows.
    #[serde(rename = "examples", serialize_with = "examples")]
    pub values: Vec<String>,
}

impl Column {
    /// Its first values.
    pub fn examples(&self) -> &[String] {
        self.values.get(..SHOWN).unwrap_or(&self.values)
    }
}

fn examples<S: Serializer>(values: &[String], to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_seq(values.iter().take(SHOWN))
}
