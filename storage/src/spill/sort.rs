//! Sorting more than fits: sorted runs in a temporary file, merged as they are read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::{PIECE, Spill, TempFile};
use crate::error::Result;

/// Numbers to be sorted. Several fields of a record are packed into one, the most important highest.
#[derive(Debug)]
pub(crate) struct Sorter {
    threads: usize,
    buffer: Vec<u128>,
    room: usize,
    file: TempFile,
    /// Byte offset and rows of each run in the file.
    runs: Vec<(u64, usize)>,
}

impl Sorter {
    /// A sorter of about `expected` numbers that keeps at most `room` in memory.
    pub(crate) fn new(spill: &Spill, room: usize, expected: usize) -> Self {
        let buffer = Vec::with_capacity(room.min(expected));
        let file = TempFile::new(spill);
        Self { threads: spill.threads(), buffer, room, file, runs: Vec::new() }
    }

    /// Adds a number.
    pub(crate) fn push(&mut self, value: u128) -> Result<()> {
        if self.buffer.len() >= self.room {
            self.flush()?;
        }
        self.buffer.push(value);
        Ok(())
    }

    /// Sorts the buffer in as many parts as there are threads, at once. Returns the parts' length.
    fn sort_parts(&mut self) -> usize {
        let part = self.buffer.len().div_ceil(self.threads).max(1);
        std::thread::scope(|scope| {
            for part in self.buffer.chunks_mut(part) {
                scope.spawn(|| part.sort_unstable());
            }
        });
        part
    }

    fn flush(&mut self) -> Result<()> {
        let part = self.sort_parts();
        for part in self.buffer.chunks(part) {
            self.runs.push((self.file.len, part.len()));
            self.file.append(part)?;
        }
        self.buffer.clear();
        Ok(())
    }

    /// Hands out all numbers, ascending.
    pub(crate) fn for_each(mut self, mut visit: impl FnMut(u128) -> Result<()>) -> Result<()> {
        let part = self.sort_parts();
        let parts = self.buffer.chunks(part).map(Run::Memory);
        // What is read ahead of all runs together stays below the buffer's size.
        let ahead = (self.room / (self.runs.len() + 1)).clamp(64, PIECE);
        let spilled = self.runs.iter().map(|(offset, rows)| {
            let (offset, left) = (*offset, *rows);
            Run::File { file: &self.file, offset, left, ahead, rows: Vec::new(), at: 0 }
        });
        let mut runs: Vec<Run<'_>> = parts.chain(spilled).collect();
        let mut heap = BinaryHeap::with_capacity(runs.len());
        for (i, run) in runs.iter_mut().enumerate() {
            heap.extend(run.next()?.map(|value| Reverse((value, i))));
        }
        while let Some(mut least) = heap.peek_mut() {
            let Reverse((value, i)) = *least;
            visit(value)?;
            match runs.get_mut(i).map(Run::next).transpose()?.flatten() {
                Some(next) => *least = Reverse((next, i)),
                None => drop(PeekMut::pop(least)),
            }
        }
        Ok(())
    }
}

/// A sorted part that is being merged.
enum Run<'a> {
    Memory(&'a [u128]),
    File {
        file: &'a TempFile,
        offset: u64,
        /// Rows of the file that have not been read.
        left: usize,
        ahead: usize,
        rows: Vec<u128>,
        at: usize,
    },
}

impl Run<'_> {
    fn next(&mut self) -> Result<Option<u128>> {
        match self {
            Self::Memory(rows) => {
                let (first, rest) =
                    rows.split_first().map_or((None, *rows), |(f, r)| (Some(*f), r));
                *rows = rest;
                Ok(first)
            }
            Self::File { file, offset, left, ahead, rows, at } => {
                if *at >= rows.len() {
                    let count = (*ahead).min(*left);
                    file.read(*offset, count, rows)?;
                    *offset += (count * size_of::<u128>()) as u64;
                    *left -= count;
                    *at = 0;
                }
                *at += 1;
                Ok(rows.get(*at - 1).copied())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_room_and_threads_sort_alike(
            values in proptest::collection::vec(any::<u128>(), 0..500),
            room in 1_usize..600,
            threads in 1_usize..5,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let spill = Spill::within(0, dir.path(), threads);
            let mut sorter = Sorter::new(&spill, room, values.len());
            values.iter().for_each(|value| sorter.push(*value).unwrap());
            prop_assert_eq!(sorter.runs.is_empty(), values.len() <= room);
            let mut sorted = Vec::new();
            sorter.for_each(|value| {
                sorted.push(value);
                Ok(())
            }).unwrap();
            let mut expected = values;
            expected.sort_unstable();
            prop_assert_eq!(sorted, expected);
        }
    }
}
