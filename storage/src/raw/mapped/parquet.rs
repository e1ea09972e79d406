//! Rows of a Parquet table: a file, or a directory as Spark writes it.
//!
//! Of a directory every `*.parquet` file is read, in the order of their paths; what begins with `_` or `.`
//! (`_SUCCESS`, checksums) is not. Directories called `key=value` are columns. Only wanted columns are
//! decoded, a few thousand rows at a time.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parquet::column::reader::{ColumnReader, get_column_reader};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::column::Column;
use super::decode::{self, guarded, read_batch};
use super::pages::Pages;
use super::shape::{Shape, type_name};
use super::{MAX_VALUE, Table, Wanted, cell, footer, no_column};
use crate::error::{RawProblem, Result, StorageError};
use crate::raw::container::{HEAD, not_parquet};
use crate::raw::source::{Place, is_directory};

/// Rows decoded at a time.
const BATCH: usize = 4096;
/// Directories below each other.
const MAX_DEPTH: usize = 16;
/// Spark's name for null in a directory's name.
const NULL_PARTITION: &str = "__HIVE_DEFAULT_PARTITION__";

/// A file of a table, with the columns that its directories are.
pub(super) struct Part {
    pub(super) path: PathBuf,
    partition: Vec<(String, String)>,
}

/// The files of a table, in the order of their paths.
pub(super) fn parts(path: &Path) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    if path.is_file() {
        parts.push(Part { path: path.to_path_buf(), partition: Vec::new() });
        return Ok(parts);
    }
    walk(path, &[], &mut parts)?;
    if parts.is_empty() {
        return Err(StorageError::table(path, "the directory holds no *.parquet file"));
    }
    Ok(parts)
}

fn walk(dir: &Path, partition: &[(String, String)], parts: &mut Vec<Part>) -> Result<()> {
    if partition.len() > MAX_DEPTH {
        return Err(StorageError::table(
            dir,
            format!("more than {MAX_DEPTH} directories below each other"),
        ));
    }
    let failed = |e| StorageError::io("read", dir, e);
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| entry.map(|e| e.path()).map_err(failed))
        .collect::<Result<_>>()?;
    entries.sort();
    for path in entries {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(StorageError::table(&path, "the name is not UTF-8"));
        };
        if name.starts_with(['_', '.']) {
            continue;
        }
        if path.is_dir() {
            let Some((key, value)) = name.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                let problem = "a directory inside a table must be called key=value; move it away";
                return Err(StorageError::table(&path, problem));
            };
            let value = if value == NULL_PARTITION { String::new() } else { unescape(value) };
            let mut inner = partition.to_vec();
            inner.push((unescape(key), value));
            walk(&path, &inner, parts)?;
        } else if name.ends_with(".parquet") {
            parts.push(Part { path, partition: partition.to_vec() });
        } else if name.ends_with(".csv") || name.ends_with(".csv.gz") {
            return Err(is_directory(dir));
        } else {
            return Err(StorageError::table(
                &path,
                "not a *.parquet file, inside a Parquet table; move it away",
            ));
        }
    }
    Ok(())
}

/// `%3A` as `:`; Spark writes so what may not be in a file's name.
fn unescape(text: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map_or_else(|_| text.to_owned(), Cow::into_owned)
}

/// Where a wanted column of a part comes from.
enum Origin {
    /// A column of the file.
    Column(usize, Shape),
    /// A directory's name.
    Constant(String),
}

/// A part that is being read.
struct Open {
    file: File,
    size: u64,
    metadata: ParquetMetaData,
    origins: Vec<Origin>,
    /// The next row group.
    group: usize,
    /// Readers of the columns in this row group.
    readers: Vec<Option<ColumnReader>>,
    /// Rows of this row group that are not decoded yet.
    left: usize,
}

/// A table, row by row.
#[derive(Default)]
pub(super) struct ParquetTable {
    root: PathBuf,
    parts: Vec<Part>,
    /// The next part.
    next: usize,
    open: Option<Open>,
    wanted: Vec<Wanted>,
    /// Decoded rows, column by column.
    batch: Vec<Vec<String>>,
    batch_len: usize,
    /// The current row in the batch; one past it before the first row.
    at: usize,
    /// Row of the part, from 1.
    row: u64,
    /// Rows of all parts so far.
    all: u64,
}

impl ParquetTable {
    pub(super) fn open(path: &Path, wanted: Vec<Wanted>) -> Result<Self> {
        let parts = parts(path)?;
        let batch = vec![Vec::new(); wanted.len()];
        let root = path.to_path_buf();
        let mut table = Self { root, parts, wanted, batch, ..Self::default() };
        // The columns of the first part are looked up now, so that a wrong name shows at once.
        table.open_next()?;
        Ok(table)
    }

    /// Opens the next part; false after the last.
    fn open_next(&mut self) -> Result<bool> {
        self.open = None;
        let Some(part) = self.parts.get(self.next) else { return Ok(false) };
        self.open = Some(Open::new(part, &self.wanted)?);
        self.next += 1;
        self.row = 0;
        Ok(true)
    }

    /// Decodes the next rows; false at the end of the last part.
    fn fill(&mut self) -> Result<bool> {
        (self.at, self.batch_len) = (0, 0);
        loop {
            let path = self.place().path.to_path_buf();
            let Some(open) = &mut self.open else { return Ok(false) };
            let damaged = |e: &dyn std::fmt::Display| damaged(&path, e);
            if open.left == 0 {
                let begun = guarded(|| open.begin_group()).map_err(|e| damaged(&e))?;
                if !begun && !self.open_next()? {
                    return Ok(false);
                }
                continue;
            }
            let rows = open.left.min(BATCH);
            open.left -= rows;
            for (i, (reader, batch)) in open.readers.iter_mut().zip(&mut self.batch).enumerate() {
                let (Some(reader), Some(Origin::Column(_, shape))) = (reader, open.origins.get(i))
                else {
                    continue;
                };
                batch.clear();
                let found =
                    guarded(|| read_batch(reader, *shape, rows, batch)).map_err(|e| damaged(&e))?;
                if found != rows {
                    let what = format!("a column ends after {found} of {rows} rows");
                    return Err(damaged(&what));
                }
                if let Some(long) = batch.iter().position(|value| value.len() > MAX_VALUE) {
                    let line = self.row + long as u64 + 1;
                    let name = self.wanted.get(i).map_or("", |w| &w.name);
                    let problem = RawProblem::TooLong { limit: MAX_VALUE };
                    return Err(cell(Place { path: &path, line }, name, problem));
                }
            }
            self.batch_len = rows;
            return Ok(true);
        }
    }
}

impl Table for ParquetTable {
    fn advance(&mut self) -> Result<bool> {
        self.at += 1;
        while self.at >= self.batch_len {
            if !self.fill()? {
                return if self.all > 0 {
                    Ok(false)
                } else {
                    Err(StorageError::EmptyRawFile { path: self.root.clone() })
                };
            }
        }
        self.all += 1;
        self.row += 1;
        Ok(true)
    }

    fn value(&self, i: usize) -> &str {
        let constant = self.open.as_ref().and_then(|open| match open.origins.get(i) {
            Some(Origin::Constant(value)) => Some(value.as_str()),
            _ => None,
        });
        let column = || self.batch.get(i).and_then(|column| column.get(self.at));
        constant.or_else(|| column().map(String::as_str)).unwrap_or_default()
    }

    fn is_time(&self, i: usize) -> bool {
        let origin = self.open.as_ref().and_then(|open| open.origins.get(i));
        matches!(origin, Some(Origin::Column(_, shape)) if shape.is_time())
    }

    fn place(&self) -> Place<'_> {
        let part = self.parts.get(self.next.saturating_sub(1));
        Place { path: part.map_or(&self.root, |part| &part.path), line: self.row }
    }

    // Rows of a directory are counted over all its files.
    fn line(&self) -> u64 {
        self.all
    }

    fn wanted(&self) -> &[Wanted] {
        &self.wanted
    }
}

fn damaged(path: &Path, problem: &dyn std::fmt::Display) -> StorageError {
    let text = problem.to_string();
    let advice = if text.contains(decode::TOO_MUCH) {
        "; leave columns of such long values out"
    } else {
        "; the file is truncated or damaged, or no Parquet file: write it again"
    };
    StorageError::table(path, format!("{text}{advice}"))
}

impl Open {
    fn new(part: &Part, wanted: &[Wanted]) -> Result<Self> {
        let path = &part.path;
        let file = File::open(path).map_err(|e| StorageError::io("open", path, e))?;
        let size = file.metadata().map_err(|e| StorageError::io("read", path, e))?.len();
        let mut head = [0; HEAD];
        let head = head.get_mut(..HEAD.min(size as usize)).unwrap_or_default();
        file.read_exact_at(head, 0).map_err(|e| StorageError::io("read", path, e))?;
        if let Some(error) = not_parquet(path, head) {
            return Err(error);
        }
        let footer = footer::read(&file, size).map_err(|what| damaged(path, &what))?;
        let metadata = guarded(|| ParquetMetaDataReader::decode_metadata(&footer));
        let metadata = metadata.map_err(|e| damaged(path, &e))?;
        let origins: Vec<_> =
            wanted.iter().map(|w| origin(part, &metadata, w)).collect::<Result<_>>()?;
        // Without one, nothing bounds the number of rows that the file claims.
        if !origins.is_empty() && origins.iter().all(|o| matches!(o, Origin::Constant(_))) {
            return Err(StorageError::table(
                path,
                "every column of data.columns is a directory's name",
            ));
        }
        Ok(Self { file, size, metadata, origins, group: 0, readers: Vec::new(), left: 0 })
    }

    /// Opens the columns of the next row group; false after the last.
    fn begin_group(&mut self) -> parquet::errors::Result<bool> {
        let Some(group) = self.metadata.row_groups().get(self.group) else { return Ok(false) };
        let rows = group.num_rows();
        self.left = usize::try_from(rows)
            .map_err(|_| ParquetError::General(format!("a row group of {rows} rows")))?;
        self.readers.clear();
        for origin in &self.origins {
            let Origin::Column(i, _) = origin else {
                self.readers.push(None);
                continue;
            };
            let column = group.column(*i);
            let name =
                format!("column {:?} of row group {}", column.column_path().string(), self.group);
            let pages = Pages::of(&self.file, self.size, column, name)?;
            self.readers.push(Some(get_column_reader(column.column_descr_ptr(), Box::new(pages))));
        }
        self.group += 1;
        Ok(true)
    }
}

fn origin(part: &Part, metadata: &ParquetMetaData, wanted: &Wanted) -> Result<Origin> {
    let schema = metadata.file_metadata().schema_descr();
    let leaf = schema.columns().iter().position(|c| c.path().parts().first() == Some(&wanted.name));
    if let Some(leaf) = leaf {
        return match Shape::of(schema, leaf, wanted.setting != "timestamp") {
            Ok(shape) => Ok(Origin::Column(leaf, shape)),
            Err(kind) => Err(StorageError::table(
                &part.path,
                format!(
                    "the column {:?} (data.columns.{}) is of type {kind}, which can't be read; \
                     write it as text, a number, a timestamp or a list of them",
                    wanted.name, wanted.setting
                ),
            )),
        };
    }
    if let Some((_, value)) = part.partition.iter().find(|(key, _)| *key == wanted.name) {
        return Ok(Origin::Constant(value.clone()));
    }
    let names = columns(part, metadata).into_iter().map(|column| column.name);
    Err(no_column(&part.path, wanted, "the file", names))
}

/// The columns of a part, those of its directories included.
fn columns(part: &Part, metadata: &ParquetMetaData) -> Vec<Column> {
    let schema = metadata.file_metadata().schema_descr();
    let mut all: Vec<Column> = Vec::new();
    for (leaf, column) in schema.columns().iter().enumerate() {
        let name = column.path().parts().first().cloned().unwrap_or_default();
        if all.last().is_none_or(|last| last.name != name) {
            let readable = Shape::of(schema, leaf, true).is_ok();
            all.push(Column { name, kind: type_name(schema, leaf), readable, values: Vec::new() });
        }
    }
    all.extend(part.partition.iter().map(|(key, value)| Column {
        name: key.clone(),
        kind: "name of a directory".into(),
        readable: true,
        values: vec![value.clone()],
    }));
    all
}

/// The columns of a table, by its first file.
pub(super) fn all_columns(path: &Path) -> Result<Vec<Column>> {
    let parts = parts(path)?;
    let Some(part) = parts.first() else { return Ok(Vec::new()) };
    Ok(columns(part, &Open::new(part, &[])?.metadata))
}
