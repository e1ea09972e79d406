//! Which layout a directory of raw files has, by the names of the files.

use std::path::Path;

use super::{DatasetFormat, movielens_10m};
use crate::error::{Result, StorageError};

/// A layout and the files it is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The layout.
    pub format: DatasetFormat,
    /// Its files, in words.
    pub files: &'static str,
}

impl Known {
    const fn new(format: DatasetFormat, files: &'static str) -> Self {
        Self { format, files }
    }

    /// Every layout, the more particular ones first.
    pub const ALL: [Self; 9] = [
        Self::new(DatasetFormat::Movielens1m, "ratings.dat, movies.dat, users.dat"),
        Self::new(DatasetFormat::Movielens10m, "ratings.dat with half stars, movies.dat; tags.dat"),
        Self::new(DatasetFormat::Movietweetings, "ratings.dat, movies.dat"),
        Self::new(DatasetFormat::Movielens100k, "u.data, u.item, u.user"),
        Self::new(DatasetFormat::Movielens25m, "ratings.csv, movies.csv"),
        Self::new(DatasetFormat::Bookcrossing, "BX-Book-Ratings.csv, BX-Books.csv, BX-Users.csv"),
        Self::new(DatasetFormat::Goodreads, "goodreads_interactions*.json, goodreads_books*.json"),
        Self::new(
            DatasetFormat::Parquet,
            "*.parquet (files or directories), with data.columns in a config",
        ),
        Self::new(DatasetFormat::Csv, "*.csv, with data.columns in a config"),
    ];
}

/// Whether one of `names`, compressed or not, is `wanted`, in which `*` stands for any characters.
fn has(names: &[String], wanted: &str) -> bool {
    let mut names = names.iter().map(|name| name.strip_suffix(".gz").unwrap_or(name));
    match wanted.split_once('*') {
        Some((start, end)) => names.any(|name| name.starts_with(start) && name.ends_with(end)),
        None => names.any(|name| name == wanted),
    }
}

/// The layout of the raw files in `dir`.
///
/// # Errors
/// The directory can't be read, or has the files of no layout: the error lists those that are known.
pub fn detect(dir: &Path) -> Result<Known> {
    let failed = |e| StorageError::io("read", dir, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    // The other files of MovieLens-10M have the names of MovieTweetings'.
    let is_10m = || has(&names, "tags.dat") || movielens_10m::has_half_stars(dir);
    let fits = |format: DatasetFormat| {
        format.file_names().iter().all(|name| has(&names, name))
            && (format != DatasetFormat::Movielens10m || is_10m())
    };
    if let Some(known) = Known::ALL.into_iter().find(|known| fits(known.format)) {
        return Ok(known);
    }
    let visible: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !name.starts_with('.')).collect();
    let found = match visible.as_slice() {
        [] => "the directory is empty".to_owned(),
        some if some.len() <= 8 => format!("no layout has these files: {}", some.join(", ")),
        some => {
            let first = some.get(..8).unwrap_or_default().join(", ");
            format!("no layout has these files: {first}, ... ({} in all)", visible.len())
        }
    };
    let known: Vec<String> =
        Known::ALL.iter().map(|k| format!("  {:<15} {}", k.format.name(), k.files)).collect();
    let known = known.join("\n");
    Err(StorageError::table(dir, format!("{found}; the layouts known are\n{known}")))
}
