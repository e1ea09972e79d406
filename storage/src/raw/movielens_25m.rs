//! MovieLens-25M (and the other releases with its layout): `movies.csv` and `ratings.csv` with
//! headers, UTF-8, ratings 0.5..5 in half stars.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

use csv::{ByteRecord, Reader, ReaderBuilder};

use super::chunks::{Chunk, Chunks};
use super::faults::Faults;
use super::source::{Place, exactly, locate, open, unparsed};
use super::tables::{EntityBuilder, FILM_TEXTS, Part, RatingBuilder, film, half_stars};
use super::{RawTables, Reading};
use crate::error::{RawProblem, Result, StorageError};
use crate::spill::Spill;

const MOVIES: &str = "movieId,title,genres";
const RATINGS: &str = "userId,movieId,rating,timestamp";
/// Largest part of the file that a thread reads at a time, in bytes.
const MAX_CHUNK: usize = 4 << 20;

pub(super) fn read(dir: &Path, how: Reading<'_>) -> Result<RawTables> {
    let path = locate(dir, "movies.csv")?;
    let mut movies = Rows::with_header(&path, open(&path)?, MOVIES)?;
    let mut items = EntityBuilder::table("item", [&["title", "genre"], &FILM_TEXTS], &path, how);
    let mut faults = Faults::default();
    faults.rows(|| {
        let Some((line, [key, title, genres])) = movies.next()? else { return Ok(false) };
        let (genre, texts) = film(title, genres);
        items.add(Place { path: &path, line }, key, [title, genre], texts)?;
        Ok(true)
    })?;
    faults.check()?;

    let path = locate(dir, "ratings.csv")?;
    let users = EntityBuilder::open_ended("user");
    let mut ratings = RatingBuilder::new(&path, users, items, half_stars(), how);
    let read = read_ratings(&path, &mut ratings, &mut faults, how.spill);
    faults.ended(read)?;
    ratings.finish(faults, &[])
}

/// Reads `ratings.csv` with all threads, for as long as a line is a row: the first chunk that
/// has a quote, within which a line may end, and all after it are left to the CSV parser.
fn read_ratings(
    path: &Path,
    ratings: &mut RatingBuilder,
    faults: &mut Faults,
    spill: &Spill,
) -> Result<()> {
    // A chunk and what was read of it take about three times the chunk's size.
    let size = spill.rows(2, 3 * spill.threads()).clamp(1 << 12, MAX_CHUNK);
    let mut chunks = Chunks::open(path, size)?;
    let Some(header) = chunks.header()? else {
        return Err(StorageError::EmptyRawFile { path: path.to_path_buf() });
    };
    if header.trim_ascii_end() != RATINGS.as_bytes() {
        let (rest, failed) = chunks.into_rest();
        let mut rows = Rows::with_header(path, io::Cursor::new(header).chain(rest), RATINGS)?;
        read_rows(&mut rows, ratings, faults)?;
        return failed.map_or(Ok(()), Err);
    }
    loop {
        let (mut batch, mut quoted, mut ended) = (Vec::new(), None, None);
        while batch.len() < spill.threads() && quoted.is_none() && ended.is_none() {
            match chunks.next() {
                Ok(Some(chunk)) if needs_parser(&chunk.bytes) => quoted = Some(chunk),
                Ok(Some(chunk)) => batch.push(chunk),
                other => ended = Some(other.map(|_| ())),
            }
        }
        for part in read_batch(path, ratings, &batch) {
            ratings.add_part(part, faults)?;
        }
        if let Some(end) = ended {
            return end;
        }
        if let Some(Chunk { line, bytes }) = quoted {
            let (rest, failed) = chunks.into_rest();
            let mut rows = Rows::new(path, io::Cursor::new(bytes).chain(rest), RATINGS, line);
            read_rows(&mut rows, ratings, faults)?;
            return failed.map_or(Ok(()), Err);
        }
    }
}

/// Whether lines may not be rows: quotes, or carriage returns that end a line by themselves.
fn needs_parser(bytes: &[u8]) -> bool {
    let lone = |pair: &[u8]| matches!(pair, [b'\r', next] if *next != b'\n');
    bytes.contains(&b'"') || bytes.contains(&b'\r') && bytes.windows(2).any(lone)
}

/// Reads chunks, each by a thread of its own. The parts are in the order of the chunks.
fn read_batch(path: &Path, ratings: &RatingBuilder, batch: &[Chunk]) -> Vec<Part> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            batch.iter().map(|chunk| scope.spawn(|| read_chunk(path, ratings, chunk))).collect();
        let join = |thread: ScopedJoinHandle<'_, Part>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

fn read_chunk(path: &Path, ratings: &RatingBuilder, chunk: &Chunk) -> Part {
    let mut part = Part::new();
    for (line, text) in (chunk.line..).zip(chunk.bytes.split(|b| *b == b'\n')) {
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        // As the CSV parser does, blank lines are passed over.
        if text.is_empty() {
            continue;
        }
        // Without quotes a comma ends a column.
        let row = as_text(Place { path, line }, text.split(|b| *b == b','), RATINGS);
        part.add(ratings, line, row);
    }
    part
}

/// Columns as text, if there are `N` of them.
fn as_text<'a, const N: usize>(
    place: Place<'_>,
    columns: impl Iterator<Item = &'a [u8]>,
    layout: &'static str,
) -> Result<[&'a str; N]> {
    let columns: [&[u8]; N] = exactly(place, columns, layout)?;
    let mut row = [""; N];
    for (column, bytes) in row.iter_mut().zip(columns) {
        *column = std::str::from_utf8(bytes)
            .map_err(|e| place.error("line", RawProblem::NotUtf8 { position: e.valid_up_to() }))?;
    }
    Ok(row)
}

fn read_rows<R: BufRead>(
    rows: &mut Rows<R>,
    ratings: &mut RatingBuilder,
    faults: &mut Faults,
) -> Result<()> {
    faults.rows(|| {
        let Some((line, row)) = rows.next()? else { return Ok(false) };
        ratings.add(line, row)?;
        Ok(true)
    })
}

/// The rows of a CSV file.
struct Rows<R> {
    path: PathBuf,
    reader: Reader<R>,
    layout: &'static str,
    record: ByteRecord,
    /// Number of the first line that the reader sees.
    first: u64,
}

impl<R: BufRead> Rows<R> {
    fn new(path: &Path, source: R, layout: &'static str, first: u64) -> Self {
        let reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(source);
        Self { path: path.to_path_buf(), reader, layout, record: ByteRecord::new(), first }
    }

    /// A file from its start, which must be this header.
    fn with_header(path: &Path, source: R, layout: &'static str) -> Result<Self> {
        let mut rows = Self::new(path, source, layout, 1);
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
        let line = self.line();
        let place = Place { path: &self.path, line };
        Ok(Some((line, as_text(place, self.record.iter(), self.layout)?)))
    }

    fn line(&self) -> u64 {
        self.record.position().map_or(0, |position| position.line() + self.first - 1)
    }

    fn advance(&mut self) -> Result<bool> {
        let line = self.line();
        let read = self.reader.read_byte_record(&mut self.record);
        read.map_err(|error| unparsed(&self.path, line, error))
    }
}
