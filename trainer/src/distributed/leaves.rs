//! A rank's own part of the canonical sum of gradients.

use std::ops::Range;

use reclora_comm::tree;

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
}

impl Leaves<'_> {
    /// The tree's sum over the micro-batches `range`, on all threads.
    pub fn sum(&self, range: Range<usize>) -> Result<GradientSum> {
        let Some(middle) = tree::split(&range) else { return self.leaf(range.start) };
        let (left, right) =
            rayon::join(|| self.sum(range.start..middle), || self.sum(middle..range.end));
        let mut sum = left?;
        sum.add(&right?);
        Ok(sum)
    }

    fn leaf(&self, index: usize) -> Result<GradientSum> {
        let mut gradient = Gradient::zero(self.table, self.parameters.len());
        let end = ((index + 1) * self.piece).min(self.batch.len());
        let samples = &self.batch[(index * self.piece).min(end)..end];
        if samples.is_empty() {
            return Ok(gradient.sum(0.0));
        }
        let weight = 1.0 / self.batch.len() as f32;
        let (parameters, epoch) = (self.parameters, self.epoch);
        let loss = self.objective.micro_batch(parameters, samples, epoch, weight, &mut gradient)?;
        Ok(gradient.sum(loss))
    }
}
