//! MovieLens-25M (and the other releases with its layout): `movies.csv` and `ratings.csv` with
//! headers, UTF-8, ratings 0.5..5 in half stars.

use std::path::{Path, PathBuf};

use csv::{ByteRecord, ErrorKind, Reader, ReaderBuilder};

use super::RawTables;
use super::source::{Place, damaged, locate, open};
use super::tables::{EntityBuilder, RatingBuilder, film};
use crate::error::{RawProblem, Result, StorageError};

pub(super) fn read(dir: &Path) -> Result<RawTables> {
    let mut movies = Rows::open(dir, "movies.csv", "movieId,title,genres")?;
    let path = movies.path.clone();
    let texts = ["title", "genres", "year"];
    let mut items = EntityBuilder::table("item", &["title", "genre"], &texts, &path);
    while let Some((line, [key, title, genres])) = movies.next()? {
        let (genre, texts) = film(title, genres);
        items.add(Place { path: &path, line }, key, [title, genre], texts)?;
    }

    let mut rows = Rows::open(dir, "ratings.csv", "userId,movieId,rating,timestamp")?;
    let users = EntityBuilder::open_ended("user");
    let levels = (1..=10).map(|half| half as f32 / 2.0).collect();
    let mut ratings = RatingBuilder::new(&rows.path, users, items, levels);
    while let Some((line, row)) = rows.next()? {
        ratings.add(line, row)?;
    }
    ratings.finish()
}

/// The rows of a CSV file with a header.
struct Rows {
    path: PathBuf,
    reader: Reader<Box<dyn std::io::BufRead>>,
    layout: &'static str,
    record: ByteRecord,
}

impl Rows {
    fn open(dir: &Path, name: &'static str, layout: &'static str) -> Result<Self> {
        let path = locate(dir, name)?;
        let source = open(&path)?;
        let reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(source);
        let mut rows = Self { path, reader, layout, record: ByteRecord::new() };
        if !rows.advance()? {
            return Err(StorageError::EmptyRawFile { path: rows.path });
        }
        let header: Vec<_> = rows.record.iter().map(String::from_utf8_lossy).collect();
        let found = header.join(",");
        if found != layout {
            let problem = RawProblem::Header { expected: layout, found };
            return Err(Place { path: &rows.path, line: 1 }.error("header", problem));
        }
        Ok(rows)
    }

    /// The next row with its line number, as exactly `N` columns.
    fn next<const N: usize>(&mut self) -> Result<Option<(u64, [&str; N])>> {
        if !self.advance()? {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, csv::Position::line);
        let place = Place { path: &self.path, line };
        let found = self.record.len();
        if found != N {
            let problem = RawProblem::ColumnCount { expected: N, found, layout: self.layout };
            return Err(place.error("line", problem));
        }
        let mut row = [""; N];
        for (column, bytes) in row.iter_mut().zip(self.record.iter()) {
            *column = std::str::from_utf8(bytes).map_err(|e| {
                place.error("line", RawProblem::NotUtf8 { position: e.valid_up_to() })
            })?;
        }
        Ok(Some((line, row)))
    }

    fn advance(&mut self) -> Result<bool> {
        let line = self.record.position().map_or(0, csv::Position::line);
        self.reader.read_byte_record(&mut self.record).map_err(|e| {
            let text = e.to_string();
            let source = match e.into_kind() {
                ErrorKind::Io(source) => source,
                _ => std::io::Error::other(text),
            };
            damaged(&self.path, line, source)
        })
    }
}
