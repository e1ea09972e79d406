//! `[data.columns]`: where the columns of a CSV or Parquet dataset are.

use std::borrow::Cow;
use std::path::{Component, Path};

use encoding_rs::WINDOWS_1252;
use serde::{Deserialize, Serialize};

use crate::error::{RawProblem, Result, StorageError};
use crate::raw::time::Notation;

/// `[data.columns]`: which columns of which tables hold what. Only for format = "csv" and "parquet".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColumnMapping {
    /// Table of ratings, relative to data.path: a file (CSV also as `.gz`), or for Parquet a directory as Spark writes it. Empty: `ratings.csv` or `ratings.parquet`.
    pub ratings: String,
    /// Table of users, one row each; empty: none, and what is known of users is in the ratings.
    pub users: String,
    /// Table of items, one row each; empty: none, and what is known of items is in the ratings.
    pub items: String,
    /// Column of the ratings with the user's id. Without a header, columns are called by number, from "1".
    pub user: String,
    /// Column of the ratings with the item's id.
    pub item: String,
    /// Column of the ratings with the rating, a number, or true (1) and false (0); at most 256 distinct ones.
    pub rating: String,
    /// Column of the ratings with the time; empty: there is none, and samples are drawn as for BookCrossing.
    pub timestamp: String,
    /// What a time is: `s`, `ms`, `us` or `ns` since 1970, with decimals or without, or `iso8601` (2011-08-01T20:41:57Z). Parquet's own timestamps need none.
    pub time_unit: TimeUnit,
    /// Column of the table of users with the id; empty: it is called as in the ratings.
    pub user_key: String,
    /// Column of the table of items with the id; empty: it is called as in the ratings.
    pub item_key: String,
    /// Columns of users that the CRM reads as categories, in order.
    pub user_fields: Vec<String>,
    /// Columns of users that prompts may use.
    pub user_texts: Vec<String>,
    /// Columns of items that the CRM reads as categories, in order.
    pub item_fields: Vec<String>,
    /// Columns of items that prompts and item embeddings may use, e.g. the title.
    pub item_texts: Vec<String>,
    /// Ratings whose user or item is not in its table: `refuse` them with an error, or `drop` and count them.
    pub unmatched: Unusable,
    /// Ratings without a user, item, rating or time (empty, null, NaN): `refuse` them with an error, or `drop` and count them.
    pub missing: Unusable,
    /// CSV: what separates two values, one ASCII character.
    pub delimiter: String,
    /// CSV: `utf8`, or `latin1` for files that are neither.
    pub encoding: TextEncoding,
    /// CSV: whether the first line has the names of the columns.
    pub header: bool,
}

/// What a time is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeUnit {
    /// Seconds since 1970.
    #[default]
    S,
    /// Milliseconds since 1970.
    Ms,
    /// Microseconds since 1970.
    Us,
    /// Nanoseconds since 1970.
    Ns,
    /// ISO 8601, UTC where it has no offset.
    Iso8601,
}

/// How the bytes of a CSV become text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unusable {
    /// It is an error.
    #[default]
    Refuse,
    /// It is counted and left out.
    Drop,
}

impl Default for ColumnMapping {
    fn default() -> Self {
        Self {
            ratings: String::new(),
            users: String::new(),
            items: String::new(),
            user: "user".into(),
            item: "item".into(),
            rating: "rating".into(),
            timestamp: "timestamp".into(),
            time_unit: TimeUnit::S,
            user_key: String::new(),
            item_key: String::new(),
            user_fields: Vec::new(),
            user_texts: Vec::new(),
            item_fields: Vec::new(),
            item_texts: Vec::new(),
            unmatched: Unusable::Refuse,
            missing: Unusable::Refuse,
            delimiter: ",".into(),
            encoding: TextEncoding::Utf8,
            header: true,
        }
    }
}

impl ColumnMapping {
    /// Checks what can be checked without the tables.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn check(&self) -> Result<()> {
        let bad = |setting, problem: String| Err(StorageError::Mapping { setting, problem });
        let ids = [("user", &self.user), ("item", &self.item), ("rating", &self.rating)];
        for (setting, column) in ids {
            if column.is_empty() {
                return bad(setting, "is empty; name the column".into());
            }
        }
        self.delimiter()?;
        let tables = [("ratings", &self.ratings), ("users", &self.users), ("items", &self.items)];
        for (setting, table) in tables {
            let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            if !Path::new(table).components().all(inside) {
                return bad(setting, format!("{table:?} is not a path inside data.path"));
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
                    return bad(setting, "names a column \"\"".into());
                }
                if columns.iter().take(i).any(|before| before == column) {
                    return bad(setting, format!("names the column {column:?} twice"));
                }
                if setting.ends_with("fields") && column == id {
                    return bad(setting, format!("names {column:?}: the id is a field by itself"));
                }
            }
        }
        for (table, key, setting) in
            [(&self.users, &self.user_key, "user_key"), (&self.items, &self.item_key, "item_key")]
        {
            if table.is_empty() && !key.is_empty() {
                return bad(setting, "is for a table of its own, and none is named".into());
            }
        }
        Ok(())
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

impl TimeUnit {
    /// Every one, the coarser units first.
    pub(in crate::raw) const ALL: [Self; 5] =
        [Self::S, Self::Ms, Self::Us, Self::Ns, Self::Iso8601];

    /// Its name in a config, words for it, and how its times are written.
    pub(in crate::raw) fn describe(self) -> (&'static str, &'static str, Notation) {
        match self {
            Self::S => ("s", "seconds", Notation::Number(9)),
            Self::Ms => ("ms", "milliseconds", Notation::Number(6)),
            Self::Us => ("us", "microseconds", Notation::Number(3)),
            Self::Ns => ("ns", "nanoseconds", Notation::Number(0)),
            Self::Iso8601 => ("iso8601", "ISO 8601", Notation::Iso8601),
        }
    }

    /// Its name in a config.
    pub fn name(self) -> &'static str {
        self.describe().0
    }

    /// How its times are written.
    pub(in crate::raw) fn notation(self) -> Notation {
        self.describe().2
    }
}
