//! Readers of raw rating files: published datasets in the layout they come in, and any CSV or Parquet
//! by a mapping of its columns.
//!
//! Each text file may be plain or gzip-compressed. A line that is not what the layout says is an error
//! with its file, line and column. Ratings are never skipped silently: where a dataset is known to hold
//! some that can't be used (of books that its table lacks, say), they are counted ([`Dropped`]).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;

mod bookcrossing;
mod detect;
mod goodreads;
mod mapped;
mod movielens_100k;
mod movielens_1m;
mod movielens_25m;
mod movietweetings;
mod source;
mod tables;
pub(crate) mod time;

pub use detect::{Known, detect};
pub use mapped::{
    ColumnMapping, TableSample, TextEncoding, TimeUnit, Unmatched, is_decoding, sample,
};

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
    /// BookCrossing: `BX-Book-Ratings.csv`, `BX-Books.csv`, `BX-Users.csv`; ratings have no time.
    #[serde(rename = "bookcrossing")]
    Bookcrossing,
    /// GoodReads as UCSD publishes it: `goodreads_interactions*.json`, `goodreads_books*.json` and
    /// optional tables of authors, works and genres.
    #[serde(rename = "goodreads")]
    Goodreads,
    /// Any CSV, by the columns that a [`ColumnMapping`] names.
    #[serde(rename = "csv")]
    Csv,
    /// Any Parquet, by the columns that a [`ColumnMapping`] names.
    #[serde(rename = "parquet")]
    Parquet,
}

impl DatasetFormat {
    /// Its name in a config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Movietweetings => "movietweetings",
            Self::Movielens100k => "movielens_100k",
            Self::Movielens1m => "movielens_1m",
            Self::Movielens25m => "movielens_25m",
            Self::Bookcrossing => "bookcrossing",
            Self::Goodreads => "goodreads",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }

    /// Whether a [`ColumnMapping`] says where its columns are.
    pub fn is_mapped(self) -> bool {
        matches!(self, Self::Csv | Self::Parquet)
    }
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

/// Rows that a reader could not use, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// What they are, e.g. `ratings of books that BX-Books.csv lacks`.
    pub what: String,
    /// How many.
    pub count: u64,
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
    /// Whether ratings have no time: every timestamp is 0 and says nothing about order.
    pub untimed: bool,
    /// Rows that were read and are not in the tables.
    pub dropped: Vec<Dropped>,
}

impl RawTables {
    pub(crate) fn user(&self, row: u32) -> u32 {
        self.ratings.user.get(row as usize).copied().unwrap_or(u32::MAX)
    }

    pub(crate) fn item(&self, row: u32) -> u32 {
        self.ratings.item.get(row as usize).copied().unwrap_or(u32::MAX)
    }
}

/// Reads the raw files of a dataset in directory `dir`, CSV and Parquet by the default mapping.
///
/// # Errors
/// Those of [`read_mapped`].
pub fn read(format: DatasetFormat, dir: &Path) -> Result<RawTables> {
    read_mapped(format, dir, &ColumnMapping::default())
}

/// Reads the raw files of a dataset in directory `dir`. Only CSV and Parquet look at `columns`.
///
/// # Errors
/// A file is missing, empty, truncated or not in its encoding; a line has another number of columns, a
/// rating that is none of the format's levels, a time that is not in its unit, an unknown user or item,
/// or rates an item again; the mapping names a column that does not exist.
pub fn read_mapped(
    format: DatasetFormat,
    dir: &Path,
    columns: &ColumnMapping,
) -> Result<RawTables> {
    match format {
        DatasetFormat::Movietweetings => movietweetings::read(dir),
        DatasetFormat::Movielens100k => movielens_100k::read(dir),
        DatasetFormat::Movielens1m => movielens_1m::read(dir),
        DatasetFormat::Movielens25m => movielens_25m::read(dir),
        DatasetFormat::Bookcrossing => bookcrossing::read(dir),
        DatasetFormat::Goodreads => goodreads::read(dir),
        DatasetFormat::Csv | DatasetFormat::Parquet => mapped::read(format, dir, columns),
    }
}

/// The files that [`read`] reads, for hashing what a stage depends on.
///
/// # Errors
/// Those of [`files_mapped`].
pub fn files(format: DatasetFormat, dir: &Path) -> Result<Vec<PathBuf>> {
    files_mapped(format, dir, &ColumnMapping::default())
}

/// The files that [`read_mapped`] reads, for hashing what a stage depends on.
///
/// # Errors
/// A file is missing, both plain and as `.gz`.
pub fn files_mapped(
    format: DatasetFormat,
    dir: &Path,
    columns: &ColumnMapping,
) -> Result<Vec<PathBuf>> {
    let names: &[&str] = match format {
        DatasetFormat::Movietweetings => &["movies.dat", "ratings.dat"],
        DatasetFormat::Movielens100k => &["u.item", "u.user", "u.data"],
        DatasetFormat::Movielens1m => &["movies.dat", "users.dat", "ratings.dat"],
        DatasetFormat::Movielens25m => &["movies.csv", "ratings.csv"],
        DatasetFormat::Bookcrossing => &bookcrossing::FILES,
        DatasetFormat::Goodreads => return goodreads::files(dir),
        DatasetFormat::Csv | DatasetFormat::Parquet => return mapped::files(format, dir, columns),
    };
    names.iter().map(|name| source::locate(dir, name)).collect()
}
