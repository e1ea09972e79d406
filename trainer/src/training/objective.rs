//! What is trained: the one trait through which the training loop knows a model.

use std::ops::Range;

use reclora_comm::Communicator;

use super::exchange::Held;
use crate::error::Result;
use crate::metrics::Validation;
use crate::parameters::{Gradient, Losses, Parameters, Ready};

/// What is trained.
pub trait Objective: Sync {
    /// Adds `weight` times the gradient of each sample's loss to `gradient` and returns the sums of
    /// the losses. A pure function of its arguments; `samples` are positions in the training set.
    /// Whoever tells `finished` what is final early lets it travel while the rest is computed.
    /// Where `parameters` are some rows of the table only, rows of `gradient` are numbered as they lie
    /// there.
    fn micro_batch(
        &self,
        parameters: Parameters<'_>,
        samples: &[u64],
        epoch: u64,
        weight: f32,
        gradient: &mut Gradient,
        finished: &mut Ready<'_>,
    ) -> Result<Losses>;

    /// Whether `micro_batch` may be given the samples of several micro-batches, one after the other, which
    /// [`Gradient::bounds`] tells apart. The sums are then, to the bit, those of micro-batches by themselves in the
    /// order of the tree. Worth its while where a pass over the parameters costs as much as a micro-batch's samples.
    fn joins_micro_batches(&self) -> bool {
        false
    }

    /// Whether micro-batches tell the loss of the choice between yes and no apart.
    fn tells_deciding_loss(&self) -> bool {
        false
    }

    /// The rows of the table that samples read, in any order; none without a table.
    fn rows(&self, _samples: &[u64]) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    /// Names of the tensors in the flat parameter vector, as users know them, and their places.
    fn tensors(&self) -> Vec<(String, Range<usize>)>;

    /// How the valid samples are scored, the same on every rank.
    fn validate(&self, held: Held<'_>, comm: &mut dyn Communicator) -> Result<Validation>;
}

/// Name of the tensor at a place of the flat parameter vector.
pub fn tensor_at(objective: &dyn Objective, place: usize) -> String {
    let tensor = objective.tensors().into_iter().find(|(_, range)| range.contains(&place));
    tensor.map_or_else(|| format!("parameter {place}"), |(name, _)| name)
}
