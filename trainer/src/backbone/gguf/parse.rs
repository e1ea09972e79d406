//! The container: header, metadata and tensor infos of a little-endian GGUF file, version 2 or 3.
//!
//! A file is somebody else's bytes. Every count and length is compared with what is left of the file
//! before anything is allocated, texts and arrays stay where they are (only their places are kept),
//! and every tensor's bytes are inside the file, aligned, and no other tensor's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::types::TensorType;
use super::value::{Array, Kind, Value};
use crate::error::{Result, TrainerError};

/// What to do about a file whose bytes are not what its header says.
const DAMAGED: &str = "truncated or damaged; copy or download the file again";

/// Versions that are read: 1 had other lengths and is long gone.
const VERSIONS: [u32; 2] = [2, 3];
/// Longest key, in bytes (the format's own limit).
const MAX_KEY: u64 = 65_535;
/// Longest tensor name, in bytes (the format's own limit).
const MAX_NAME: u64 = 64;
/// Most dimensions of a tensor (the format's own limit).
const MAX_DIMENSIONS: u32 = 4;
/// Fewest bytes of a key and its value: lengths, type, a number of one byte.
const MIN_ENTRY: u64 = 8 + 4 + 1;
/// Fewest bytes of a tensor info: length of the name, count of dimensions, one of them, type, offset.
const MIN_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;
/// Alignment of tensors where the file names none.
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 65_536;

/// Where a tensor is and how it is stored.
#[derive(Debug)]
pub struct TensorInfo {
    pub kind: TensorType,
    /// Rows first, as everywhere else in this project; the file has them the other way round.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// Everything before the tensors' bytes.
#[derive(Debug)]
pub struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// Reads and checks a header; `path` is named in errors.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor { path, bytes, at: 0 };
    let (num_tensors, num_entries) = counts(&mut cursor)?;
    let metadata = metadata(&mut cursor, num_entries)?;
    let alignment = alignment(path, &metadata)?;
    let claims = tensor_infos(&mut cursor, num_tensors)?;
    let start = (cursor.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, claim) in claims {
        let info = claim.place(path, &name, start, alignment, bytes.len())?;
        tensors.insert(name, info);
    }
    refuse_overlaps(path, &tensors)?;
    Ok(Header { metadata, tensors })
}

/// The numbers of tensors and of metadata entries.
fn counts(cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let magic = cursor.bytes.get(..4);
    if magic != Some(b"GGUF") {
        return cursor.fail(
            "is not a GGUF file: it does not begin with \"GGUF\"; a backbone is a Hugging Face \
             directory or a GGUF file",
        );
    }
    cursor.at = 4;
    let version = cursor.u32("the header")?;
    if VERSIONS.contains(&version.swap_bytes()) {
        return cursor.fail("is big-endian; supported: little-endian; convert the model again");
    }
    if !VERSIONS.contains(&version) {
        return cursor
            .fail(format!("is GGUF version {version}; supported: 2, 3; convert the model again"));
    }
    Ok((cursor.u64("the header")?, cursor.u64("the header")?))
}

fn metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Value>> {
    cursor.check_count(count, MIN_ENTRY, "metadata entries")?;
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        let key = cursor.name(MAX_KEY, &format!("metadata key {index}"))?;
        let kind = cursor.kind(&key)?;
        let value = cursor.value(kind, &key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return cursor.fail(format!("key {key}: is there twice; {DAMAGED}"));
        }
    }
    Ok(metadata)
}

fn alignment(path: &Path, metadata: &BTreeMap<String, Value>) -> Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(n) => {
            Ok(*n)
        }
        Some(_) => Err(TrainerError::file(
            path,
            format!(
                "key general.alignment: is not a power of two in 8..={MAX_ALIGNMENT}; {DAMAGED}"
            ),
        )),
    }
}

fn tensor_infos(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Claim>> {
    cursor.check_count(count, MIN_TENSOR, "tensors")?;
    let mut claims = BTreeMap::new();
    for index in 0..count {
        let name = cursor.name(MAX_NAME, &format!("name of tensor {index}"))?;
        let claim = Claim::read(cursor, &name)?;
        if claims.insert(name.clone(), claim).is_some() {
            return cursor.fail(format!("tensor {name}: is there twice; {DAMAGED}"));
        }
    }
    Ok(claims)
}

/// What the file says of a tensor, before it has been compared with the file's length.
struct Claim {
    kind: TensorType,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

impl Claim {
    fn read(cursor: &mut Cursor<'_>, name: &str) -> Result<Self> {
        let what = format!("tensor {name}");
        let rank = cursor.u32(&what)?;
        if !(1..=MAX_DIMENSIONS).contains(&rank) {
            let limit = format!("not 1 to {MAX_DIMENSIONS}");
            return cursor.fail(format!("{what}: has {rank} dimensions, {limit}; {DAMAGED}"));
        }
        let mut dims = Vec::new();
        for _ in 0..rank {
            dims.push(cursor.u64(&what)?);
        }
        let id = cursor.u32(&what)?;
        let Some(kind) = TensorType::of(id) else {
            let advice = "convert the model again, to F32, F16, BF16 or Q8_0";
            return cursor.fail(format!("{what}: its type {id} is not known; {advice}"));
        };
        let offset = cursor.u64(&what)?;
        let count = dims.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim));
        let Some(count) = count.filter(|&n| n > 0) else {
            return cursor.fail(format!("{what}: its shape {dims:?} is no shape; {DAMAGED}"));
        };
        let row = dims.first().copied().unwrap_or_default();
        if !row.is_multiple_of(kind.block) {
            return cursor.fail(format!(
                "{what}: its rows of {row} are no whole blocks of {} ({}); {DAMAGED}",
                kind.name, kind.block
            ));
        }
        let shape: Option<Vec<usize>> =
            dims.iter().rev().map(|&dim| usize::try_from(dim).ok()).collect();
        match shape.zip((count / kind.block).checked_mul(kind.block_bytes)) {
            Some((shape, bytes)) => Ok(Self { kind, shape, bytes, offset }),
            None => cursor.fail(format!("{what}: its shape {dims:?} is too large; {DAMAGED}")),
        }
    }

    fn place(
        self,
        path: &Path,
        name: &str,
        start: u64,
        alignment: u64,
        length: usize,
    ) -> Result<TensorInfo> {
        let fail = |what: String| TrainerError::file(path, format!("tensor {name}: {what}"));
        if !self.offset.is_multiple_of(alignment) {
            let offset = self.offset;
            return Err(fail(format!(
                "its offset {offset} is no multiple of the alignment {alignment}; {DAMAGED}"
            )));
        }
        let first = start.checked_add(self.offset);
        let end = first.and_then(|first| first.checked_add(self.bytes));
        match first.zip(end.filter(|&end| end <= length as u64)) {
            Some((first, end)) => Ok(TensorInfo {
                kind: self.kind,
                shape: self.shape,
                range: first as usize..end as usize,
            }),
            None => Err(fail(format!(
                "{} bytes from offset {} on are beyond the file's end ({length} bytes, tensors from \
                 {start} on); {DAMAGED}",
                self.bytes, self.offset
            ))),
        }
    }
}

fn refuse_overlaps(path: &Path, tensors: &BTreeMap<String, TensorInfo>) -> Result<()> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(_, info)| info.range.start);
    for ((before, first), (name, second)) in sorted.iter().zip(sorted.iter().skip(1)) {
        if second.range.start < first.range.end {
            let what = format!("tensor {name}: overlaps tensor {before}; {DAMAGED}");
            return Err(TrainerError::file(path, what));
        }
    }
    Ok(())
}

/// A place in the file, moved forward by reading.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(TrainerError::file(self.path, what))
    }

    fn left(&self) -> u64 {
        self.bytes.len().saturating_sub(self.at) as u64
    }

    fn check_count(&self, count: u64, min_bytes: u64, what: &str) -> Result<()> {
        let left = self.left();
        if count <= left / min_bytes {
            return Ok(());
        }
        self.fail(format!("claims {count} {what}, but only {left} bytes follow: {DAMAGED}"))
    }

    /// The place of the next `count` bytes.
    fn take(&mut self, count: u64, what: &str) -> Result<Range<usize>> {
        let left = self.left();
        if count > left {
            return self.fail(format!(
                "{what}: {count} bytes expected, but only {left} follow: {DAMAGED}"
            ));
        }
        let start = self.at;
        self.at += count as usize;
        Ok(start..self.at)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let range = self.take(N as u64, what)?;
        match self.bytes.get(range).and_then(|bytes| bytes.first_chunk()) {
            Some(bytes) => Ok(*bytes),
            None => self.fail(format!("{what}: {DAMAGED}")),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The place of a text of at most `limit` bytes, which is UTF-8.
    fn text(&mut self, limit: u64, what: &str) -> Result<Range<usize>> {
        let length = self.u64(what)?;
        if length > limit {
            return self.fail(format!("{what}: is longer than {limit} bytes; {DAMAGED}"));
        }
        let range = self.take(length, what)?;
        match self.bytes.get(range.clone()).map(str::from_utf8) {
            Some(Ok(_)) => Ok(range),
            _ => self.fail(format!("{what}: is not UTF-8; {DAMAGED}")),
        }
    }

    /// A key or a name.
    fn name(&mut self, limit: u64, what: &str) -> Result<String> {
        let range = self.text(limit, what)?;
        match self.bytes.get(range).map(String::from_utf8_lossy) {
            Some(name) if !name.is_empty() => Ok(name.into_owned()),
            _ => self.fail(format!("{what}: is empty; {DAMAGED}")),
        }
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let id = self.u32(key)?;
        match Kind::of(id) {
            Some(kind) => Ok(kind),
            None => self.fail(format!("key {key}: its type {id} is not known; {DAMAGED}")),
        }
    }

    fn value(&mut self, kind: Kind, key: &str) -> Result<Value> {
        let what = format!("key {key}");
        match kind {
            Kind::Text => Ok(Value::Text(self.text(u64::MAX, &what)?)),
            Kind::Array => self.array_value(key).map(Value::Array),
            number => {
                let range = self.take(number.bytes(), &what)?;
                let bytes = self.bytes.get(range).unwrap_or_default();
                match Value::number(number, bytes) {
                    Some(value) => Ok(value),
                    None => self.fail(format!("{what}: is no {}; {DAMAGED}", number.name())),
                }
            }
        }
    }

    fn array_value(&mut self, key: &str) -> Result<Array> {
        let what = format!("key {key}");
        let kind = self.kind(key)?;
        let count = self.u64(&what)?;
        if kind == Kind::Array {
            return self.fail(format!("{what}: arrays of arrays are not supported"));
        }
        // A text takes the bytes of its length at least.
        self.check_count(count, kind.bytes(), &format!("elements of {key}"))?;
        let start = self.at;
        if kind == Kind::Text {
            for _ in 0..count {
                self.text(u64::MAX, &what)?;
            }
        } else {
            self.take(count * kind.bytes(), &what)?;
        }
        Ok(Array { kind, count: count as usize, range: start..self.at })
    }
}
