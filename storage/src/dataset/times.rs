//! Times in 32 bits where they fit, and as whole numbers where they do not.

use std::ops::Range;

use crate::error::Result;
use crate::shard::{Handle, Shard};

/// Times of ratings, seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps<'a>(Times<&'a [u32], &'a [i64]>);

/// A column of either kind: at hand, or where it is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Times<O, W> {
    Since { first: i64, offsets: O },
    Whole(W),
}

impl<'a> Timestamps<'a> {
    /// Number of times.
    pub fn len(&self) -> usize {
        match self.0 {
            Times::Since { offsets, .. } => offsets.len(),
            Times::Whole(times) => times.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The time at `i`; `None` past the end.
    pub fn get(&self, i: usize) -> Option<i64> {
        match self.0 {
            Times::Since { first, offsets } => {
                Some(first.wrapping_add_unsigned(u64::from(*offsets.get(i)?)))
            }
            Times::Whole(times) => times.get(i).copied(),
        }
    }

    /// All times, in order.
    pub fn iter(&self) -> impl Iterator<Item = i64> + use<'a> {
        let times = *self;
        (0..times.len()).filter_map(move |i| times.get(i))
    }

    /// A part; empty outside.
    pub(super) fn range(&self, rows: Range<usize>) -> Self {
        Self(match self.0 {
            Times::Since { first, offsets } => {
                Times::Since { first, offsets: offsets.get(rows).unwrap_or_default() }
            }
            Times::Whole(times) => Times::Whole(times.get(rows).unwrap_or_default()),
        })
    }

    /// Whether none is earlier than the one before, or wraps.
    pub(super) fn is_sorted(&self) -> bool {
        match self.0 {
            Times::Since { first, offsets } => {
                let last = offsets.last().copied().unwrap_or_default();
                offsets.is_sorted() && first.checked_add_unsigned(u64::from(last)).is_some()
            }
            Times::Whole(times) => times.is_sorted(),
        }
    }
}

/// Where a dataset's times are.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeColumn(Times<Handle<u32>, Handle<i64>>);

impl TimeColumn {
    /// The column of a dataset whose times count from `first`, if from anything.
    pub(super) fn open(shard: &Shard, first: Option<i64>) -> Result<Self> {
        Ok(Self(match first {
            Some(first) => Times::Since { first, offsets: shard.handle(shard.u32("timestamp")?) },
            None => Times::Whole(shard.handle(shard.i64("timestamp")?)),
        }))
    }

    pub(super) fn all<'a>(&self, shard: &'a Shard) -> Timestamps<'a> {
        Timestamps(match self.0 {
            Times::Since { first, offsets } => Times::Since { first, offsets: shard.get(offsets) },
            Times::Whole(times) => Times::Whole(shard.get(times)),
        })
    }
}
