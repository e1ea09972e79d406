//! Readers of raw rating files: MovieTweetings and three releases of MovieLens.
//!
//! Each file may be plain or gzip-compressed. A line that is not what the layout says is an error
//! with its file, line and column: ratings are never skipped silently.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;

mod movielens_100k;
mod movielens_1m;
mod movielens_25m;
mod movietweetings;
mod source;
mod tables;

/// Layout of raw files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatasetFormat {
    /// MovieTweetings: `ratings.dat`, `movies.dat`, `::`-separated, UTF-8.
    #[serde(rename = "movietweetings")]
    Movietweetings,
    /// MovieLens-100K: `u.data`, `u.item`, `u.user`.
    #[serde(rename = "movielens_100k")]
    Movielens100k,
    /// MovieLens-1M: `ratings.dat`, `movies.dat`, `users.dat`, latin-1.
    #[serde(rename = "movielens_1m")]
    Movielens1m,
    /// MovieLens-25M: `ratings.csv`, `movies.csv`.
    #[serde(rename = "movielens_25m")]
    Movielens25m,
}

/// A named column of strings, one per user or per item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawColumn {
    /// Name of the column.
    pub name: String,
    /// One value per user or item.
    pub values: Vec<String>,
}

/// The users or the items of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawEntities {
    /// Name of the id field: `user` or `item`.
    pub name: String,
    /// Ids as in the files, each once.
    pub keys: Vec<String>,
    /// Categorical fields after the id, in the order of the layout.
    pub fields: Vec<RawColumn>,
    /// Text for prompts, in words.
    pub texts: Vec<RawColumn>,
}

/// The ratings in the order of the file, one column per property.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawRatings {
    /// Index into the users.
    pub user: Vec<u32>,
    /// Index into the items.
    pub item: Vec<u32>,
    /// Index into the rating levels.
    pub level: Vec<u8>,
    /// Seconds since 1970.
    pub timestamp: Vec<i64>,
}

/// Everything a layout holds. Users and items without a rating may be among them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawTables {
    /// The star value of each rating level, ascending.
    pub rating_levels: Vec<f32>,
    /// The users.
    pub users: RawEntities,
    /// The items.
    pub items: RawEntities,
    /// The ratings; no (user, item) pair occurs twice.
    pub ratings: RawRatings,
}

impl RawTables {
    pub(crate) fn user(&self, row: u32) -> u32 {
        self.ratings.user.get(row as usize).copied().unwrap_or(u32::MAX)
    }

    pub(crate) fn item(&self, row: u32) -> u32 {
        self.ratings.item.get(row as usize).copied().unwrap_or(u32::MAX)
    }
}

/// Reads the raw files of a dataset in directory `dir`.
///
/// # Errors
/// A file is missing, empty, truncated or not UTF-8 where it must be; a line has another number of
/// columns, a rating that is none of the format's levels, a timestamp that is not an integer, an
/// unknown user or item, or rates an item again.
pub fn read(format: DatasetFormat, dir: &Path) -> Result<RawTables> {
    match format {
        DatasetFormat::Movietweetings => movietweetings::read(dir),
        DatasetFormat::Movielens100k => movielens_100k::read(dir),
        DatasetFormat::Movielens1m => movielens_1m::read(dir),
        DatasetFormat::Movielens25m => movielens_25m::read(dir),
    }
}

/// The files that [`read`] reads, for hashing what a stage depends on.
///
/// # Errors
/// A file is missing, both plain and as `.gz`.
pub fn files(format: DatasetFormat, dir: &Path) -> Result<Vec<PathBuf>> {
    let names: &[&'static str] = match format {
        DatasetFormat::Movietweetings => &["movies.dat", "ratings.dat"],
        DatasetFormat::Movielens100k => &["u.item", "u.user", "u.data"],
        DatasetFormat::Movielens1m => &["movies.dat", "users.dat", "ratings.dat"],
        DatasetFormat::Movielens25m => &["movies.csv", "ratings.csv"],
    };
    names.iter().map(|name| source::locate(dir, name)).collect()
}
