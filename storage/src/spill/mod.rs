//! What does not fit into a limit of memory goes to temporary files.
//!
//! A [`Spill`] says how much memory there is and where the files go; [`SpillVec`] is a column that is
//! appended to, and a sorter sorts more than fits. A file loses its name as soon as it is made: it
//! can't be taken for a result, and is gone with the process whatever ends it. What is computed does
//! not depend on the limit: only where it lies meanwhile does.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytemuck::Pod;

use crate::atomic::create_tmp;
use crate::error::{Result, StorageError};

mod sort;

pub(crate) use sort::Sorter;

/// Rows that are read or visited at a time.
const PIECE: usize = 1 << 14;

/// How much memory may be used for rows, where the rest goes, and how many threads there are.
#[derive(Clone, Debug)]
pub struct Spill {
    dir: PathBuf,
    limit: usize,
    threads: usize,
}

impl Spill {
    /// Keeps about `limit` bytes of rows in memory and the rest in directory `dir`.
    pub fn within(limit: usize, dir: &Path, threads: usize) -> Self {
        Self { dir: dir.to_path_buf(), limit, threads: threads.max(1) }
    }

    /// Keeps everything in memory.
    pub fn never() -> Self {
        Self { dir: PathBuf::new(), limit: usize::MAX, threads: 1 }
    }

    /// Threads to compute with.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// How many rows of `size` bytes fit into `eighths` of the limit; at least one.
    pub(crate) fn rows(&self, eighths: usize, size: usize) -> usize {
        (self.limit / 8).saturating_mul(eighths).checked_div(size).unwrap_or_default().max(1)
    }
}

/// A file without a name that is appended to and read anywhere; made for the first rows.
#[derive(Debug)]
struct TempFile {
    file: Option<File>,
    /// What its name was, for errors.
    path: PathBuf,
    len: u64,
}

impl TempFile {
    fn new(spill: &Spill) -> Self {
        Self { file: None, path: spill.dir.join("spill"), len: 0 }
    }

    /// Appends rows, as they are in memory.
    fn append(&mut self, rows: &[impl Pod]) -> Result<()> {
        let failed = |action, e| StorageError::io(action, &self.path, e);
        let file = match &mut self.file {
            Some(file) => file,
            // The name is removed at once; the file lives as long as it is open.
            none => none.insert(create_tmp(&self.path).map_err(|e| failed("create", e))?.1),
        };
        let bytes: &[u8] = bytemuck::cast_slice(rows);
        let written = file.write_all_at(bytes, self.len);
        written.map_err(|e| failed("write the temporary file", e))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Reads `count` rows from byte `offset` on into `rows`, whose content is replaced.
    fn read<T: Pod>(&self, offset: u64, count: usize, rows: &mut Vec<T>) -> Result<()> {
        rows.resize(count, T::zeroed());
        let Some(file) = &self.file else { return Ok(()) };
        let read = file.read_exact_at(bytemuck::cast_slice_mut(rows), offset);
        read.map_err(|e| StorageError::io("read the temporary file", &self.path, e))
    }
}

/// A column that is appended to, in memory up to a share of the limit.
#[derive(Debug)]
pub struct SpillVec<T> {
    /// The last rows: all, as long as none has been spilled.
    tail: Vec<T>,
    /// Rows after which the tail is spilled.
    room: usize,
    file: TempFile,
    spilled: usize,
}

impl<T: Pod> SpillVec<T> {
    /// An empty column that keeps at most `room` rows in memory.
    pub(crate) fn new(spill: &Spill, room: usize) -> Self {
        Self { tail: Vec::new(), room, file: TempFile::new(spill), spilled: 0 }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.spilled + self.tail.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a row.
    pub(crate) fn push(&mut self, row: T) -> Result<()> {
        if self.tail.len() >= self.room {
            self.flush()?;
        }
        self.tail.push(row);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.append(&self.tail)?;
        self.spilled += self.tail.len();
        self.tail.clear();
        Ok(())
    }

    /// The rows in memory: all of them, unless a limit made some go to a file.
    pub fn in_memory(&self) -> &[T] {
        &self.tail
    }

    /// As [`SpillVec::in_memory`], to be changed.
    pub fn in_memory_mut(&mut self) -> &mut Vec<T> {
        &mut self.tail
    }

    /// Visits all rows in order, in pieces.
    ///
    /// # Errors
    /// That of the visitor, or the temporary file can't be read.
    pub fn for_each_piece(&self, visit: impl FnMut(&[T]) -> Result<()>) -> Result<()> {
        self.visit(visit)
    }

    /// Visits all rows in order.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(T) -> Result<()>) -> Result<()> {
        self.for_each_piece(|piece| piece.iter().copied().try_for_each(&mut visit))
    }

    /// As [`SpillVec::for_each_piece`], for visitors with errors of their own.
    pub(crate) fn visit<E: From<StorageError>>(
        &self,
        mut visit: impl FnMut(&[T]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rows = Vec::new();
        for start in (0..self.spilled).step_by(PIECE) {
            let count = PIECE.min(self.spilled - start);
            self.file.read((start * size_of::<T>()) as u64, count, &mut rows)?;
            visit(&rows)?;
        }
        self.tail.chunks(PIECE).try_for_each(visit)
    }
}

/// Of rows in memory; those in a file equal none.
impl<T: PartialEq> PartialEq for SpillVec<T> {
    fn eq(&self, other: &Self) -> bool {
        self.spilled + other.spilled == 0 && self.tail == other.tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_order_from_memory_and_file() {
        let dir = tempfile::tempdir().unwrap();
        for (room, rows) in [(usize::MAX, 0_u32), (1, 1), (7, 7), (7, 100), (50_000, 120_000)] {
            let spill = Spill::within(0, dir.path(), 1);
            let mut column = SpillVec::new(&spill, room);
            (0..rows).for_each(|row| column.push(row).unwrap());
            let mut seen = Vec::new();
            for _ in 0..2 {
                seen.clear();
                column
                    .for_each_piece(|piece| {
                        seen.extend_from_slice(piece);
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(seen, (0..rows).collect::<Vec<_>>());
            assert_eq!(column.len(), rows as usize);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the files have no name");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut column = SpillVec::new(&Spill::within(0, &dir.path().join("none"), 1), 1);
        column.push(1_u8).unwrap();
        let error = column.push(2).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }
}
