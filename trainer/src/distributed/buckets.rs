//! The dense part of a gradient in buckets, each summed and on its way to the other ranks as soon as its
//! layers' backward is done.
//!
//! Backward goes from the last layer to the first, and parameters lie in the order of layers: what is
//! final of a micro-batch's gradient is its end, and grows downwards. So buckets are cut from the end.
//! Each is summed over a rank's micro-batches in the order of the tree ([`reclora_comm::tree`]), whichever
//! of them is done first.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use reclora_comm::tree::sum_into;

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

    /// Hands over the buckets of micro-batch `leaf` one by one.
    pub fn of_leaf(&self, leaf: usize) -> LeafBuckets<'_> {
        LeafBuckets { buckets: self, leaf, next: 0 }
    }

    fn add(&self, bucket: usize, leaf: usize, values: Vec<f32>) {
        let mut waiting = self.waiting[bucket].lock().unwrap_or_else(PoisonError::into_inner);
        let (mut node, mut sum) = (self.leaves + leaf, values);
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

/// What a micro-batch has handed over.
pub struct LeafBuckets<'a> {
    buckets: &'a Buckets<'a>,
    leaf: usize,
    next: usize,
}

impl LeafBuckets<'_> {
    /// Hands over all buckets of `dense` that begin at `from` or behind, and have not been yet.
    pub fn finish(&mut self, dense: &[f32], from: usize) {
        while let Some(range) = self.buckets.ranges.get(self.next).filter(|r| r.start >= from) {
            self.buckets.add(self.next, self.leaf, dense[range.clone()].to_vec());
            self.next += 1;
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
            let mut handing: Vec<_> = (0..leaves.len()).map(|leaf| buckets.of_leaf(leaf)).collect();
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
