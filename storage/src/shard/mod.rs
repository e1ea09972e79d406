//! Shards: columnar files, mapped and handed out as slices.
//!
//! ```text
//! magic "RCLSHARD" | version u32 | header length u32 | header | zeros up to a multiple of 64
//! column 0 | zeros up to a multiple of 64 | column 1 | ...
//! trailer: XXH3 of all before column 0 | XXH3 per column with its zeros | XXH3 of the trailer so far
//!          | file length u64 | end magic "DRAHSLCR"
//! ```
//!
//! All numbers are little-endian; each column starts at a multiple of 64 bytes. The layout has no
//! freedom: the header's offsets must be the ones the writer would choose, so gaps, overlaps and
//! columns outside the file cannot be expressed. Opening checks everything but the columns' own
//! hashes, which [`Shard::verify`] checks: together they refuse any changed byte.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytemuck::{Pod, cast_slice};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::atomic::write_atomic;
use crate::codec;
use crate::error::{Result, StorageError};
use crate::hash::xxh3_hex;
use crate::mmap::{Access, Mapped, Pattern};

mod handle;
mod parse;

pub(crate) use handle::Handle;
use parse::parse;
pub(crate) use parse::parse_file;

/// Version of the shard format.
pub const SHARD_VERSION: u32 = 1;
/// Largest header in bytes: that of some thousand columns.
pub const MAX_HEADER: usize = 64 << 10;

/// Every column begins at a multiple of so many bytes.
const ALIGNMENT: usize = 64;
/// How a shard begins.
pub(crate) const MAGIC: [u8; 8] = *b"RCLSHARD";
const END_MAGIC: [u8; 8] = *b"DRAHSLCR";
/// Magic, version and header length.
const PREFIX: usize = 16;

/// A column to be written.
#[derive(Clone, Copy, Debug)]
pub enum Column<'a> {
    /// Bytes.
    U8(&'a [u8]),
    /// 16-bit numbers, or the bits of `f16` values.
    U16(&'a [u16]),
    /// 32-bit numbers.
    U32(&'a [u32]),
    /// 64-bit numbers.
    U64(&'a [u64]),
    /// Signed 64-bit numbers.
    I64(&'a [i64]),
    /// 32-bit floats.
    F32(&'a [f32]),
    /// Numbers that are not in memory together.
    Pieces(&'a dyn Pieces),
}

/// A column that is handed over piece by piece.
pub trait Pieces: std::fmt::Debug {
    /// An empty column of the elements' type.
    fn dtype(&self) -> Column<'static>;
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Hands all rows to `write`, in order, as columns of that type.
    ///
    /// # Errors
    /// That of `write`, or a piece can't be read.
    fn write(&self, write: &mut dyn FnMut(Column<'_>) -> io::Result<()>) -> io::Result<()>;
}

impl Column<'_> {
    /// Type and bytes; of pieces none.
    fn plain(&self) -> (DType, &[u8]) {
        match *self {
            Column::U8(v) => (DType::U8, v),
            Column::U16(v) => (DType::U16, cast_slice(v)),
            Column::U32(v) => (DType::U32, cast_slice(v)),
            Column::U64(v) => (DType::U64, cast_slice(v)),
            Column::I64(v) => (DType::I64, cast_slice(v)),
            Column::F32(v) => (DType::F32, cast_slice(v)),
            Column::Pieces(pieces) => (pieces.dtype().plain().0, &[]),
        }
    }

    fn shape(&self) -> (DType, usize) {
        let (dtype, bytes) = self.plain();
        match self {
            Column::Pieces(pieces) => (dtype, pieces.rows()),
            _ => (dtype, bytes.len() / dtype.size() as usize),
        }
    }

    /// Hands the column's bytes to `write`.
    fn write(&self, write: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Column::Pieces(pieces) => pieces.write(&mut |piece| piece.write(write)),
            _ => write(self.plain().1),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DType {
    U8,
    U16,
    U32,
    U64,
    I64,
    F32,
}

impl DType {
    /// Bytes of a value, and the name of the type in errors.
    fn describe(self) -> (u64, &'static str) {
        match self {
            Self::U8 => (1, "u8"),
            Self::U16 => (2, "u16"),
            Self::U32 => (4, "u32"),
            Self::U64 => (8, "u64"),
            Self::I64 => (8, "i64"),
            Self::F32 => (4, "f32"),
        }
    }

    fn size(self) -> u64 {
        self.describe().0
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    kind: String,
    pub(crate) columns: Vec<ColumnHeader>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ColumnHeader {
    pub(crate) name: String,
    dtype: DType,
    offset: u64,
    rows: u64,
}

impl ColumnHeader {
    /// First byte after the column, without its padding; `None` on overflow.
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.rows.checked_mul(self.dtype.size())?)
    }

    /// Where the column is, with its padding.
    pub(crate) fn padded(&self) -> Option<Range<u64>> {
        Some(self.offset..align(self.end()?)?)
    }
}

fn align(offset: u64) -> Option<u64> {
    offset.checked_next_multiple_of(ALIGNMENT as u64)
}

/// Writes a shard atomically. `kind` says what it holds; opening asks for the same.
///
/// # Errors
/// Two columns of one name, a header over [`MAX_HEADER`], or any failure to write.
pub fn write_shard(path: &Path, kind: &str, columns: &[(&str, Column<'_>)]) -> Result<()> {
    let prefix = encode_prefix(kind, columns).map_err(|p| StorageError::bad_input(path, p))?;
    let mut trailer = xxh3_64(&prefix).to_le_bytes().to_vec();
    let mut length = prefix.len() as u64;
    write_atomic(path, |w| {
        w.write_all(&prefix)?;
        for (name, column) in columns {
            let (dtype, rows) = column.shape();
            let (mut hasher, mut written) = (Xxh3::new(), 0);
            column.write(&mut |bytes| {
                hasher.update(bytes);
                written += bytes.len();
                w.write_all(bytes)
            })?;
            if written as u64 != rows as u64 * dtype.size() {
                let what = format!("column `{name}` has {written} bytes, not {rows} rows");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            let zeros = padding(written);
            hasher.update(zeros);
            trailer.extend_from_slice(&hasher.digest().to_le_bytes());
            w.write_all(zeros)?;
            length += (written + zeros.len()) as u64;
        }
        trailer.extend_from_slice(&xxh3_64(&trailer).to_le_bytes());
        length += trailer.len() as u64 + 16;
        w.write_all(&trailer)?;
        w.write_all(&length.to_le_bytes())?;
        w.write_all(&END_MAGIC)
    })
}

/// Zeros from `len` to the next multiple of the alignment.
fn padding(len: usize) -> &'static [u8] {
    const ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];
    ZEROS.get(..len.next_multiple_of(ALIGNMENT) - len).unwrap_or_default()
}

/// All before the first column. Offsets depend on the header's encoded length, which depends on the
/// offsets: they are found by trying again until the length stays.
fn encode_prefix(kind: &str, columns: &[(&str, Column<'_>)]) -> Result<Vec<u8>, String> {
    let mut names = HashSet::new();
    if let Some((name, _)) = columns.iter().find(|(name, _)| !names.insert(*name)) {
        return Err(format!("two columns are named `{name}`"));
    }
    let mut start = ALIGNMENT as u64;
    loop {
        let mut offset = start;
        let mut header = Header { kind: kind.to_owned(), columns: Vec::new() };
        for (name, column) in columns {
            let (dtype, rows) = column.shape();
            let column =
                ColumnHeader { name: (*name).to_owned(), dtype, offset, rows: rows as u64 };
            offset = column.end().and_then(align).ok_or("the columns are too long")?;
            header.columns.push(column);
        }
        let bytes = codec::encode(&header).map_err(|e| e.to_string())?;
        if bytes.len() > MAX_HEADER {
            return Err(format!("the header has {} bytes, more than {MAX_HEADER}", bytes.len()));
        }
        let needed = (PREFIX + bytes.len()).next_multiple_of(ALIGNMENT);
        if needed as u64 <= start {
            let mut prefix = MAGIC.to_vec();
            prefix.extend_from_slice(&SHARD_VERSION.to_le_bytes());
            prefix.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            prefix.extend_from_slice(&bytes);
            prefix.resize(start as usize, 0);
            return Ok(prefix);
        }
        start = needed as u64;
    }
}

/// An open shard. Cheap to share between threads; slices live as long as it does.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    mapped: Mapped,
    header: Header,
    /// XXH3 per column with its padding, from the trailer.
    hashes: Vec<u64>,
}

impl Shard {
    /// Opens a shard of the given kind. Header, bounds, padding of the prefix and trailer are
    /// checked before it returns; the columns' content is checked by [`Shard::verify`].
    ///
    /// # Errors
    /// Not a shard, of another version or kind, truncated, longer than it says, or damaged.
    pub fn open(path: &Path, kind: &str) -> Result<Self> {
        Self::open_with(path, kind, Access::Automatic)
    }

    /// [`Shard::open`] with a choice of how the file is brought into memory.
    ///
    /// # Errors
    /// As [`Shard::open`].
    pub fn open_with(path: &Path, kind: &str, access: Access) -> Result<Self> {
        let mapped = Mapped::open(path, access)?;
        let (header, hashes) =
            parse(mapped.bytes(), kind).map_err(|problem| StorageError::corrupt(path, problem))?;
        Ok(Self { path: path.to_path_buf(), mapped, header, hashes })
    }

    /// Hashes every column and compares with the trailer.
    ///
    /// # Errors
    /// Names the first damaged column.
    pub fn verify(&self) -> Result<()> {
        self.mapped.advise(Pattern::Sequential);
        for (column, expected) in self.header.columns.iter().zip(&self.hashes) {
            let padded = column.padded().and_then(|range| {
                self.mapped.bytes().get(range.start as usize..range.end as usize)
            });
            if padded.map(xxh3_64) != Some(*expected) {
                let problem = format!("column `{}` is damaged (its hash differs)", column.name);
                return Err(StorageError::corrupt(&self.path, problem));
            }
        }
        self.mapped.advise(Pattern::Normal);
        Ok(())
    }

    /// What tells this shard from others: a hash of its columns' hashes, as 16 lower-case hex digits.
    pub fn fingerprint(&self) -> String {
        let hashes: Vec<u8> = self.hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        xxh3_hex(&hashes)
    }

    /// Says how the columns are going to be used.
    pub fn advise(&self, pattern: Pattern) {
        self.mapped.advise(pattern);
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A column of bytes.
    ///
    /// # Errors
    /// The shard has no such column of this type (also for the other types).
    pub fn u8(&self, name: &str) -> Result<&[u8]> {
        self.column(name, DType::U8)
    }

    /// A column of 16-bit numbers, or of the bits of `f16` values.
    ///
    /// # Errors
    /// As [`Shard::u8`].
    pub fn u16(&self, name: &str) -> Result<&[u16]> {
        self.column(name, DType::U16)
    }

    /// A column of 32-bit numbers.
    ///
    /// # Errors
    /// As [`Shard::u8`].
    pub fn u32(&self, name: &str) -> Result<&[u32]> {
        self.column(name, DType::U32)
    }

    /// A column of 64-bit numbers.
    ///
    /// # Errors
    /// As [`Shard::u8`].
    pub fn u64(&self, name: &str) -> Result<&[u64]> {
        self.column(name, DType::U64)
    }

    /// A column of signed 64-bit numbers.
    ///
    /// # Errors
    /// As [`Shard::u8`].
    pub fn i64(&self, name: &str) -> Result<&[i64]> {
        self.column(name, DType::I64)
    }

    /// A column of 32-bit floats.
    ///
    /// # Errors
    /// As [`Shard::u8`].
    pub fn f32(&self, name: &str) -> Result<&[f32]> {
        self.column(name, DType::F32)
    }

    fn column<T: Pod>(&self, name: &str, dtype: DType) -> Result<&[T]> {
        self.header
            .columns
            .iter()
            .find(|c| c.name == name && c.dtype == dtype)
            .and_then(|c| self.mapped.view(c.offset as usize, c.rows as usize))
            .ok_or_else(|| StorageError::NoColumn {
                path: self.path.clone(),
                column: name.to_owned(),
                dtype: dtype.describe().1,
            })
    }

    /// Remembers where a column is: `column` must be one of this shard.
    pub(crate) fn handle<T: Pod>(&self, column: &[T]) -> Handle<T> {
        let base = self.mapped.bytes().as_ptr() as usize;
        let offset = (column.as_ptr() as usize).wrapping_sub(base);
        Handle::new(offset, column.len())
    }

    /// The column of a handle of this shard.
    pub(crate) fn get<T: Pod>(&self, handle: Handle<T>) -> &[T] {
        self.mapped.view(handle.offset, handle.rows).unwrap_or_default()
    }
}
