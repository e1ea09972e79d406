//! Files as lines of text: decompression, encodings, byte order marks, line ends, line numbers.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::container::{GZIP, HEAD, foreign};
use super::faults::Faults;
use super::mapped::TextEncoding;
use crate::error::{RawProblem, Result, StorageError};

/// No line of a real file comes near; a file without line ends must not fill the memory.
pub(super) const MAX_LINE: usize = 1 << 20;
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Ends of the names of compressed files that are not read.
const OTHERS: [&str; 7] = ["bz2", "xz", "zst", "zip", "7z", "lz4", "rar"];

/// The file `name` in `dir`, plain or as `.gz`.
pub(super) fn locate(dir: &Path, name: &str) -> Result<PathBuf> {
    let compressed = format!("{name}.gz");
    for candidate in [dir.join(name), dir.join(compressed)] {
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    let path = dir.join(name);
    if path.is_dir() {
        return Err(is_directory(&path));
    }
    let others = OTHERS.iter().map(|end| dir.join(format!("{name}.{end}")));
    for other in others.filter(|other| other.is_file()) {
        // What its bytes are, the error says.
        open(&other)?;
    }
    Err(StorageError::MissingRawFile { dir: dir.to_path_buf(), name: name.to_owned() })
}

/// What is said of a directory where a file of text is meant, as Spark leaves one.
pub(super) fn is_directory(path: &Path) -> StorageError {
    let at = path.display();
    let problem = format!(
        "is a directory, where one file is meant; join its parts, for instance, where each has the header: \
         awk 'FNR > 1 || NR == 1' {at}/part-* > {at}.one"
    );
    StorageError::table(path, problem)
}

/// Refuses a file where the directory of the raw files is meant.
pub(super) fn check_directory(dir: &Path) -> Result<()> {
    if !dir.is_file() {
        return Ok(());
    }
    Err(StorageError::table(dir, "is a file; data.path must be the directory that it is in"))
}

/// The first bytes of what `source` gives, and an error that came after them.
fn head(source: &mut impl Read) -> (Vec<u8>, Option<io::Error>) {
    let mut head = Vec::with_capacity(HEAD);
    // A reader may deliver less than asked for.
    let failed = source.take(HEAD as u64).read_to_end(&mut head).err();
    (head, failed)
}

/// Opens a file behind its byte order mark, decompressed where it is gzip.
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    if path.is_dir() {
        return Err(is_directory(path));
    }
    let mut file = File::open(path).map_err(|e| StorageError::io("open", path, e))?;
    let (start, failed) = head(&mut file);
    if let Some(error) = failed {
        return Err(StorageError::io("read", path, error));
    }
    if let Some(error) = foreign(path, &start) {
        return Err(error);
    }
    let is_gzip = start.starts_with(GZIP) || path.extension().is_some_and(|e| e == "gz");
    let file = io::Cursor::new(start).chain(file);
    let source: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(BufReader::new(file))) } else { Box::new(file) };
    let mut source = BufReader::with_capacity(1 << 18, source);
    let (mut start, failed) = head(&mut source);
    if let Some(error) = foreign(path, &start).filter(|_| is_gzip) {
        return Err(error);
    }
    if start.starts_with(&BOM) {
        start.drain(..BOM.len());
    }
    Ok(Box::new(BufReader::new(io::Cursor::new(start).chain(Failed(failed)).chain(source))))
}

/// An error at its place in a stream.
struct Failed(Option<io::Error>);

impl Read for Failed {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

/// Whether a file can be read and has something in it.
pub(super) fn look(path: &Path) -> Result<()> {
    let mut source = open(path)?;
    match source.fill_buf() {
        Ok([]) => Err(StorageError::EmptyRawFile { path: path.to_path_buf() }),
        Ok(_) => Ok(()),
        Err(e) => Err(damaged(path, 0, e)),
    }
}

/// What a parser of CSV says of a file that it has read up to a line.
pub(super) fn unparsed(path: &Path, line: u64, error: csv::Error) -> StorageError {
    let text = error.to_string();
    let source = match error.into_kind() {
        csv::ErrorKind::Io(source) => source,
        _ => io::Error::other(text),
    };
    damaged(path, line, source)
}

/// A file that ends too early or cannot be decompressed.
pub(super) fn damaged(path: &Path, line: u64, source: io::Error) -> StorageError {
    StorageError::DamagedRawFile { path: path.to_path_buf(), line, source }
}

/// A file, line by line.
pub(super) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    encoding: TextEncoding,
    line: u64,
    bytes: Vec<u8>,
    /// Whether `bytes` is the next line already.
    ahead: bool,
}

impl Lines {
    /// Opens the file `name` in `dir`.
    pub(super) fn open(dir: &Path, name: &str, encoding: TextEncoding) -> Result<Self> {
        Self::open_path(locate(dir, name)?, encoding)
    }

    /// Opens a file.
    pub(super) fn open_path(path: PathBuf, encoding: TextEncoding) -> Result<Self> {
        let reader = open(&path)?;
        Ok(Self { path, reader, encoding, line: 0, bytes: Vec::new(), ahead: false })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next line with its number, without line end. Blank lines may only end the file.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Cow<'_, str>)>> {
        if !std::mem::take(&mut self.ahead) && !self.fill()? {
            return if self.line == 0 {
                Err(StorageError::EmptyRawFile { path: self.path.clone() })
            } else {
                Ok(None)
            };
        }
        if self.bytes.is_empty() {
            let blank = self.line;
            while self.fill()? {
                if !self.bytes.is_empty() {
                    self.ahead = true;
                    return Err(self.problem(blank, RawProblem::BlankLine));
                }
            }
            if blank == 1 {
                return Err(StorageError::EmptyRawFile { path: self.path.clone() });
            }
            return Ok(None);
        }
        let text = self.encoding.decode(&self.bytes);
        Ok(Some((self.line, text.map_err(|problem| self.problem(self.line, problem))?)))
    }

    /// Reads one line into `bytes`; false at the end of the file.
    fn fill(&mut self) -> Result<bool> {
        self.bytes.clear();
        let mut limited = (&mut self.reader).take(MAX_LINE as u64 + 1);
        let read = limited.read_until(b'\n', &mut self.bytes);
        if read.map_err(|e| damaged(&self.path, self.line, e))? == 0 {
            return Ok(false);
        }
        self.line += 1;
        if self.bytes.len() > MAX_LINE {
            return Err(self.problem(self.line, RawProblem::LineTooLong { limit: MAX_LINE }));
        }
        if self.bytes.last() == Some(&b'\n') {
            self.bytes.pop();
        }
        if self.bytes.last() == Some(&b'\r') {
            self.bytes.pop();
        }
        Ok(true)
    }

    /// Hands every line to `row`, with its place. Returns those that can't be used.
    pub(super) fn each(
        mut self,
        mut row: impl FnMut(Place<'_>, &str) -> Result<()>,
    ) -> Result<Faults> {
        let path = self.path.clone();
        let mut faults = Faults::default();
        faults.rows(|| {
            let Some((line, text)) = self.next()? else { return Ok(false) };
            row(Place { path: &path, line }, &text).map(|()| true)
        })?;
        Ok(faults)
    }

    fn problem(&self, line: u64, problem: RawProblem) -> StorageError {
        Place { path: &self.path, line }.error("line", problem)
    }
}

/// Splits a line into exactly `N` columns.
pub(super) fn columns<'a, const N: usize>(
    place: Place<'_>,
    text: &'a str,
    separator: &str,
    layout: &'static str,
) -> Result<[&'a str; N]> {
    exactly(place, text.split(separator), layout)
}

/// The columns of a line, of which there must be `N`.
pub(super) fn exactly<T: Copy + Default, const N: usize>(
    place: Place<'_>,
    columns: impl Iterator<Item = T>,
    layout: &'static str,
) -> Result<[T; N]> {
    let (mut all, mut found) = ([T::default(); N], 0);
    for column in columns {
        if let Some(place) = all.get_mut(found) {
            *place = column;
        }
        found += 1;
    }
    if found == N { Ok(all) } else { Err(place.column_count(N, found, layout)) }
}

/// A line of a file, for errors.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) path: &'a Path,
    pub(super) line: u64,
}

impl Place<'_> {
    pub(super) fn error(self, field: &'static str, problem: RawProblem) -> StorageError {
        StorageError::Raw { path: self.path.to_path_buf(), line: self.line, field, problem }
    }

    pub(super) fn column_count(
        self,
        expected: usize,
        found: usize,
        layout: &'static str,
    ) -> StorageError {
        self.error("line", RawProblem::ColumnCount { expected, found, layout })
    }
}
