//! A file as chunks of whole lines, for threads to read.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use super::source::{MAX_LINE, Place, damaged, open};
use crate::error::{RawProblem, Result, StorageError};

/// Whole lines of a file.
pub(super) struct Chunk {
    /// Number of the first line.
    pub(super) line: u64,
    /// The lines with their ends; the file's last one may have none.
    pub(super) bytes: Vec<u8>,
}

/// A file, chunk by chunk.
pub(super) struct Chunks {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    size: usize,
    line: u64,
    /// The start of a line whose end has not been read.
    rest: Vec<u8>,
    /// What ended the file early; reported once the lines before it have been handed out.
    failed: Option<StorageError>,
}

impl Chunks {
    /// Opens a file to be cut into chunks of about `size` bytes.
    pub(super) fn open(path: &Path, size: usize) -> Result<Self> {
        let reader = open(path)?;
        Ok(Self { path: path.to_path_buf(), reader, size, line: 1, rest: Vec::new(), failed: None })
    }

    /// The first line alone, without its end.
    pub(super) fn header(&mut self) -> Result<Option<Vec<u8>>> {
        let mut header = Vec::new();
        let mut limited = (&mut self.reader).take(MAX_LINE as u64 + 1);
        let read = limited.read_until(b'\n', &mut header);
        read.map_err(|e| damaged(&self.path, 0, e))?;
        self.check_length(header.len())?;
        self.line += 1;
        Ok((!header.is_empty()).then_some(header))
    }

    /// The next chunk; `None` at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut bytes = std::mem::take(&mut self.rest);
        loop {
            let wanted = self.size.saturating_sub(bytes.len()).max(1 << 12);
            let before = bytes.len();
            let read = (&mut self.reader).take(wanted as u64).read_to_end(&mut bytes);
            let end = bytes.iter().rposition(|b| *b == b'\n').map(|at| at + 1);
            match read {
                Err(e) => {
                    bytes.truncate(end.unwrap_or(0));
                    let chunk = self.chunk(bytes);
                    self.failed = Some(damaged(&self.path, self.line - 1, e));
                    return Ok(Some(chunk));
                }
                Ok(0) if before == 0 => return Ok(None),
                Ok(read) if read < wanted => return Ok(Some(self.chunk(bytes))),
                Ok(_) => {}
            }
            if let Some(end) = end {
                self.rest = bytes.split_off(end);
                return Ok(Some(self.chunk(bytes)));
            }
            self.check_length(bytes.len())?;
        }
    }

    fn chunk(&mut self, bytes: Vec<u8>) -> Chunk {
        let line = self.line;
        self.line += bytes.iter().filter(|b| **b == b'\n').count() as u64;
        Chunk { line, bytes }
    }

    fn check_length(&self, length: usize) -> Result<()> {
        if length <= MAX_LINE {
            return Ok(());
        }
        let problem = RawProblem::LineTooLong { limit: MAX_LINE };
        Err(Place { path: &self.path, line: self.line }.error("line", problem))
    }

    /// What has not been handed out, and the error that ends it, if there is one.
    pub(super) fn into_rest(self) -> (impl BufRead, Option<StorageError>) {
        (std::io::Cursor::new(self.rest).chain(self.reader), self.failed)
    }
}
