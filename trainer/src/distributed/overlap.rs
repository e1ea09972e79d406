//! The gradient of a step: computed by threads, and summed over ranks while they still compute.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use reclora_comm::{CommError, Communicator};

use super::buckets::Buckets;
use super::leaves::Leaves;
use super::train::tensor_at;
use crate::error::{Result, TrainerError};
use crate::parameters::{GradientSum, Losses};

/// What to do about a gradient that is not finite.
pub const NOT_FINITE: &str = "lower the learning rate, or look for odd values in the data";

/// How long steps were about other ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Communication {
    /// Time in collectives, the wait for slower ranks included.
    pub total: Duration,
    /// The part of it during which this rank computed nothing.
    pub exposed: Duration,
}

impl Communication {
    /// Adds a collective during which nothing was computed.
    pub fn add_exposed(&mut self, time: Duration) {
        self.total += time;
        self.exposed += time;
    }
}

/// The sum of gradients and losses over all ranks' micro-batches, in the order of the tree, of which
/// `own` are this rank's; `ranges` are the buckets. The rows of a table are those of this rank alone.
/// Also whether any rank `asked`: it travels along, so that all of them know it of the same step.
///
/// # Errors
/// Of the computation, or of a collective.
pub fn gradient(
    leaves: &Leaves<'_>,
    own: Range<usize>,
    ranges: &[Range<usize>],
    asked: bool,
    comm: &mut dyn Communicator,
    communication: &mut Communication,
) -> Result<(GradientSum, bool)> {
    let (buckets, complete) = Buckets::new(ranges, own.len());
    let mut complete = InOrder { complete, early: BTreeMap::new(), next: 0 };
    if comm.world_size() == 1 {
        let sum = leaves.sum(own, &buckets)?;
        drop(buckets);
        return Ok((with_dense(sum, complete), asked));
    }
    let mut spans = Vec::with_capacity(ranges.len());
    let mut reduce = |bucket: usize, mut values: Vec<f32>| -> Result<Vec<f32>> {
        let started = Instant::now();
        comm.all_reduce_sum(&name(bucket), &mut values)
            .map_err(|error| named(leaves, &ranges[bucket], error))?;
        spans.push((started, Instant::now()));
        Ok(values)
    };
    let (sum, asked, computed) = std::thread::scope(|scope| {
        let compute = scope.spawn(move || (leaves.sum(own, &buckets), Instant::now()));
        // The last bucket takes along the losses, which are complete only with it, and who asked.
        let early = complete.by_ref().take(ranges.len() - 1).enumerate();
        let reduced: Result<Vec<_>> = early.map(|(index, values)| reduce(index, values)).collect();
        if reduced.is_err() {
            leaves.given_up.store(true, Ordering::Relaxed);
        }
        let joined = compute.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (mut sum, mut reduced) = (joined.0?, reduced?);
        let mut any = asked;
        if let Some(mut last) = complete.next() {
            let Losses { training, deciding } = sum.losses;
            last.extend([training, deciding, f32::from(u8::from(asked))]);
            let mut last = reduce(ranges.len() - 1, last)?;
            any = last.pop().is_some_and(|ranks| ranks > 0.0);
            sum.losses.deciding = last.pop().unwrap_or_default();
            sum.losses.training = last.pop().unwrap_or_default();
            reduced.push(last);
        }
        Ok::<_, TrainerError>((with_dense(sum, reduced), any, joined.1))
    })?;
    for (started, ended) in spans {
        communication.total += ended - started;
        communication.exposed += ended.saturating_duration_since(started.max(computed));
    }
    Ok((sum, asked))
}

/// The error of a bucket's sum: that a value is not a number, with the tensor's name.
fn named(leaves: &Leaves<'_>, bucket: &Range<usize>, error: CommError) -> TrainerError {
    let CommError::NotANumber { index, .. } = error else { return error.into() };
    let what = match bucket.clone().nth(index) {
        Some(place) => {
            let tensor = tensor_at(leaves.objective, leaves.table.len() + place);
            format!("the gradient of {tensor}, summed over the ranks,")
        }
        // What is sent along with the last bucket.
        None => "the loss".into(),
    };
    TrainerError::NotFinite { what, hint: NOT_FINITE.into() }
}

/// Name of a bucket's sum over ranks.
fn name(bucket: usize) -> String {
    format!("gradient bucket {bucket}")
}

/// A sum with its dense part, of buckets from the last values to the first.
fn with_dense(mut sum: GradientSum, buckets: impl IntoIterator<Item = Vec<f32>>) -> GradientSum {
    let buckets: Vec<Vec<f32>> = buckets.into_iter().collect();
    *sum.dense_mut() = match <[Vec<f32>; 1]>::try_from(buckets) {
        Ok([only]) => only,
        Err(buckets) => buckets.into_iter().rev().flatten().collect(),
    };
    sum
}

/// Complete buckets by their numbers, until there are no more.
struct InOrder {
    complete: Receiver<(usize, Vec<f32>)>,
    early: BTreeMap<usize, Vec<f32>>,
    next: usize,
}

impl Iterator for InOrder {
    type Item = Vec<f32>;

    fn next(&mut self) -> Option<Vec<f32>> {
        loop {
            if let Some(values) = self.early.remove(&self.next) {
                self.next += 1;
                return Some(values);
            }
            let (bucket, values) = self.complete.recv().ok()?;
            self.early.insert(bucket, values);
        }
    }
}
