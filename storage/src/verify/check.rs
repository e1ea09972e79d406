//! Reading one file once: its hash, and those of its columns if it is a shard.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};

use xxhash_rust::xxh3::Xxh3;

use super::{Other, Task};
use crate::hash::{Hasher, each_piece};
use crate::mmap::{Pattern, advise_file};
use crate::shard::{ColumnHeader, MAGIC, parse_file};

/// A file that has been read and is whole.
pub(super) struct Whole {
    pub metadata: Metadata,
    pub xxh3: String,
}

/// Reads a file. The error says what is wrong with it.
pub(super) fn check(
    task: &Task,
    other: Other<'_>,
    advance: &(dyn Fn(u64) + Sync),
) -> Result<Whole, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut file = File::open(&task.path).map_err(unreadable)?;
    advise_file(&file, Pattern::Sequential);
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.len() != task.bytes {
        return Err(format!("changed from {} to {} bytes meanwhile", task.bytes, metadata.len()));
    }
    let named_so = task.path.extension().is_some_and(|extension| extension == "shard");
    let columns = if named_so || begins_as_shard(&mut file).map_err(unreadable)? {
        let (header, hashes) = parse_file(&mut file, task.bytes)?;
        Some(Columns::new(header.columns.into_iter().zip(hashes).collect()))
    } else {
        None
    };
    if columns.is_none() && task.xxh3.is_none() {
        let unknown = "is no file that can be checked: no manifest.json lists it, and it is neither a \
                       shard nor a checkpoint";
        other(&task.path).unwrap_or_else(|| Err(unknown.into()))?;
    }
    let xxh3 = hash(&mut file, columns, task.bytes, advance)?;
    match &task.xxh3 {
        Some(expected) if *expected != xxh3 => {
            Err("is not the file that its manifest.json lists (its hash differs): changed, or put \
                 in the place of another"
                .into())
        }
        _ => Ok(Whole { metadata, xxh3 }),
    }
}

fn begins_as_shard(file: &mut File) -> io::Result<bool> {
    let mut start = Vec::new();
    file.take(MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(start == MAGIC)
}

/// The hash of a file; the error names a column that is not as it was written.
fn hash(
    file: &mut File,
    mut columns: Option<Columns>,
    length: u64,
    advance: &(dyn Fn(u64) + Sync),
) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let (mut whole, mut at) = (Hasher::default(), 0_u64);
    each_piece(file, unreadable, |bytes| {
        whole.update(bytes);
        if let Some(columns) = &mut columns {
            columns.update(at, bytes)?;
        }
        at += bytes.len() as u64;
        advance(bytes.len() as u64);
        Ok(())
    })?;
    if at != length {
        return Err(format!("changed from {length} to {at} bytes meanwhile"));
    }
    Ok(whole.hex())
}

/// Hashes of the columns of a shard whose bytes come one after the other.
struct Columns {
    /// In the order of the file, with the hashes that they should have.
    columns: Vec<(ColumnHeader, u64)>,
    next: usize,
    hasher: Xxh3,
}

impl Columns {
    fn new(columns: Vec<(ColumnHeader, u64)>) -> Self {
        Self { columns, next: 0, hasher: Xxh3::new() }
    }

    /// Takes the bytes of the file from `at` on.
    fn update(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let end = at + bytes.len() as u64;
        while let Some((column, xxh3)) = self.columns.get(self.next) {
            let range = column.padded().ok_or("the columns are too long")?;
            let (from, to) = (range.start.max(at), range.end.min(end));
            if from < to {
                let part = bytes.get((from - at) as usize..(to - at) as usize);
                self.hasher.update(part.unwrap_or_default());
            }
            if range.end > end {
                break;
            }
            if self.hasher.digest() != *xxh3 {
                return Err(format!("column `{}` is damaged (its hash differs)", column.name));
            }
            self.hasher.reset();
            self.next += 1;
        }
        Ok(())
    }
}
