//! A rank's own part of the canonical sum of gradients.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use reclora_comm::tree;

use super::buckets::Buckets;
use super::gradient::{Gradient, GradientSum, Table};
use super::train::Objective;
use crate::error::Result;

/// The micro-batches of one global batch.
pub struct Leaves<'a> {
    /// What is trained.
    pub objective: &'a dyn Objective,
    /// Where its gradient is taken.
    pub parameters: &'a [f32],
    /// The table the parameters begin with.
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
        self.part(own, &|leaf| self.leaf(leaf, leaf - first, buckets))
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
        let mut gradient = Gradient::zero(self.table, self.parameters.len());
        let mut handing = buckets.of_leaf(own_index);
        let end = ((index + 1) * self.piece).min(self.batch.len());
        let samples = &self.batch[(index * self.piece).min(end)..end];
        let mut loss = 0.0;
        if !samples.is_empty() && !self.given_up.load(Ordering::Relaxed) {
            let weight = 1.0 / self.batch.len() as f32;
            let mut finished = |dense: &[f32], from: usize| handing.finish(dense, from);
            loss = self.objective.micro_batch(
                self.parameters,
                samples,
                self.epoch,
                weight,
                &mut gradient,
                &mut finished,
            )?;
        }
        let mut sum = gradient.sum(loss);
        handing.finish(&std::mem::take(sum.dense_mut()), 0);
        Ok(sum)
    }
}
