//! The gradient of one step: from micro-batches of an [`Objective`] to the sum over all ranks.
//!
//! ```text
//! global batch ─ cut into M micro-batches, the leaves of one binary tree
//!    │            a rank has a block of them: a subtree                        Leaves
//!    ▼
//! objective ──── forward, loss, backward, last layer first                    Leaves::block
//!    │            "from this place on nothing more is added"                   Ready
//!    │            a CRM takes several small micro-batches at once             Leaves::together
//!    ▼
//! buckets ────── of each, the leaves are added in the order of the tree       Buckets::add
//!    │            as soon as its last leaf has handed it over
//!    ▼
//! ranks ──────── the rest of the tree, while lower layers still compute       gradient
//!    │            the last bucket takes the losses along
//!    ▼
//! one sum, the same bits on every rank, however many there are
//! ```
//!
//! Backward goes from the last layer to the first, and parameters lie in the order of layers: what is final of a
//! micro-batch's gradient is its end, and grows downwards. So buckets are cut from the end. Each is summed over a
//! rank's micro-batches in the order of the tree ([`reclora_comm::tree`]), whichever of them is done first.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reclora_comm::tree::sum_into;
use reclora_comm::{CommError, Communicator, tree};

use super::exchange::Held;
use crate::error::{Result, TrainerError};
use crate::metrics::Validation;
use crate::parameters::{Gradient, GradientSum, Losses, Parameters, Ready, Table};

/// What is trained: all that the training loop knows of a model.
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

/// Samples that a thread computes at once at most, where micro-batches are joined: by then a pass over the weights
/// costs little beside them, and more would only take memory.
const JOINED_SAMPLES: usize = 256;

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
        let (first, together) = (own.start, self.together(own.len()));
        let mut sum =
            self.part(own, together, &|block: Range<usize>| self.block(block, first, buckets))?;
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

    /// How many of `own` micro-batches are computed at once: small ones, as many as leave no thread idle. A power of
    /// two, so that they are a subtree.
    fn together(&self, own: usize) -> usize {
        if !self.objective.joins_micro_batches() {
            return 1;
        }
        let most = JOINED_SAMPLES / self.piece.max(1);
        let each = own / rayon::current_num_threads().next_power_of_two();
        most.min(each).checked_ilog2().map_or(1, |log| 1 << log)
    }

    fn part(
        &self,
        range: Range<usize>,
        together: usize,
        block: &(dyn Fn(Range<usize>) -> Result<GradientSum> + Sync),
    ) -> Result<GradientSum> {
        let middle = tree::split(&range).filter(|_| range.len() > together);
        let Some(middle) = middle else { return block(range) };
        let (left, right) = rayon::join(
            || self.part(range.start..middle, together, block),
            || self.part(middle..range.end, together, block),
        );
        let mut sum = left?;
        sum.add(&right?);
        Ok(sum)
    }

    /// The sum of some micro-batches, which are a subtree; the first of this rank's is number `first`.
    fn block(
        &self,
        block: Range<usize>,
        first: usize,
        buckets: &Buckets<'_>,
    ) -> Result<GradientSum> {
        // Of the rows that are here: the numbers of others would be of no use.
        let rows = self.parameters.rows.map_or(self.table.rows, <[u32]>::len);
        let samples = |block| Self::samples(self.batch, self.piece, block);
        let end = |leaf| samples(block.start..leaf).len();
        let ends = (block.start + 1..block.end).map(end).collect();
        let table = Table { rows, ..self.table };
        let mut gradient = Gradient::of_several(table, self.parameters.dense.len(), ends);
        let mut handing = buckets.of_leaves(block.start - first..block.end - first);
        let samples = samples(block.clone());
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
        handing.finish_all(std::mem::take(sum.dense_mut()));
        Ok(sum)
    }
}

/// Ranges of `length` values, at most `size` (at least 1) each, the last ones first. One where there is
/// nothing.
pub fn cut(length: usize, size: usize) -> Vec<Range<usize>> {
    let size = size.max(1);
    let count = length.div_ceil(size).max(1);
    let range = |index: usize| length.saturating_sub((index + 1) * size)..length - index * size;
    (0..count).map(range).collect()
}

/// The buckets of one step: sums of one rank's micro-batches, sent on when complete.
pub struct Buckets<'a> {
    ranges: &'a [Range<usize>],
    /// Micro-batches of this rank: a power of two, so that the tree over them is a full one.
    leaves: usize,
    /// Of each bucket the sums that wait for their neighbour: node 1 is the root, 2n and 2n + 1 are below
    /// node n, and the last `leaves` nodes are the micro-batches.
    waiting: Vec<Mutex<Vec<Option<Vec<f32>>>>>,
    complete: Sender<(usize, Vec<f32>)>,
}

impl<'a> Buckets<'a> {
    /// Buckets of `leaves` micro-batches, and where the complete ones come out, with their numbers.
    pub fn new(ranges: &'a [Range<usize>], leaves: usize) -> (Self, Receiver<(usize, Vec<f32>)>) {
        debug_assert!(leaves.is_power_of_two(), "checked with the plan");
        let (complete, received) = channel();
        let waiting = ranges.iter().map(|_| Mutex::new(vec![None; 2 * leaves])).collect();
        (Self { ranges, leaves, waiting, complete }, received)
    }

    /// Hands over the buckets of the micro-batches `leaves` one by one: a subtree, whose sum they are.
    pub fn of_leaves(&self, leaves: Range<usize>) -> LeafBuckets<'_> {
        LeafBuckets { buckets: self, node: (self.leaves + leaves.start) / leaves.len(), next: 0 }
    }

    fn add(&self, bucket: usize, node: usize, values: Vec<f32>) {
        let mut waiting = self.waiting[bucket].lock().unwrap_or_else(PoisonError::into_inner);
        let (mut node, mut sum) = (node, values);
        while node > 1 {
            let Some(other) = waiting[node ^ 1].take() else {
                waiting[node] = Some(sum);
                return;
            };
            let is_left = node.is_multiple_of(2);
            let (mut left, right) = if is_left { (sum, other) } else { (other, sum) };
            sum_into(&mut left, &right);
            (node, sum) = (node / 2, left);
        }
        // Nobody listens any more only after an error that the listener returns.
        let _ = self.complete.send((bucket, sum));
    }
}

/// What a micro-batch, or several together, have handed over.
pub struct LeafBuckets<'a> {
    buckets: &'a Buckets<'a>,
    /// Whose sum it is, in the tree.
    node: usize,
    next: usize,
}

impl LeafBuckets<'_> {
    /// Hands over all buckets of `dense` that begin at `from` or behind, and have not been yet.
    pub fn finish(&mut self, dense: &[f32], from: usize) {
        while let Some(range) = self.buckets.ranges.get(self.next).filter(|r| r.start >= from) {
            self.buckets.add(self.next, self.node, dense[range.clone()].to_vec());
            self.next += 1;
        }
    }

    /// Hands over all buckets of `dense` that have not been yet.
    pub fn finish_all(&mut self, dense: Vec<f32>) {
        if self.next == 0 && self.buckets.ranges.len() == 1 {
            self.next = 1;
            return self.buckets.add(0, self.node, dense);
        }
        self.finish(&dense, 0);
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reclora_comm::tree;

    #[test]
    fn cuts_are_made_from_the_end_and_hold_everything() {
        assert_eq!(cut(7, 3), [4..7, 1..4, 0..1]);
        assert_eq!(cut(6, 3), [3..6, 0..3]);
        for (length, size) in [(2, 100), (0, 3)] {
            let ranges = cut(length, size);
            assert_eq!((ranges.len(), ranges[0].clone()), (1, 0..length));
        }
        assert_eq!(cut(2, 0), [1..2, 0..1]);
    }

    proptest! {
        /// D-1: whichever micro-batch finishes whichever part first, the bits are the tree's.
        #[test]
        fn d1_any_order_of_finishing_gives_the_sum_of_the_tree(
            leaves in (0u32..4).prop_flat_map(|depth| prop::collection::vec(
                prop::collection::vec(-1e3f32..1e3, 11), 1 << depth)),
            size in 1usize..13,
            turns in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12), 0..60),
        ) {
            let ranges = cut(11, size);
            let (buckets, complete) = Buckets::new(&ranges, leaves.len());
            let mut handing: Vec<_> = (0..leaves.len()).map(|leaf| buckets.of_leaves(leaf..leaf + 1)).collect();
            for (leaf, from) in turns {
                let leaf = leaf.index(leaves.len());
                handing[leaf].finish(&leaves[leaf], from);
            }
            for (leaf, handing) in handing.iter_mut().enumerate() {
                handing.finish(&leaves[leaf], 0);
            }
            drop(handing);
            drop(buckets);
            let expected = tree::sum(leaves).unwrap();
            let mut sums: Vec<_> = complete.iter().collect();
            sums.sort_by_key(|(bucket, _)| *bucket);
            prop_assert_eq!(sums.len(), ranges.len());
            for (range, (_, sum)) in ranges.into_iter().zip(sums) {
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&sum), bits(&expected[range]));
            }
        }
    }
}
