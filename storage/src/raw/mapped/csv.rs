//! Rows of a CSV file: RFC 4180 with any delimiter, in UTF-8 or latin-1, with or without a header.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use csv::{ByteRecord, Reader, ReaderBuilder};

use super::quotes::Quotes;
use super::{ColumnMapping, MAX_VALUE, Table, TextEncoding, Wanted, cell, no_column};
use crate::error::{RawProblem, Result, StorageError};
use crate::raw::source::{Place, open, unparsed};

/// A CSV file, row by row.
pub(super) struct CsvTable {
    path: PathBuf,
    reader: Reader<Bounded>,
    /// What is known of the bytes that were read.
    passed: Rc<Passed>,
    encoding: TextEncoding,
    columns: usize,
    wanted: Vec<Wanted>,
    /// Where each wanted column is.
    places: Vec<usize>,
    record: ByteRecord,
    /// Whether `record` is the first row already, because there is no header.
    pending: bool,
    values: Vec<String>,
    line: u64,
}

impl CsvTable {
    pub(super) fn open(path: &Path, columns: &ColumnMapping, wanted: Vec<Wanted>) -> Result<Self> {
        let (mut table, names) = Self::begin(path, columns)?;
        table.places = wanted
            .iter()
            .map(|w| {
                let place = names.iter().position(|name| *name == w.name);
                place.ok_or_else(|| {
                    let what = if columns.header { "its header" } else { "without a header it" };
                    no_column(path, w, what, &names)
                })
            })
            .collect::<Result<_>>()?;
        table.values = vec![String::new(); wanted.len()];
        table.wanted = wanted;
        Ok(table)
    }

    /// Opens a file and reads the names of its columns.
    fn begin(path: &Path, columns: &ColumnMapping) -> Result<(Self, Vec<String>)> {
        let quotes = RefCell::new(Quotes::new(columns.delimiter()?));
        let passed = Rc::new(Passed { left: Cell::new(0), quotes });
        let source = Bounded { source: open(path)?, passed: Rc::clone(&passed) };
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(columns.delimiter()?)
            .from_reader(source);
        let mut table = Self {
            path: path.to_path_buf(),
            reader,
            passed,
            encoding: columns.encoding,
            columns: 0,
            wanted: Vec::new(),
            places: Vec::new(),
            record: ByteRecord::new(),
            pending: !columns.header,
            values: Vec::new(),
            line: 0,
        };
        if !table.fill()? {
            return Err(StorageError::EmptyRawFile { path: table.path });
        }
        table.columns = table.record.len();
        let mut names = Vec::with_capacity(table.columns);
        for (i, bytes) in table.record.iter().enumerate() {
            let number = (i + 1).to_string();
            let name = match columns.header {
                true => decode(table.encoding, table.place(), &number, bytes)?,
                false => number.into(),
            };
            if names.contains(&name) {
                let problem = format!("two columns are called {name:?}; rename one of them");
                return Err(StorageError::table(path, problem));
            }
            names.push(name);
        }
        let names = names.into_iter().map(Cow::into_owned).collect();
        Ok((table, names))
    }

    /// Names of the columns of a file.
    pub(super) fn names(path: &Path, columns: &ColumnMapping) -> Result<Vec<String>> {
        Ok(Self::begin(path, columns)?.1)
    }

    /// Reads a record; false at the end of the file.
    fn fill(&mut self) -> Result<bool> {
        self.passed.left.set(MAX_ROW);
        let read = self.reader.read_byte_record(&mut self.record);
        // Before the record, the position is that of the one before.
        let begins = self.record.position().map_or(self.line + 1, csv::Position::line);
        let read = read.map_err(|e| {
            if self.passed.left.get() == 0 {
                let place = Place { path: &self.path, line: self.line + 1 };
                return place.error("line", RawProblem::TooLong { limit: MAX_ROW });
            }
            unparsed(&self.path, self.line, e)
        })?;
        if read {
            self.line = begins;
        }
        self.check_quotes(!read)?;
        Ok(read)
    }

    /// Refuses a stray quote, which makes rows part of a value. Bytes are read ahead of rows, so it may be
    /// behind this one.
    fn check_quotes(&self, is_end: bool) -> Result<()> {
        let quotes = self.passed.quotes.borrow();
        match quotes.stray().or_else(|| quotes.open().filter(|_| is_end)) {
            None => Ok(()),
            Some(line) => {
                let problem = format!(
                    "line {line}: a quote opens a value that goes on over the lines that follow; close it, or \
                     double it where it is a character of the value"
                );
                Err(StorageError::table(&self.path, problem))
            }
        }
    }
}

impl Table for CsvTable {
    fn advance(&mut self) -> Result<bool> {
        if self.pending {
            self.pending = false;
        } else if !self.fill()? {
            return Ok(false);
        }
        let found = self.record.len();
        if found != self.columns {
            let problem = if found == 1 && self.record.get(0) == Some(b"") {
                RawProblem::BlankLine
            } else {
                let layout = "the first line's";
                RawProblem::ColumnCount { expected: self.columns, found, layout }
            };
            return Err(self.place().error("line", problem));
        }
        let place = Place { path: &self.path, line: self.line };
        for ((value, at), wanted) in self.values.iter_mut().zip(&self.places).zip(&self.wanted) {
            let bytes = self.record.get(*at).unwrap_or_default();
            let text = decode(self.encoding, place, &wanted.name, bytes)?;
            value.clear();
            value.push_str(&text);
        }
        Ok(true)
    }

    fn value(&self, i: usize) -> &str {
        self.values.get(i).map_or("", String::as_str)
    }

    fn place(&self) -> Place<'_> {
        Place { path: &self.path, line: self.line }
    }

    fn wanted(&self) -> &[Wanted] {
        &self.wanted
    }
}

/// A value as text, or what is wrong with it.
fn decode<'a>(
    encoding: TextEncoding,
    place: Place<'_>,
    column: &str,
    bytes: &'a [u8],
) -> Result<Cow<'a, str>> {
    let text = match bytes.len() {
        ..=MAX_VALUE => encoding.decode(bytes),
        _ => Err(RawProblem::TooLong { limit: MAX_VALUE }),
    };
    text.map_err(|problem| cell(place, column, problem))
}

/// A row of more bytes is none: a quote that is never closed would fill the memory.
const MAX_ROW: usize = 16 << 20;

/// What a reader and the one that it feeds both know.
struct Passed {
    /// Bytes that may still be read for this row.
    left: Cell<usize>,
    quotes: RefCell<Quotes>,
}

/// A reader that gives at most so many bytes, and looks at their quotes.
struct Bounded {
    source: Box<dyn BufRead>,
    passed: Rc<Passed>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.passed.left.get();
        if left == 0 {
            return Err(io::Error::other("too long"));
        }
        let len = buffer.len().min(left);
        let read = self.source.read(buffer.get_mut(..len).unwrap_or_default())?;
        self.passed.left.set(left - read);
        self.passed.quotes.borrow_mut().read(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
