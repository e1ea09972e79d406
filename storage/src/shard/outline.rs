//! A shard's columns and hashes without the shard in memory, for reading it piece by piece.

use std::fs::File;
use std::ops::Range;

use super::parse::parse_file;

/// What a shard says of its columns.
pub(crate) struct Outline {
    /// The columns, in the order of the file.
    pub(crate) columns: Vec<Place>,
}

/// A column's place and hash.
pub(crate) struct Place {
    pub(crate) name: String,
    /// Its bytes and the zeros after them.
    pub(crate) range: Range<u64>,
    /// Hash of those.
    pub(crate) xxh3: u64,
}

impl Outline {
    /// Reads and checks everything but the columns of a file of `length`. The error says what is wrong.
    pub(crate) fn read(file: &mut File, length: u64) -> Result<Self, String> {
        let (header, hashes) = parse_file(file, length)?;
        let columns = header.columns.into_iter().zip(hashes).map(|(column, xxh3)| {
            let range = column.padded().ok_or("the columns are too long")?;
            Ok(Place { name: column.name, range, xxh3 })
        });
        Ok(Self { columns: columns.collect::<Result<_, String>>()? })
    }
}
