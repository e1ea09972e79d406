//! A rank's own part of the canonical sum of gradients.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use reclora_comm::tree;

use super::buckets::Buckets;
use super::train::Objective;
use crate::error::Result;
use crate::parameters::{Gradient, GradientSum, Losses, Parameters, Table};

/// The micro-batches of one global batch.
pub struct Leaves<'a> {
    /// What is trained.
    pub objective: &'a dyn Objective,
    /// Where its gradient is taken.
    pub parameters: Parameters<'a>,
    /// The whole table the parameters begin with.
    pub table: Table,
    /// The samples of the batch, by their position in the training set.
    pub batch: &'a [u64],
    /// Samples of a micro-batch.
    pub piece: usize,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Set when nobody needs the sum any more: micro-batches that have not begun are left out.
    pub given_up: &'a AtomicBool,
}

impl Leaves<'_> {
    /// The sum over the micro-batches `own`, on all threads: what is dense goes to `buckets`, the rest is
    /// returned.
    pub fn sum(&self, own: Range<usize>, buckets: &Buckets<'_>) -> Result<GradientSum> {
        let first = own.start;
        let mut sum = self.part(own, &|leaf| self.leaf(leaf, leaf - first, buckets))?;
        if let Some(rows) = self.parameters.rows {
            sum.renumber(self.table, rows);
        }
        Ok(sum)
    }

    /// The samples of the micro-batches `range`.
    pub fn samples(batch: &[u64], piece: usize, range: Range<usize>) -> &[u64] {
        let end = (range.end * piece).min(batch.len());
        &batch[(range.start * piece).min(end)..end]
    }

    fn part(
        &self,
        range: Range<usize>,
        leaf: &(dyn Fn(usize) -> Result<GradientSum> + Sync),
    ) -> Result<GradientSum> {
        let Some(middle) = tree::split(&range) else { return leaf(range.start) };
        let (left, right) = rayon::join(
            || self.part(range.start..middle, leaf),
            || self.part(middle..range.end, leaf),
        );
        let mut sum = left?;
        sum.add(&right?);
        Ok(sum)
    }

    fn leaf(&self, index: usize, own_index: usize, buckets: &Buckets<'_>) -> Result<GradientSum> {
        // Of the rows that are here: the numbers of others would be of no use.
        let rows = self.parameters.rows.map_or(self.table.rows, <[u32]>::len);
        let mut gradient =
            Gradient::zero(Table { rows, ..self.table }, self.parameters.dense.len());
        let mut handing = buckets.of_leaf(own_index);
        let samples = Self::samples(self.batch, self.piece, index..index + 1);
        let mut losses = Losses::default();
        if !samples.is_empty() && !self.given_up.load(Ordering::Relaxed) {
            let weight = 1.0 / self.batch.len() as f32;
            let mut finished = |dense: &[f32], from: usize| handing.finish(dense, from);
            losses = self.objective.micro_batch(
                self.parameters,
                samples,
                self.epoch,
                weight,
                &mut gradient,
                &mut finished,
            )?;
        }
        let mut sum = gradient.sum(losses);
        handing.finish(&std::mem::take(sum.dense_mut()), 0);
        Ok(sum)
    }
}
