//! `[data.columns]`: where the columns of a CSV or Parquet dataset are.

use std::borrow::Cow;
use std::path::{Component, Path};

use encoding_rs::WINDOWS_1252;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

use crate::error::{RawProblem, Result, StorageError};
use crate::raw::time::TimeUnit;

/// `[data.columns]`.
#[derive(Clone, Debug, PartialEq, Eq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ColumnMapping {
    /// Table of ratings, relative to data.path: a file (CSV also as `.gz`), or for Parquet a directory as Spark
    /// writes it. Empty: `ratings.csv` or `ratings.parquet`.
    pub ratings: String,
    /// Table of users, one row each. Empty: none, and what is known of users is in the ratings, the same in every
    /// row of one user.
    pub users: String,
    /// Table of items, one row each. Empty: none, and what is known of items is in the ratings, the same in every
    /// row of one item.
    pub items: String,
    /// Column of the ratings with the user's id. Without a header, columns are called by number, from "1".
    #[default = "user"]
    pub user: String,
    /// Column of the ratings with the item's id.
    #[default = "item"]
    pub item: String,
    /// Column of the ratings with the rating, a number, or true (1) and false (0); at most 256 distinct ones.
    #[default = "rating"]
    pub rating: String,
    /// Column of the ratings with the time. Empty: there is none, and each user gives one sample, drawn with a
    /// fixed seed, as for BookCrossing.
    #[default = "timestamp"]
    pub timestamp: String,
    /// What a time is. Parquet's own timestamps need none.
    pub time_unit: TimeUnit,
    /// Column of the table of users with the id. Empty: it is called as in the ratings.
    pub user_key: String,
    /// Column of the table of items with the id. Empty: it is called as in the ratings.
    pub item_key: String,
    /// Columns of users that the CRM reads as categories, in order.
    pub user_fields: Vec<String>,
    /// Columns of users that prompts may use.
    pub user_texts: Vec<String>,
    /// Columns of items that the CRM reads as categories, in order.
    pub item_fields: Vec<String>,
    /// Columns of items that prompts and item embeddings may use, e.g. the title.
    pub item_texts: Vec<String>,
    /// Ratings whose user or item is not in its table.
    pub unmatched: Unusable,
    /// Ratings without a user, item, rating or time (empty, null, NaN).
    pub missing: Unusable,
    /// CSV: what separates two values, one ASCII character.
    #[default = ","]
    pub delimiter: String,
    /// CSV: how its bytes become text.
    pub encoding: TextEncoding,
    /// CSV: whether the first line has the names of the columns.
    #[default = true]
    pub header: bool,
}

/// How the bytes of a CSV become text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextEncoding {
    /// UTF-8; anything else is an error.
    #[default]
    Utf8,
    /// Windows-1252, of which latin-1 is a part. What is valid UTF-8 is taken as such: converted copies are
    /// common, and no latin-1 text is valid UTF-8 by chance.
    Latin1,
}

impl TextEncoding {
    /// The text that a line or a value is.
    pub(in crate::raw) fn decode(self, bytes: &[u8]) -> Result<Cow<'_, str>, RawProblem> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            Err(_) if self == Self::Latin1 => Ok(WINDOWS_1252.decode_without_bom_handling(bytes).0),
            Err(e) => Err(RawProblem::NotUtf8 { position: e.valid_up_to() }),
        }
    }
}

/// What happens to a rating that can't be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unusable {
    /// It is an error.
    #[default]
    Refuse,
    /// It is counted and left out.
    Drop,
}

impl ColumnMapping {
    /// Checks what can be checked without the tables.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn check(&self) -> Result<()> {
        match self.problems().into_iter().next() {
            Some((setting, problem)) => Err(StorageError::Mapping { setting, problem }),
            None => Ok(()),
        }
    }

    /// Settings that can't work, whatever the tables, and why.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let ids = [("user", &self.user), ("item", &self.item), ("rating", &self.rating)];
        for (setting, column) in ids {
            if column.is_empty() {
                found.push((setting, "is empty; name the column".into()));
            }
        }
        if let Err(StorageError::Mapping { setting, problem }) = self.delimiter() {
            found.push((setting, problem));
        }
        let tables = [("ratings", &self.ratings), ("users", &self.users), ("items", &self.items)];
        for (setting, table) in tables {
            let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            if !Path::new(table).components().all(inside) {
                found.push((setting, format!("{table:?} is not a path inside data.path")));
            }
        }
        let lists = [
            ("user_fields", &self.user_fields, &self.user_key, &self.user),
            ("user_texts", &self.user_texts, &self.user_key, &self.user),
            ("item_fields", &self.item_fields, &self.item_key, &self.item),
            ("item_texts", &self.item_texts, &self.item_key, &self.item),
        ];
        for (setting, columns, key, id) in lists {
            let id = if key.is_empty() { id } else { key };
            for (i, column) in columns.iter().enumerate() {
                if column.is_empty() {
                    found.push((setting, "names a column \"\"".into()));
                } else if columns.iter().take(i).any(|before| before == column) {
                    found.push((setting, format!("names the column {column:?} twice")));
                } else if setting.ends_with("fields") && column == id {
                    let what = format!("names {column:?}: the id is a field by itself");
                    found.push((setting, what));
                }
            }
        }
        let keys =
            [(&self.users, &self.user_key, "user_key"), (&self.items, &self.item_key, "item_key")];
        for (table, key, setting) in keys {
            if table.is_empty() && !key.is_empty() {
                found.push((setting, "is for a table of its own, and none is named".into()));
            }
        }
        found
    }

    /// The delimiter as the byte it is.
    pub(super) fn delimiter(&self) -> Result<u8> {
        match self.delimiter.as_bytes() {
            [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
            _ => Err(StorageError::Mapping {
                setting: "delimiter",
                problem: format!(
                    "{:?} is not one ASCII character (a tab is \"\\t\")",
                    self.delimiter
                ),
            }),
        }
    }
}
