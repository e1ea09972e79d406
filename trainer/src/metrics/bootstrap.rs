//! Percentile bootstrap of AUC and group AUC (Efron, 1979).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::Scored;
use super::auc::{area, user_aucs, weighted_mean};

/// The 95 % percentile interval of the AUC over `resamples` resamples of whole samples.
///
/// The samples are sorted once; a resample is a count per sample, so each costs one linear pass.
/// `None` when no resample has both classes. Resamples with one class only are left out.
pub fn auc_interval(scored: &[Scored], resamples: usize, seed: u64) -> Option<[f64; 2]> {
    let mut order = in_order(scored);
    // Drawn by their places in this order, whatever order was passed.
    order.iter_mut().enumerate().for_each(|(place, sample)| sample.2 = place);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut counts = vec![0; order.len()];
    interval((0..resamples).filter_map(|_| {
        draw(&mut counts, &mut random);
        counted_auc(&order, &counts)
    }))
}

/// The 95 % percentile interval of the group AUC over `resamples` resamples of whole users: the
/// samples of a user are not independent. `None` when no user has an AUC.
pub fn group_auc_interval(scored: &[Scored], resamples: usize, seed: u64) -> Option<[f64; 2]> {
    let users = user_aucs(scored);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    interval((0..resamples).filter_map(|_| {
        let draws = (0..users.len()).map(|_| random.random_range(0..users.len() as u64));
        weighted_mean(draws.filter_map(|user| users.get(user as usize).copied()))
    }))
}

/// How much higher one model's AUC is than another's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AucDifference {
    /// Of the samples as they are.
    pub difference: f64,
    /// The 95 % percentile interval over resamples of them; the same for both models.
    pub ci95: Option<[f64; 2]>,
}

/// The AUC of `second` less that of `first`, on the same samples in the same order. Both are taken of the same
/// resamples, so that what makes a sample easy or hard for either does not widen the interval.
///
/// `None` where the samples are of one class, or their number or labels differ.
pub fn auc_difference(
    first: &[Scored],
    second: &[Scored],
    resamples: usize,
    seed: u64,
) -> Option<AucDifference> {
    let labels = |scored: &[Scored]| scored.iter().map(|s| s.label).collect::<Vec<_>>();
    if labels(first) != labels(second) {
        return None;
    }
    let orders = [first, second].map(in_order);
    let difference = |counts: &[u64]| {
        let [first, second] = orders.each_ref().map(|order| counted_auc(order, counts));
        Some(second? - first?)
    };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut counts = vec![1; first.len()];
    let estimate = difference(&counts)?;
    let ci95 = interval((0..resamples).filter_map(|_| {
        draw(&mut counts, &mut random);
        difference(&counts)
    }));
    Some(AucDifference { difference: estimate, ci95 })
}

/// Probabilities and labels from the least likely on, each with the place of its sample.
fn in_order(scored: &[Scored]) -> Vec<(f32, bool, usize)> {
    let mut order: Vec<_> =
        scored.iter().enumerate().map(|(place, s)| (s.probability, s.label, place)).collect();
    // The label too, so that equal probabilities come in one order whatever order was passed.
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    order
}

/// The AUC where each sample is there as often as `counts` says, by its place.
fn counted_auc(order: &[(f32, bool, usize)], counts: &[u64]) -> Option<f64> {
    area(order.chunk_by(|a, b| a.0 == b.0).map(|group| {
        let (mut likes, mut dislikes) = (0, 0);
        for (_, label, place) in group {
            *(if *label { &mut likes } else { &mut dislikes }) += counts[*place];
        }
        (likes, dislikes)
    }))
}

/// How often each sample is in a resample.
fn draw(counts: &mut [u64], random: &mut ChaCha8Rng) {
    counts.fill(0);
    for _ in 0..counts.len() {
        counts[random.random_range(0..counts.len() as u64) as usize] += 1;
    }
}

/// The 2.5 % and 97.5 % quantiles, with linear interpolation.
fn interval(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let quantile = |share: f64| {
        let at = share * values.len().saturating_sub(1) as f64;
        let (low, high) = (values.get(at.floor() as usize)?, values.get(at.ceil() as usize)?);
        Some(low + (high - low) * at.fract())
    };
    Some([quantile(0.025)?, quantile(0.975)?])
}

#[cfg(test)]
mod tests {
    use super::super::{auc, tests::samples};
    use super::*;

    #[test]
    fn the_interval_holds_the_estimate_and_shrinks_with_data() {
        let rows = |n: u32| -> Vec<Scored> {
            (0..n)
                .map(|i| {
                    let label = i % 3 == 0;
                    let noise = (i.wrapping_mul(2_654_435_761) >> 8) % 1000;
                    let probability = noise as f32 / 1500.0 + if label { 0.2 } else { 0.0 };
                    Scored { user: 0, label, probability }
                })
                .collect()
        };
        let mut widths = Vec::new();
        for n in [100, 2000] {
            let scored = rows(n);
            let [low, high] = auc_interval(&scored, 400, 7).unwrap();
            let estimate = auc(&scored).unwrap();
            assert!(low < estimate && estimate < high, "{low} {estimate} {high}");
            widths.push(high - low);
        }
        assert!(widths[1] < widths[0] / 2.0, "{widths:?}");
    }

    #[test]
    fn a_difference_is_of_the_same_resamples() {
        let model = |noise: u32| -> Vec<Scored> {
            (0..600u32)
                .map(|i| {
                    let label = i % 3 == 0;
                    let odd = (i.wrapping_mul(2_654_435_761) >> 8) % 1000;
                    let probability = (odd * noise) as f32 / 1e6 + if label { 0.2 } else { 0.0 };
                    Scored { user: 0, label, probability }
                })
                .collect()
        };
        let (good, bad) = (model(300), model(900));
        let same = auc_difference(&good, &good, 100, 1).unwrap();
        assert_eq!(same, AucDifference { difference: 0.0, ci95: Some([0.0, 0.0]) });
        let AucDifference { difference, ci95 } = auc_difference(&bad, &good, 400, 1).unwrap();
        assert!((difference - (auc(&good).unwrap() - auc(&bad).unwrap())).abs() < 1e-12);
        let [low, high] = ci95.unwrap();
        assert!(0.0 < low && low < difference && difference < high, "{low} {difference} {high}");
        // Narrower than intervals of resamples of their own would allow.
        let widths = [&good, &bad].map(|m| auc_interval(m, 400, 1).unwrap()).map(|[l, h]| h - l);
        assert!(high - low < widths[0] + widths[1], "{low} {high} {widths:?}");
        assert_eq!(auc_difference(&good, &bad[..599], 10, 1), None);
        assert_eq!(auc_difference(&good[..1], &bad[..1], 10, 1), None);
    }

    #[test]
    fn the_group_interval_resamples_users() {
        // Half of the users are ranked perfectly, half not at all.
        let mut scored = Vec::new();
        for user in 0..200 {
            let good = user % 2 == 0;
            for label in [true, false] {
                let probability = if label == good { 0.9 } else { 0.1 };
                scored.push(Scored { user, label, probability });
            }
        }
        let [low, high] = group_auc_interval(&scored, 1000, 3).unwrap();
        // A mean of 200 coins: 0.5 ± 1.96 · 0.5 / √200.
        assert!((low - 0.4307).abs() < 0.02 && (high - 0.5693).abs() < 0.02, "{low} {high}");
        assert_eq!(group_auc_interval(&scored[..1], 10, 3), None);
    }

    #[test]
    fn the_interval_depends_on_seed_and_samples_only() {
        let mut scored =
            samples(&[(0, true, 0.9), (1, false, 0.4), (2, true, 0.4), (3, false, 0.1)]);
        let first = auc_interval(&scored, 200, 1);
        scored.reverse();
        assert_eq!(first, auc_interval(&scored, 200, 1));
        assert_eq!(auc_interval(&scored[..1], 200, 1), None);
        assert_eq!(auc_interval(&scored, 0, 1), None);
    }
}
