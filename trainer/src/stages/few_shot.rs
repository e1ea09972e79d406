//! The few-shot set: which samples of train the adapters are tuned on.
//!
//! All of train is put in one order, of which a set of N is the first N: smaller sets are prefixes of
//! larger ones. The order is drawn with the seed; where it is stratified it goes round the strata, taking
//! one sample of each, in an order drawn within the stratum.

use std::collections::HashMap;
use std::ops::Range;

use reclora_storage::dataset::Dataset;
use reclora_storage::permutation::EpochOrder;

use super::inputs::Lens;
use crate::config::FewShotSampler;
use crate::error::Result;

/// Sets the draw apart from the order of epochs, which has the same seed.
const DRAW: u64 = u64::MAX;
/// Strata of time, and of the CRM's scores.
const TIME_STRATA: u64 = 16;
const SCORE_STRATA: usize = 10;

/// The first `count` samples of the order (all of `train` where it has fewer), as indices of the dataset. `train` is
/// train, or the holdout of it.
pub fn few_shot(
    dataset: &Dataset,
    train: Range<u64>,
    lens: &Lens,
    sampler: FewShotSampler,
    count: usize,
    seed: u64,
) -> Result<Vec<u64>> {
    let order = EpochOrder::new(train.end - train.start, seed, DRAW);
    if order.is_empty() {
        return Ok(Vec::new());
    }
    let drawn = (0..order.len()).map(|position| train.start + order.at(position));
    Ok(match sampler {
        FewShotSampler::Uniform => drawn.take(count).collect(),
        FewShotSampler::User => {
            let users = drawn.map(|index| Ok((index, u64::from(dataset.sample(index)?.user))));
            round_robin(users.collect::<Result<Vec<_>>>()?, count)
        }
        FewShotSampler::Time => {
            // Samples are in the order of time.
            let stratum = |index| (index - train.start) * TIME_STRATA / order.len();
            round_robin(drawn.map(|index| (index, stratum(index))).collect(), count)
        }
        FewShotSampler::CrmScore => {
            let logits = train.clone().map(|index| lens.logit(index));
            let logits: Vec<f32> = logits.collect::<Result<_>>()?;
            let mut sorted = logits.clone();
            sorted.sort_unstable_by(f32::total_cmp);
            let bound = |stratum: usize| sorted[stratum * sorted.len() / SCORE_STRATA];
            let bounds: Vec<f32> = (1..SCORE_STRATA).map(bound).collect();
            let stratum = |index: u64| {
                let logit = logits[(index - train.start) as usize];
                bounds.partition_point(|bound| bound.total_cmp(&logit).is_le()) as u64
            };
            round_robin(drawn.map(|index| (index, stratum(index))).collect(), count)
        }
    })
}

/// Of samples and their strata, in the order drawn: first the first of every stratum, then the second of
/// every stratum, and so on.
fn round_robin(drawn: Vec<(u64, u64)>, count: usize) -> Vec<u64> {
    let mut seen: HashMap<u64, u64> = HashMap::new();
    let rounds = drawn.into_iter().map(|(index, stratum)| {
        let round = seen.entry(stratum).or_default();
        *round += 1;
        (*round, index)
    });
    let mut rounds: Vec<(u64, u64)> = rounds.collect();
    // Stable: within a round as drawn.
    rounds.sort_by_key(|(round, _)| *round);
    rounds.into_iter().take(count).map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_round_takes_one_of_every_stratum() {
        let drawn = vec![(10, 1), (11, 1), (12, 2), (13, 1), (14, 3), (15, 2)];
        assert_eq!(round_robin(drawn, 9), [10, 12, 14, 11, 15, 13]);
    }

    proptest! {
        /// Any prefix has of every stratum as many as of any other, but for one and for what there is.
        #[test]
        fn every_prefix_is_balanced(
            strata in prop::collection::vec(0u64..5, 0..60), count in 0usize..70,
        ) {
            let drawn: Vec<(u64, u64)> = (0..).zip(strata.iter().copied()).collect();
            let all = round_robin(drawn.clone(), usize::MAX);
            let prefix = round_robin(drawn, count);
            prop_assert_eq!(&prefix[..], &all[..count.min(all.len())]);
            let of = |list: &[u64], stratum| {
                list.iter().filter(|index| strata[**index as usize] == stratum).count()
            };
            let most = (0..5).map(|stratum| of(&prefix, stratum)).max().unwrap_or(0);
            for stratum in 0..5 {
                prop_assert!(of(&prefix, stratum) + 1 >= most.min(of(&all, stratum) + 1));
            }
        }
    }
}
