//! Readers of raw rating files: published datasets in the layout they come in, and any CSV or Parquet
//! by a mapping of its columns.
//!
//! Each text file may be plain or gzip-compressed. Lines that are not what the layout says are an error: how
//! many there are of each kind, and file, line and column of the first. Ratings are never skipped silently:
//! where a dataset is known to hold some that can't be used (of books that its table lacks, say), or a setting
//! says so, they are counted ([`Dropped`]).

use std::path::{Path, PathBuf};

use bytemuck::{Pod, Zeroable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Result, StorageError};
use crate::spill::{Spill, SpillVec};

mod bookcrossing;
mod chunks;
mod container;
mod detect;
mod duplicates;
mod faults;
mod goodreads;
mod mapped;
mod movielens_100k;
mod movielens_10m;
mod movielens_1m;
mod movielens_25m;
mod movietweetings;
mod source;
mod tables;
mod texts;
pub(crate) mod time;

pub use detect::{Known, detect};
pub use duplicates::Duplicates;
pub use mapped::{Column, ColumnMapping, TableSample, TextEncoding, Unusable, is_decoding, sample};
pub use texts::{TextColumns, text_columns};
pub use time::TimeUnit;

/// Layout of raw files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatasetFormat {
    /// MovieTweetings: `ratings.dat`, `movies.dat`, `::`-separated, UTF-8.
    Movietweetings,
    /// MovieLens-100K: `u.data`, `u.item`, `u.user`.
    #[serde(rename = "movielens_100k")]
    Movielens100k,
    /// MovieLens-1M: `ratings.dat`, `movies.dat`, `users.dat`, latin-1.
    #[serde(rename = "movielens_1m")]
    Movielens1m,
    /// MovieLens-10M: `ratings.dat` with half stars, `movies.dat`, UTF-8.
    #[serde(rename = "movielens_10m")]
    Movielens10m,
    /// MovieLens-25M (20M, 32M and the small one too): `ratings.csv`, `movies.csv`.
    #[serde(rename = "movielens_25m")]
    Movielens25m,
    /// BookCrossing: `BX-Book-Ratings.csv`, `BX-Books.csv`, `BX-Users.csv`; ratings have no time.
    Bookcrossing,
    /// GoodReads as UCSD publishes it: `goodreads_interactions*.json`, `goodreads_books*.json` and
    /// optional tables of authors, works and genres.
    Goodreads,
    /// Any CSV, by the columns that `[data.columns]` names.
    Csv,
    /// Any Parquet, by the columns that `[data.columns]` names.
    Parquet,
}

impl DatasetFormat {
    /// Its name in a config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Movietweetings => "movietweetings",
            Self::Movielens100k => "movielens_100k",
            Self::Movielens1m => "movielens_1m",
            Self::Movielens10m => "movielens_10m",
            Self::Movielens25m => "movielens_25m",
            Self::Bookcrossing => "bookcrossing",
            Self::Goodreads => "goodreads",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }

    /// Names of the files that it has at least; `*` stands for any characters.
    fn file_names(self) -> &'static [&'static str] {
        match self {
            Self::Movietweetings | Self::Movielens10m => &["movies.dat", "ratings.dat"],
            Self::Movielens100k => &["u.item", "u.user", "u.data"],
            Self::Movielens1m => &["movies.dat", "users.dat", "ratings.dat"],
            Self::Movielens25m => &["movies.csv", "ratings.csv"],
            Self::Bookcrossing => &bookcrossing::FILES,
            Self::Goodreads => &["goodreads_books*.json", "goodreads_interactions*.json"],
            Self::Csv => &["*.csv"],
            Self::Parquet => &["*.parquet"],
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
    pub name: &'static str,
    /// Ids as in the files, each once.
    pub keys: Vec<String>,
    /// Categorical fields after the id, in the order of the layout.
    pub fields: Vec<RawColumn>,
    /// Text for prompts, in words.
    pub texts: Vec<RawColumn>,
}

/// One rating, as it lies in memory and in a temporary file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed)]
pub struct Rating {
    /// Index into the users.
    pub user: u32,
    /// Index into the items.
    pub item: u32,
    /// Index into the rating levels.
    pub level: u8,
    /// Nanoseconds since 1970.
    pub timestamp: i64,
}

/// The ratings in the order of the file: all in memory, unless [`read_within`] was told to keep less there.
pub type RawRatings = SpillVec<Rating>;

impl RawRatings {
    /// None yet, and so many in memory as their share of it holds.
    fn within(spill: &Spill) -> Self {
        Self::new(spill, spill.rows(1, size_of::<Rating>()))
    }
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
#[derive(Debug, PartialEq)]
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

/// What reading depends on beside the files.
#[derive(Clone, Copy)]
struct Reading<'a> {
    duplicates: Duplicates,
    spill: &'a Spill,
}

/// [`read_within`], all in memory, where no item may be rated twice.
///
/// # Errors
/// As [`read_within`].
pub fn read(format: DatasetFormat, dir: &Path, columns: &ColumnMapping) -> Result<RawTables> {
    read_within(format, dir, columns, Duplicates::Refuse, &Spill::never())
}

/// Reads the raw files of a dataset in directory `dir`, with as much in memory as `spill` says; users and
/// items are in memory in any case. Only CSV and Parquet look at `columns`.
///
/// # Errors
/// A file is missing, empty, truncated or not in its encoding; lines have another number of columns, a
/// rating that is none of the format's levels, a time that is not in its unit, an unknown user or item,
/// or rate an item again that may not be; the mapping names a column that does not exist; a temporary file
/// can't be written.
pub fn read_within(
    format: DatasetFormat,
    dir: &Path,
    columns: &ColumnMapping,
    duplicates: Duplicates,
    spill: &Spill,
) -> Result<RawTables> {
    source::check_directory(dir)?;
    let how = Reading { duplicates, spill };
    match format {
        DatasetFormat::Movietweetings => movietweetings::read(dir, how),
        DatasetFormat::Movielens100k => movielens_100k::read(dir, how),
        DatasetFormat::Movielens1m => movielens_1m::read(dir, how),
        DatasetFormat::Movielens10m => movielens_10m::read(dir, how),
        DatasetFormat::Movielens25m => movielens_25m::read(dir, how),
        DatasetFormat::Bookcrossing => bookcrossing::read(dir, how),
        DatasetFormat::Goodreads => goodreads::read(dir, how),
        DatasetFormat::Csv | DatasetFormat::Parquet => mapped::read(format, dir, columns, how),
    }
}

/// Looks at the beginning of every file that [`read`] would read, in a moment even where reading all
/// takes hours: at the columns that a mapping names, and a first row. Returns everything that is wrong.
pub fn look(format: DatasetFormat, dir: &Path, columns: &ColumnMapping) -> Vec<StorageError> {
    match files(format, dir, columns) {
        Err(error) => vec![error],
        Ok(_) if format.is_mapped() => mapped::look(format, dir, columns),
        Ok(files) => files.iter().filter_map(|path| source::look(path).err()).collect(),
    }
}

/// The files that [`read`] reads, for hashing what a stage depends on.
///
/// # Errors
/// A file is missing, both plain and as `.gz`.
pub fn files(format: DatasetFormat, dir: &Path, columns: &ColumnMapping) -> Result<Vec<PathBuf>> {
    source::check_directory(dir)?;
    match format {
        DatasetFormat::Goodreads => goodreads::files(dir),
        DatasetFormat::Csv | DatasetFormat::Parquet => mapped::files(format, dir, columns),
        _ => format.file_names().iter().map(|name| source::locate(dir, name)).collect(),
    }
}
