//! Gradients of a flat parameter vector that may begin with a table of which a batch touches few rows.
//!
//! A [`Gradient`] is what one micro-batch, or several at once, add to; a [`GradientSum`] has its rows in order, so that two
//! of them are added by walking along both. Rows that neither has are zero and take no memory: the cost
//! of a step is that of the rows of its batch, not of the table.

use std::collections::HashMap;
use std::ops::{AddAssign, Range};

use reclora_comm::tree::{self, sum_into};

use super::table::{Table, TableShare};

/// The gradient that a micro-batch adds up, or that several do: the rows of each by themselves, of the dense part
/// the sum in the order of the tree.
#[derive(Debug)]
pub struct Gradient {
    table: Table,
    /// The sample behind the last one of each micro-batch but the last.
    ends: Vec<usize>,
    /// Of each micro-batch.
    parts: Vec<TouchedRows>,
    dense: Vec<f32>,
}

/// The rows of a table that a micro-batch adds to, in the order in which it first does.
#[derive(Clone, Debug, Default)]
struct TouchedRows {
    /// Place of each row in `rows`.
    places: HashMap<u32, usize>,
    rows: Vec<u32>,
    values: Vec<f32>,
}

impl Gradient {
    /// Zero, of a table and `num_dense` parameters behind it.
    pub fn zero(table: Table, num_dense: usize) -> Self {
        Self::of_several(table, num_dense, Vec::new())
    }

    /// Zero, for several micro-batches at once: all but the last end before the samples `ends`, ascending.
    pub fn of_several(table: Table, num_dense: usize, ends: Vec<usize>) -> Self {
        let parts = vec![TouchedRows::default(); ends.len() + 1];
        Self { table, ends, parts, dense: vec![0.0; num_dense] }
    }

    /// The first of `samples` samples of each micro-batch, and their number at the end.
    pub fn bounds(&self, samples: usize) -> Vec<usize> {
        std::iter::once(0).chain(self.ends.iter().copied()).chain([samples]).collect()
    }

    /// A row of the table, to be added to by the only micro-batch.
    pub fn row(&mut self, row: u32) -> &mut [f32] {
        self.row_of(0, row)
    }

    /// A row of the table, to be added to by a sample, of those of all micro-batches.
    pub fn row_of(&mut self, sample: usize, row: u32) -> &mut [f32] {
        let width = self.table.width;
        let TouchedRows { places, rows, values } =
            &mut self.parts[self.ends.partition_point(|end| *end <= sample)];
        let place = *places.entry(row).or_insert_with(|| {
            rows.push(row);
            values.resize(values.len() + width, 0.0);
            rows.len() - 1
        });
        &mut values[place * width..(place + 1) * width]
    }

    /// Values behind the table, by their place there, to be added to.
    pub fn dense(&mut self, range: Range<usize>) -> &mut [f32] {
        &mut self.dense[range]
    }

    /// All values behind the table.
    pub fn all_dense(&mut self) -> &mut [f32] {
        &mut self.dense
    }

    /// The gradient with its rows in order, and the losses it is the gradient of.
    pub fn sum(self, losses: Losses) -> GradientSum {
        let rows = self.parts.iter().map(|part| part.in_order(self.table)).collect();
        let rows = tree::fold(rows, |left: &mut GradientSum, right| left.add(&right));
        let rows = rows.unwrap_or_else(|| GradientSum::of_rows(self.table));
        GradientSum { dense: self.dense, losses, ..rows }
    }
}

impl TouchedRows {
    fn in_order(&self, table: Table) -> GradientSum {
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        order.sort_unstable_by_key(|place| self.rows[*place]);
        let row = |place: &usize| &self.values[place * table.width..(place + 1) * table.width];
        GradientSum {
            values: order.iter().flat_map(row).copied().collect(),
            rows: order.iter().map(|place| self.rows[*place]).collect(),
            ..GradientSum::of_rows(table)
        }
    }
}

/// Losses of a sample, or sums of those of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// What is trained on.
    pub training: f32,
    /// Of the choice between yes and no alone, where that is told apart; otherwise 0.
    pub deciding: f32,
}

impl From<f32> for Losses {
    fn from(training: f32) -> Self {
        Self { training, deciding: 0.0 }
    }
}

impl AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        self.training += other.training;
        self.deciding += other.deciding;
    }
}

/// A sum of gradients and of their losses.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientSum {
    table: Table,
    rows: Vec<u32>,
    values: Vec<f32>,
    dense: Vec<f32>,
    /// Sums of the losses.
    pub losses: Losses,
}

impl GradientSum {
    /// Of a vector without a table.
    pub fn of_dense(dense: Vec<f32>) -> Self {
        let losses = Losses::default();
        Self { table: Table::default(), rows: Vec::new(), values: Vec::new(), dense, losses }
    }

    /// No row of a table, and no dense part.
    pub fn of_rows(table: Table) -> Self {
        Self { table, ..Self::of_dense(Vec::new()) }
    }

    /// Takes another gradient's table and rows.
    pub fn take_rows(&mut self, other: Self) {
        (self.table, self.rows, self.values) = (other.table, other.rows, other.values);
    }

    /// Gives the rows the numbers that they have in `table`: row i is number `numbers[i]`, ascending.
    pub fn renumber(&mut self, table: Table, numbers: &[u32]) {
        self.table = table;
        self.rows.iter_mut().for_each(|row| *row = numbers[*row as usize]);
    }

    /// The table at the start of the flat vector.
    pub fn table(&self) -> Table {
        self.table
    }

    /// The touched rows, ascending.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Values of the touched rows, one row after the other.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Values behind the table.
    pub fn dense(&self) -> &[f32] {
        &self.dense
    }

    /// Values behind the table, to be summed over ranks.
    pub fn dense_mut(&mut self) -> &mut Vec<f32> {
        &mut self.dense
    }

    /// Multiplies by a number.
    pub fn scale(&mut self, factor: f32) {
        self.values.iter_mut().chain(&mut self.dense).for_each(|value| *value *= factor);
    }

    /// Adds another gradient of the same vector.
    pub fn add(&mut self, other: &Self) {
        sum_into(&mut self.dense, &other.dense);
        self.add_rows(&other.rows, &other.values);
        self.losses += other.losses;
    }

    /// Adds rows, ascending.
    fn add_rows(&mut self, rows: &[u32], values: &[f32]) {
        if rows.is_empty() {
            return;
        }
        let width = self.table.width;
        let mut sum_rows = Vec::with_capacity(self.rows.len() + rows.len());
        let mut sum_values = Vec::with_capacity(self.values.len() + values.len());
        let mut left = self.rows.iter().zip(self.values.chunks_exact(width)).peekable();
        let mut right = rows.iter().zip(values.chunks_exact(width)).peekable();
        loop {
            let order = match (left.peek(), right.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => break,
            };
            let taken = if order.is_le() { left.next() } else { right.next() };
            if let Some((row, values)) = taken {
                sum_rows.push(*row);
                sum_values.extend_from_slice(values);
            }
            if let (true, Some((_, values))) = (order.is_eq(), right.next_if(|_| order.is_eq())) {
                let start = sum_values.len() - width;
                sum_into(&mut sum_values[start..], values);
            }
        }
        (self.rows, self.values) = (sum_rows, sum_values);
    }

    /// The touched rows as bytes, for other ranks: the numbers of the rows, then their values.
    pub fn rows_to_bytes(&self) -> Vec<u8> {
        let rows = self.rows.iter().flat_map(|row| row.to_le_bytes());
        rows.chain(self.values.iter().flat_map(|value| value.to_le_bytes())).collect()
    }

    /// The touched rows as bytes for those who hold them, one piece per part of the table, with the
    /// numbers that the rows have there.
    pub fn parts_to_bytes(&self, share: TableShare) -> Vec<Vec<u8>> {
        let mut numbers = vec![Vec::new(); share.parts()];
        let mut values = vec![Vec::new(); share.parts()];
        for (row, of_row) in self.rows.iter().zip(self.values.chunks_exact(self.table.width)) {
            let (part, place) = share.place(*row);
            numbers[part].extend(place.to_le_bytes());
            values[part].extend(of_row.iter().flat_map(|value| value.to_le_bytes()));
        }
        let pieces = numbers.into_iter().zip(values);
        pieces.map(|(numbers, values)| [numbers, values].concat()).collect()
    }

    /// Replaces the touched rows by those of [`Self::rows_to_bytes`]; false where the bytes are none of
    /// this table's.
    #[must_use]
    pub fn set_rows(&mut self, bytes: &[u8]) -> bool {
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() || !words.len().is_multiple_of(self.table.width + 1) {
            return false;
        }
        let (rows, values) = words.split_at(words.len() / (self.table.width + 1));
        self.rows = rows.iter().map(|word| u32::from_le_bytes(*word)).collect();
        self.values = values.iter().map(|word| f32::from_le_bytes(*word)).collect();
        self.rows.is_sorted_by(|a, b| a < b)
            && self.rows.last().is_none_or(|last| (*last as usize) < self.table.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: Table = Table { rows: 6, width: 2 };

    /// Additions to rows, in any order, and one to the dense part.
    fn gradient(additions: &[(u32, f32)], dense: f32) -> GradientSum {
        let mut gradient = Gradient::zero(TABLE, 1);
        for (row, value) in additions {
            gradient.row(*row).iter_mut().for_each(|sum| *sum += value);
        }
        gradient.dense(0..1)[0] += dense;
        gradient.sum(Losses { training: dense, deciding: -dense })
    }

    fn flat(sum: &GradientSum) -> Vec<f32> {
        let mut flat = vec![0.0; TABLE.len()];
        for (row, values) in sum.rows().iter().zip(sum.values().chunks(TABLE.width)) {
            flat[*row as usize * TABLE.width..][..TABLE.width].copy_from_slice(values);
        }
        flat.extend_from_slice(sum.dense());
        flat
    }

    proptest! {
        #[test]
        fn sums_equal_those_of_dense_vectors(
            a in prop::collection::vec((0u32..6, -4i8..4), 0..9),
            b in prop::collection::vec((0u32..6, -4i8..4), 0..9),
        ) {
            let numbers = |list: &[(u32, i8)]| -> Vec<(u32, f32)> {
                list.iter().map(|(row, value)| (*row, f32::from(*value))).collect()
            };
            let (a, b) = (numbers(&a), numbers(&b));
            let mut sum = gradient(&a, 1.0);
            sum.add(&gradient(&b, 2.0));
            prop_assert_eq!(flat(&sum), flat(&gradient(&[a, b].concat(), 3.0)));
            let losses = Losses { training: 3.0, deciding: -3.0 };
            prop_assert!(sum.rows().is_sorted() && sum.losses == losses);
            let mut copy = gradient(&[], 3.0);
            prop_assert!(copy.set_rows(&sum.rows_to_bytes()));
            prop_assert_eq!(&copy, &sum);
            for parts in [2, 4] {
                let share = |part| TableShare::part(TABLE, part, parts);
                let mut values = vec![0.0; TABLE.len()];
                for (part, bytes) in sum.parts_to_bytes(share(0)).iter().enumerate() {
                    let mut held = GradientSum::of_rows(share(part).held());
                    prop_assert!(held.set_rows(bytes));
                    for (row, of_row) in held.rows().iter().zip(held.values().chunks(TABLE.width)) {
                        let start = share(part).number(*row) * TABLE.width;
                        values[start..start + TABLE.width].copy_from_slice(of_row);
                    }
                }
                prop_assert_eq!(&values, &flat(&sum)[..TABLE.len()]);
            }
        }

        #[test]
        fn bytes_of_another_rank_are_never_trusted(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut sum = gradient(&[], 0.0);
            if sum.set_rows(&bytes) {
                prop_assert_eq!(sum.values().len(), sum.rows().len() * TABLE.width);
                prop_assert!(sum.rows().iter().all(|row| (*row as usize) < TABLE.rows));
            }
        }
    }
}
