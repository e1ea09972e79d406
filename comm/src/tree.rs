//! The canonical order of sums (D-1).
//!
//! Floating-point addition is not associative, so a sum has the same bits everywhere only if it is
//! added in the same order everywhere. The order here is a binary tree over the leaf index: the
//! leaves `lo..hi` are split at the largest power of two below their number, and each half is summed
//! by itself. With a power-of-two number of leaves, cut into equal contiguous blocks for a
//! power-of-two number of ranks, each rank's block is a subtree: ranks sum their blocks, and the
//! blocks' sums are the leaves of the tree that remains. For other numbers of ranks the order is
//! fixed too, but the bits may differ from those of other world sizes.

use std::ops::Range;

/// Adds `other` to `target`, element by element.
///
/// # Panics
/// If the lengths differ: both are buffers of the same model, so that would be a defect here.
pub fn sum_into(target: &mut [f32], other: &[f32]) {
    assert_eq!(target.len(), other.len(), "buffers of different length can't be summed");
    for (a, b) in target.iter_mut().zip(other) {
        *a += b;
    }
}

/// Where the leaves `lo..hi` are split: the left part holds the largest power of two below their
/// number. `None` for fewer than two leaves.
pub fn split(leaves: &Range<usize>) -> Option<usize> {
    let count = leaves.end.saturating_sub(leaves.start);
    (count > 1).then(|| leaves.start + count.next_power_of_two() / 2)
}

/// The sum of `leaves` (buffers of one length) in canonical order; `None` when there are none.
pub fn sum(leaves: Vec<Vec<f32>>) -> Option<Vec<f32>> {
    fold(leaves, |left, right| sum_into(left, &right))
}

/// Values added together by [`sum_block`]: few enough for the first level of the cache.
pub(crate) const BLOCK: usize = 2048;

/// What becomes of the values that a leaf of [`sum_block`] is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// They are replaced by the leaf's.
    Copy,
    /// The leaf's are added to them.
    Add,
}

/// The sum in canonical order of the leaves `range`, at most [`BLOCK`] values each, into `sum`.
pub(crate) fn sum_block(
    range: Range<usize>,
    leaf: &impl Fn(usize, Take, &mut [f32]),
    sum: &mut [f32],
) {
    let Some(middle) = split(&range) else {
        if !range.is_empty() {
            leaf(range.start, Take::Copy, sum);
        }
        return;
    };
    sum_block(range.start..middle, leaf, sum);
    if middle + 1 == range.end {
        return leaf(middle, Take::Add, sum);
    }
    let mut right = [0.0; BLOCK];
    let right = &mut right[..sum.len()];
    sum_block(middle..range.end, leaf, right);
    sum_into(sum, right);
}

/// Leaves of any kind, added in canonical order by `add`; `None` when there are none.
pub fn fold<T>(leaves: Vec<T>, add: impl Fn(&mut T, T)) -> Option<T> {
    let count = leaves.len();
    fold_range(&mut leaves.into_iter(), 0..count, &add)
}

/// The sum of `range`, whose leaves are the next ones.
fn fold_range<T>(
    leaves: &mut impl Iterator<Item = T>,
    range: Range<usize>,
    add: &impl Fn(&mut T, T),
) -> Option<T> {
    let Some(middle) = split(&range) else { return leaves.next() };
    let mut left = fold_range(leaves, range.start..middle, add)?;
    add(&mut left, fold_range(leaves, middle..range.end, add)?);
    Some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn four_leaves_are_added_in_pairs() {
        let leaves = [1e8f32, 1.0, -1e8, 1.0];
        let expected = (leaves[0] + leaves[1]) + (leaves[2] + leaves[3]);
        let sum = sum(leaves.iter().map(|&leaf| vec![leaf]).collect()).unwrap();
        assert_eq!(bits(&sum), bits(&[expected]));
    }

    #[test]
    fn three_leaves_split_after_two() {
        assert_eq!(split(&(0..3)), Some(2));
        assert_eq!(split(&(4..5)), None);
        assert_eq!(sum(Vec::new()), None);
    }

    proptest! {
        /// D-1: 8 leaves summed at once, or in equal blocks by 1, 2, 4 or 8 ranks: the same bits.
        #[test]
        fn d1_blocks_of_ranks_give_the_same_bits(
            leaves in prop::collection::vec(prop::collection::vec(prop::num::f32::ANY
                .prop_filter("a sum with NaN has no canonical bits", |v| v.is_finite()), 3), 8),
        ) {
            let whole = sum(leaves.clone()).unwrap();
            for ranks in [1, 2, 4, 8] {
                let blocks: Vec<_> =
                    leaves.chunks(8 / ranks).map(|block| sum(block.to_vec()).unwrap()).collect();
                let summed = sum(blocks).unwrap();
                for (a, b) in whole.iter().zip(&summed) {
                    prop_assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
                }
            }
        }
    }
}
