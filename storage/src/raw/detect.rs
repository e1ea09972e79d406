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
    /// Beginnings of the names it must have, and their ends without `.gz`.
    names: &'static [(&'static str, &'static str)],
}

impl Known {
    /// Its half stars are a sign of it too: the other files have the names of MovieTweetings'.
    const MOVIELENS_10M: Self = Self {
        format: DatasetFormat::Movielens10m,
        files: "ratings.dat with half stars, movies.dat; tags.dat",
        names: &[("ratings", ".dat"), ("movies", ".dat"), ("tags", ".dat")],
    };

    /// Every layout, the more particular ones first.
    pub const ALL: [Self; 9] = [
        Self {
            format: DatasetFormat::Movielens1m,
            files: "ratings.dat, movies.dat, users.dat",
            names: &[("ratings", ".dat"), ("movies", ".dat"), ("users", ".dat")],
        },
        Self::MOVIELENS_10M,
        Self {
            format: DatasetFormat::Movietweetings,
            files: "ratings.dat, movies.dat",
            names: &[("ratings", ".dat"), ("movies", ".dat")],
        },
        Self {
            format: DatasetFormat::Movielens100k,
            files: "u.data, u.item, u.user",
            names: &[("u", ".data"), ("u", ".item"), ("u", ".user")],
        },
        Self {
            format: DatasetFormat::Movielens25m,
            files: "ratings.csv, movies.csv",
            names: &[("ratings", ".csv"), ("movies", ".csv")],
        },
        Self {
            format: DatasetFormat::Bookcrossing,
            files: "BX-Book-Ratings.csv, BX-Books.csv, BX-Users.csv",
            names: &[("BX-Book-Ratings", ".csv"), ("BX-Books", ".csv"), ("BX-Users", ".csv")],
        },
        Self {
            format: DatasetFormat::Goodreads,
            files: "goodreads_interactions*.json, goodreads_books*.json",
            names: &[("goodreads_interactions*", ".json"), ("goodreads_books*", ".json")],
        },
        Self {
            format: DatasetFormat::Parquet,
            files: "*.parquet (files or directories), with data.columns in a config",
            names: &[("*", ".parquet")],
        },
        Self {
            format: DatasetFormat::Csv,
            files: "*.csv, with data.columns in a config",
            names: &[("*", ".csv")],
        },
    ];

    fn fits(&self, names: &[String]) -> bool {
        self.names.iter().all(|(start, end)| {
            names.iter().any(|name| {
                let name = name.strip_suffix(".gz").unwrap_or(name);
                match (name.strip_suffix(end), start.strip_suffix('*')) {
                    (Some(stem), Some(start)) => stem.starts_with(start),
                    (Some(stem), None) => stem == *start,
                    (None, _) => false,
                }
            })
        })
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
    if let Some(known) = Known::ALL.into_iter().find(|known| known.fits(&names)) {
        let may_be_10m = known.format == DatasetFormat::Movietweetings;
        let is_10m = may_be_10m && movielens_10m::has_half_stars(dir);
        return Ok(if is_10m { Known::MOVIELENS_10M } else { known });
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
    Err(StorageError::UnknownLayout { dir: dir.to_path_buf(), found, known: known.join("\n") })
}
