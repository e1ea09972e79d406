//! Which samples of a split are scored, where not all of them are to be.
//!
//! A split is put in one order, drawn with the seed, of which N samples are the first N: fewer are a subset
//! of more. What is drawn is then scored in the order of time. The first in time instead are a handful of
//! users, and may be easier or harder than the rest.

use std::ops::Range;

use reclora_storage::dataset::{Dataset, Sample};
use reclora_storage::permutation::EpochOrder;
use serde::{Deserialize, Serialize};

use crate::config::LimitOrder;
use crate::error::Result;

/// Sets the draw apart from the order of epochs, and the few-shot set, which have the same seed.
const DRAW: u64 = u64::MAX - 2;

/// How the scored samples were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoredOrder {
    /// All were scored.
    All,
    /// The first in time.
    First,
    /// Drawn at random.
    Sample,
}

/// Samples of a split, in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    indices: Indices,
    of: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Indices {
    First(Range<u64>),
    /// Ascending.
    Sample(Vec<u64>),
}

impl Drawn {
    /// At most `count` samples of `split`.
    pub fn new(split: Range<u64>, count: u64, order: LimitOrder, seed: u64) -> Self {
        let of = split.end - split.start;
        let indices = if count < of && order == LimitOrder::Sample {
            let order = EpochOrder::new(of, seed, DRAW);
            let mut drawn: Vec<u64> =
                (0..count).map(|position| split.start + order.at(position)).collect();
            drawn.sort_unstable();
            Indices::Sample(drawn)
        } else {
            Indices::First(split.start..split.start + count.min(of))
        };
        Self { indices, of }
    }

    /// Those of a limit, of which 0 is none.
    pub fn limited(split: Range<u64>, limit: u64, order: LimitOrder, seed: u64) -> Self {
        Self::new(split, if limit == 0 { u64::MAX } else { limit }, order, seed)
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        match &self.indices {
            Indices::First(range) => range.end - range.start,
            Indices::Sample(indices) => indices.len() as u64,
        }
    }

    /// How they were chosen.
    pub fn order(&self) -> ScoredOrder {
        match &self.indices {
            _ if self.len() == self.of => ScoredOrder::All,
            Indices::First(_) => ScoredOrder::First,
            Indices::Sample(_) => ScoredOrder::Sample,
        }
    }

    /// The index of the sample at a position, which must be below [`Self::len`].
    pub fn at(&self, position: u64) -> u64 {
        match &self.indices {
            Indices::First(range) => range.start + position,
            Indices::Sample(indices) => indices[position as usize],
        }
    }

    /// All indices.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        (0..self.len()).map(|position| self.at(position))
    }

    /// All samples.
    pub fn samples(&self, dataset: &Dataset) -> Result<Vec<Sample>> {
        self.iter().map(|index| Ok(dataset.sample(index)?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drawn(split: Range<u64>, count: u64, order: LimitOrder) -> Vec<u64> {
        Drawn::new(split, count, order, 42).iter().collect()
    }

    #[test]
    fn a_limit_of_none_and_one_that_leaves_nothing_out_are_all() {
        for order in [LimitOrder::Sample, LimitOrder::First] {
            for limit in [0, 7, 8, u64::MAX] {
                let all = Drawn::limited(10..17, limit, order, 1);
                assert_eq!((all.order(), all.len()), (ScoredOrder::All, 7));
                assert!(all.iter().eq(10..17));
            }
            assert_eq!(Drawn::new(10..17, 0, order, 1).len(), 0);
            assert_eq!(Drawn::limited(5..5, 3, order, 1).len(), 0);
        }
        assert_eq!(Drawn::limited(10..17, 3, LimitOrder::First, 1).order(), ScoredOrder::First);
        assert_eq!(Drawn::limited(10..17, 3, LimitOrder::Sample, 1).order(), ScoredOrder::Sample);
        assert_eq!(drawn(10..17, 3, LimitOrder::First), [10, 11, 12]);
    }

    /// A change of these numbers changes what every run with a limit scores.
    #[test]
    fn d1_the_draw_is_pinned() {
        assert_eq!(drawn(1000..1010, 4, LimitOrder::Sample), PINNED);
        let other = Drawn::new(1000..1010, 4, LimitOrder::Sample, 43);
        assert!(!other.iter().eq(PINNED));
    }
    const PINNED: [u64; 4] = [1001, 1002, 1003, 1007];

    #[test]
    fn every_sample_is_as_likely_as_the_others() {
        let mut hits = [0_u32; 10];
        for seed in 0..5000 {
            for index in Drawn::new(20..30, 3, LimitOrder::Sample, seed).iter() {
                hits[(index - 20) as usize] += 1;
            }
        }
        assert!(hits.iter().all(|h| (1350..1650).contains(h)), "{hits:?}");
    }

    proptest! {
        /// Each once, in the order of time, and fewer are a subset of more.
        #[test]
        fn d3_fewer_are_a_subset_of_more(n in 1_u64..300, a in 0_u64..310, b in 0_u64..310) {
            let split = 50..50 + n;
            let [few, many] = [a.min(b), a.max(b)].map(|n| drawn(split.clone(), n, LimitOrder::Sample));
            for list in [&few, &many] {
                prop_assert!(list.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(list.iter().all(|index| split.contains(index)));
            }
            prop_assert_eq!(many.len() as u64, a.max(b).min(n));
            prop_assert!(few.iter().all(|index| many.contains(index)));
        }
    }
}
