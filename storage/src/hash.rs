//! Content hashes: XXH3 with 64 bits. They find damage and changed inputs; they are no defence
//! against a person who forges a file.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::error::{Result, StorageError};

/// XXH3-64 of `bytes` as 16 lower-case hex digits.
pub fn xxh3_hex(bytes: &[u8]) -> String {
    hex(xxh3_64(bytes))
}

/// XXH3-64 of bytes that come in pieces.
#[derive(Clone, Default)]
pub struct Hasher(Xxh3);

impl Hasher {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all pieces, as [`xxh3_hex`] gives it.
    pub fn hex(&self) -> String {
        hex(self.0.digest())
    }
}

/// XXH3-64 of a file's content as 16 lower-case hex digits, read in pieces.
///
/// # Errors
/// The file cannot be opened or read.
pub fn xxh3_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| StorageError::io("open", path, e))?;
    let mut hasher = Hasher::default();
    let failed = |e| StorageError::io("read", path, e);
    each_piece(&mut file, failed, |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(hasher.hex())
}

/// Hands all that can be read to `take`, piece by piece.
pub(crate) fn each_piece<E>(
    file: &mut File,
    failed: impl Fn(std::io::Error) -> E,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => take(buffer.get(..n).unwrap_or_default())?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

fn hex(value: u64) -> String {
    format!("{value:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // Reference value of XXH3-64 of the empty input.
        assert_eq!(xxh3_hex(b""), "2d06800538d394c2");
        assert_eq!(xxh3_hex(b"a").len(), 16);
    }

    #[test]
    fn file_equals_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let bytes: Vec<u8> = (0..600_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(xxh3_file(&path).unwrap(), xxh3_hex(&bytes));
        assert!(xxh3_file(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
