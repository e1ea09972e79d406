//! Columns that are read often.

use std::marker::PhantomData;

/// A column that has been looked up and checked once, for code that reads it often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle<T> {
    pub(super) offset: usize,
    pub(super) rows: usize,
    of: PhantomData<T>,
}

impl<T> Handle<T> {
    /// `rows` values from byte `offset` of the file on.
    pub(super) fn new(offset: usize, rows: usize) -> Self {
        Self { offset, rows, of: PhantomData }
    }
}
