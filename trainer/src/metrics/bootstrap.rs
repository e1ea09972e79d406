//! Percentile bootstrap of AUC and group AUC over users (Efron, 1979).
//!
//! A resample draws as many users as there are, with replacement, and the samples of each count as often as
//! the user was drawn: samples of one user are not independent. All models are measured on the same draws,
//! so that what makes a user easy or hard for all of them is not in the interval of a difference.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Scored;
use super::auc::{Area, user_aucs, weighted_mean};

/// An interval is given where at least this share of the resamples has a value. The others are of one
/// class; without them the rest is a choice of users, not a resample.
const LEAST_DEFINED: f64 = 0.9;

/// How much higher a figure of one model is than that of another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Of the samples as they are.
    pub difference: f64,
    /// 95 % percentile interval over resamples of users, the same for both models.
    pub ci95: Option<[f64; 2]>,
}

/// How much higher the figures of one model are than those of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Differences {
    /// Of the area under the ROC curve.
    pub auc: Option<Difference>,
    /// Of the AUC within each user.
    pub gauc: Option<Difference>,
}

/// Figures of models on resamples of the users whose samples all of them scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// Of the samples as they are, by model.
    estimates: Vec<Figures>,
    /// Of each resample, by model. Empty with fewer than two users, which leave nothing to draw.
    resamples: Vec<Vec<Figures>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    auc: Option<f64>,
    gauc: Option<f64>,
}

impl Bootstrap {
    /// Measures `models`, each of which scored the same samples in the same order, on `resamples`
    /// resamples. Each is drawn with a key of its own, made of `seed` and its number: threads change nothing.
    ///
    /// `None` where users or labels of a model are not those of the first.
    pub fn new(models: &[Vec<Scored>], resamples: usize, seed: u64) -> Option<Self> {
        let first = models.first().map(Vec::as_slice).unwrap_or_default();
        let same = |(a, b): (&Scored, &Scored)| (a.user, a.label) == (b.user, b.label);
        let is_same =
            |model: &Vec<Scored>| model.len() == first.len() && model.iter().zip(first).all(same);
        if !models.iter().all(is_same) {
            return None;
        }
        let mut users: Vec<u32> = first.iter().map(|sample| sample.user).collect();
        users.sort_unstable();
        users.dedup();
        let ranked: Vec<Ranked> =
            models.par_iter().map(|model| Ranked::new(model, &users)).collect();
        let measured = |counts: &[u32]| ranked.iter().map(|model| model.figures(counts)).collect();
        let estimates = measured(&vec![1; users.len()]);
        let resamples = if users.len() < 2 { 0 } else { resamples };
        let resample = |counts: &mut Vec<u32>, resample| {
            draw(counts, seed, resample as u64);
            measured(counts)
        };
        let resamples = (0..resamples).into_par_iter();
        let resamples = resamples.map_init(|| vec![0; users.len()], resample).collect();
        Some(Self { estimates, resamples })
    }

    /// 95 % interval of a model's AUC, by its place among the models.
    pub fn auc_interval(&self, model: usize) -> Option<[f64; 2]> {
        self.interval(|figures| figures.get(model)?.auc)
    }

    /// 95 % interval of a model's group AUC, by its place among the models.
    pub fn group_auc_interval(&self, model: usize) -> Option<[f64; 2]> {
        self.interval(|figures| figures.get(model)?.gauc)
    }

    /// The figures of `model` less those of `reference`, by their places among the models. A figure that is
    /// not defined has no difference.
    pub fn differences(&self, model: usize, reference: usize) -> Differences {
        let difference = |of: fn(&Figures) -> Option<f64>| {
            let less =
                |figures: &[Figures]| Some(of(figures.get(model)?)? - of(figures.get(reference)?)?);
            let ci95 = || self.interval(less);
            less(&self.estimates).map(|difference| Difference { difference, ci95: ci95() })
        };
        Differences { auc: difference(|f| f.auc), gauc: difference(|f| f.gauc) }
    }

    /// The 2.5 % and 97.5 % quantiles over the resamples, with linear interpolation.
    fn interval(&self, value: impl Fn(&[Figures]) -> Option<f64>) -> Option<[f64; 2]> {
        let mut values: Vec<f64> = self.resamples.iter().filter_map(|f| value(f)).collect();
        if (values.len() as f64) < LEAST_DEFINED * self.resamples.len() as f64 {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let at = share * values.len().saturating_sub(1) as f64;
            let (low, high) = (values.get(at.floor() as usize)?, values.get(at.ceil() as usize)?);
            Some(low + (high - low) * at.fract())
        };
        Some([quantile(0.025)?, quantile(0.975)?])
    }
}

/// How often each user is in a resample.
fn draw(counts: &mut [u32], seed: u64, resample: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(resample);
    counts.fill(0);
    for _ in 0..counts.len() {
        counts[random.random_range(0..counts.len() as u64) as usize] += 1;
    }
}

/// What one model made of the samples, sorted once: a resample is a count for each user, and costs a pass.
struct Ranked {
    /// From the least likely sample on.
    samples: Vec<RankedSample>,
    /// AUC and samples of each user.
    users: Vec<(Option<f64>, f64)>,
}

struct RankedSample {
    /// The user's place.
    user: u32,
    label: bool,
    /// Whether the next one's probability is another.
    ends_tie: bool,
}

impl Ranked {
    /// `users` are those of the samples, sorted.
    fn new(scored: &[Scored], users: &[u32]) -> Self {
        let mut order: Vec<&Scored> = scored.iter().collect();
        order.sort_unstable_by(|a, b| a.probability.total_cmp(&b.probability));
        let next = order.iter().skip(1).map(|sample| Some(sample.probability)).chain([None]);
        let samples = order.iter().zip(next).map(|(sample, next)| RankedSample {
            user: users.partition_point(|user| *user < sample.user) as u32,
            label: sample.label,
            ends_tie: next != Some(sample.probability),
        });
        Self { samples: samples.collect(), users: user_aucs(scored) }
    }

    /// Where the samples of each user are there as often as `counts` says, by the user's place.
    fn figures(&self, counts: &[u32]) -> Figures {
        let users = self.users.iter().zip(counts);
        let users = users
            .filter_map(|((auc, samples), count)| Some(((*auc)?, samples * f64::from(*count))));
        Figures { auc: self.auc(counts), gauc: weighted_mean(users) }
    }

    fn auc(&self, counts: &[u32]) -> Option<f64> {
        let (mut area, mut likes, mut dislikes) = (Area::default(), 0, 0);
        for sample in &self.samples {
            let count = u64::from(counts[sample.user as usize]);
            // Not a branch: no processor could foresee the labels.
            let liked = count * u64::from(sample.label);
            likes += liked;
            dislikes += count - liked;
            if sample.ends_tie {
                area.add(likes, dislikes);
                (likes, dislikes) = (0, 0);
            }
        }
        area.value()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{auc, group_auc, tests::samples};
    use super::*;
    use proptest::prelude::*;

    /// Two users; the second model ranks the first one's samples the wrong way round.
    fn two_users() -> [Vec<Scored>; 2] {
        let rows =
            [(7, true, 0.9), (7, false, 0.1), (3, true, 0.3), (3, false, 0.6), (3, false, 0.2)];
        let mut other = rows;
        (other[0].2, other[1].2) = (0.1, 0.9);
        [samples(&rows), samples(&other)]
    }

    /// Users with a few samples each, of whom some are easy and some are hard.
    fn many(users: u32, noise: f32) -> Vec<Scored> {
        let sample = |i: u32| {
            let (user, label) = (i / 5, i % 5 < 2);
            let odd = (i.wrapping_mul(2_654_435_761) >> 8) % 1000;
            let easy = if user % 3 == 0 { 0.4 } else { 0.1 };
            let probability = odd as f32 / 1000.0 * noise + if label { easy } else { 0.0 };
            Scored { user, label, probability }
        };
        (0..5 * users).map(sample).collect()
    }

    /// The samples of the drawn users, one after the other.
    fn drawn(scored: &[Scored], users: &[u32]) -> Vec<Scored> {
        let of = |user: &u32| {
            let user = *user;
            scored.iter().filter(move |sample| sample.user == user).copied()
        };
        // A user drawn twice is two users.
        let number = |(place, user): (usize, &u32)| {
            of(user).map(move |sample| Scored { user: place as u32, ..sample }).collect::<Vec<_>>()
        };
        users.iter().enumerate().flat_map(number).collect()
    }

    #[test]
    fn two_users_are_drawn_as_chance_has_it() {
        let [good, bad] = two_users();
        let bootstrap = Bootstrap::new(&[good, bad], 4000, 1).unwrap();
        // Twice the one, one of each, twice the other: (AUC, gAUC) of the two models, by hand.
        let cases = [
            (0.25, [(1.0, 1.0), (0.0, 0.0)]),
            (0.5, [(5.0 / 6.0, 0.7), (1.0 / 6.0, 0.3)]),
            (0.25, [(0.5, 0.5), (0.5, 0.5)]),
        ];
        let mut found = 0;
        for (share, figures) in cases {
            let is_case = |resample: &&Vec<Figures>| {
                resample.iter().zip(figures).all(|(of, (auc, gauc))| {
                    (of.auc.unwrap() - auc).abs() < 1e-12 && (of.gauc.unwrap() - gauc).abs() < 1e-12
                })
            };
            let count = bootstrap.resamples.iter().filter(is_case).count();
            assert!((count as f64 / 4000.0 - share).abs() < 0.03, "{figures:?}: {count}");
            found += count;
        }
        assert_eq!(found, 4000);
        assert_eq!(bootstrap.auc_interval(0), Some([0.5, 1.0]));
        assert_eq!(bootstrap.group_auc_interval(1), Some([0.0, 0.5]));
        let Differences { auc, gauc } = bootstrap.differences(1, 0);
        assert_eq!((auc.unwrap().ci95, gauc.unwrap().ci95), (Some([-1.0, 0.0]), Some([-1.0, 0.0])));
        assert!((auc.unwrap().difference + 2.0 / 3.0).abs() < 1e-12, "{auc:?}");
        assert!((gauc.unwrap().difference + 0.4).abs() < 1e-12, "{gauc:?}");
    }

    #[test]
    fn intervals_are_those_of_all_possible_draws() {
        let models = [many(3, 0.5), many(3, 0.9)];
        // Each draw of three of three users has a chance of 1 in 27, so the ends are the extremes.
        let all: Vec<[u32; 3]> = (0..27).map(|i| [i % 3, i / 3 % 3, i / 9]).collect();
        let extremes = |value: &dyn Fn(&[u32]) -> f64| {
            let values = || all.iter().map(|users| value(users));
            [values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max)]
        };
        let bootstrap = Bootstrap::new(&models, 4000, 5).unwrap();
        let Differences { auc: of_auc, gauc: of_gauc } = bootstrap.differences(1, 0);
        type Figure = fn(&[Scored]) -> Option<f64>;
        let figures: [Figure; 2] = [auc, group_auc];
        let intervals = [bootstrap.auc_interval(0), bootstrap.group_auc_interval(0)];
        for (of, (interval, difference)) in
            figures.into_iter().zip(intervals.into_iter().zip([of_auc, of_gauc]))
        {
            let value = |model: usize, users: &[u32]| of(&drawn(&models[model], users)).unwrap();
            let close = |found: Option<[f64; 2]>, expected: [f64; 2]| {
                let ends = found.unwrap().into_iter().zip(expected);
                assert!(ends.clone().all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
            };
            close(interval, extremes(&|users| value(0, users)));
            let less = extremes(&|users| value(1, users) - value(0, users));
            close(difference.unwrap().ci95, less);
        }
    }

    #[test]
    fn intervals_hold_the_estimate_and_shrink_with_users() {
        let mut widths = Vec::new();
        for users in [30, 600] {
            let scored = many(users, 0.8);
            let bootstrap = Bootstrap::new(std::slice::from_ref(&scored), 400, 7).unwrap();
            let [low, high] = bootstrap.auc_interval(0).unwrap();
            let estimate = auc(&scored).unwrap();
            assert!(low < estimate && estimate < high, "{low} {estimate} {high}");
            widths.push(high - low);
        }
        assert!(widths[1] < widths[0] / 2.0, "{widths:?}");
    }

    #[test]
    fn more_of_the_same_of_each_user_is_no_more_evidence() {
        let scored = many(40, 0.8);
        let often: Vec<Scored> = scored.iter().flat_map(|sample| [*sample; 9]).collect();
        let [once, often] = [scored, often]
            .map(|scored| Bootstrap::new(&[scored], 200, 7).unwrap().auc_interval(0));
        assert_eq!(once, often);
    }

    #[test]
    fn the_group_interval_is_that_of_a_mean_over_users() {
        // Half of the users are ranked perfectly, half not at all.
        let pair = |user: u32| {
            [true, false].map(|label| {
                let probability = if label == user.is_multiple_of(2) { 0.9 } else { 0.1 };
                Scored { user, label, probability }
            })
        };
        let scored = (0..200).flat_map(pair).collect();
        let interval = Bootstrap::new(&[scored], 1000, 3).unwrap().group_auc_interval(0);
        // A mean of 200 coins: 0.5 ± 1.96 · 0.5 / √200.
        let [low, high] = interval.unwrap();
        assert!((low - 0.4307).abs() < 0.02 && (high - 0.5693).abs() < 0.02, "{low} {high}");
    }

    #[test]
    fn a_difference_is_of_the_same_draws() {
        let (good, bad) = (many(120, 0.3), many(120, 0.9));
        let bootstrap = Bootstrap::new(&[good.clone(), bad.clone()], 400, 1).unwrap();
        let itself = Difference { difference: 0.0, ci95: Some([0.0, 0.0]) };
        let same = Differences { auc: Some(itself), gauc: Some(itself) };
        assert_eq!(bootstrap.differences(1, 1), same);
        let Difference { difference, ci95 } = bootstrap.differences(0, 1).auc.unwrap();
        assert!((difference - (auc(&good).unwrap() - auc(&bad).unwrap())).abs() < 1e-12);
        let [low, high] = ci95.unwrap();
        assert!(0.0 < low && low < difference && difference < high, "{low} {difference} {high}");
        // Narrower than draws of their own would make it.
        let [a, b] = [0, 1].map(|model| bootstrap.auc_interval(model).unwrap());
        assert!(high - low < a[1] - a[0] + b[1] - b[0], "{low} {high} {a:?} {b:?}");
        assert_eq!(bootstrap.differences(0, 2), Differences::default());
        assert_eq!(Bootstrap::new(&[good, bad[1..].to_vec()], 10, 1), None);
    }

    #[test]
    fn d1_resamples_depend_on_seed_and_samples_only() {
        let models = [many(50, 0.4), many(50, 0.8)];
        let with = |threads: usize, models: &[Vec<Scored>], seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Bootstrap::new(models, 64, seed).unwrap())
        };
        let one = with(1, &models, 9);
        assert_eq!(one, with(3, &models, 9));
        assert_ne!(one, with(1, &models, 10));
        let reversed = models.map(|model| model.into_iter().rev().collect());
        assert_eq!(one, with(2, &reversed, 9));
    }

    #[test]
    fn too_few_users_and_too_many_resamples_of_one_class_have_no_interval() {
        let interval = |rows: &[(u32, bool, f32)]| {
            let bootstrap = Bootstrap::new(&[samples(rows)], 500, 1).unwrap();
            (bootstrap.auc_interval(0), bootstrap.group_auc_interval(0))
        };
        assert_eq!(interval(&[(0, true, 0.9), (0, false, 0.4), (0, true, 0.2)]), (None, None));
        // Half of the resamples are of one user, and so of one class.
        assert_eq!(interval(&[(0, true, 0.9), (1, false, 0.4)]), (None, None));
        // Of eight users only every 128th resample has one class; no user has both.
        let users: Vec<_> = (0..8).map(|user| (user, user % 2 == 0, user as f32 / 8.0)).collect();
        let (auc, gauc) = interval(&users);
        assert!(auc.is_some() && gauc.is_none(), "{auc:?} {gauc:?}");
        assert_eq!(interval(&[]), (None, None));
        let none = Bootstrap::new(&[many(9, 0.5)], 0, 1).unwrap();
        assert_eq!(none.auc_interval(0), None);
        assert_eq!(Bootstrap::new(&[], 10, 1).unwrap().differences(0, 0), Differences::default());
    }

    proptest! {
        /// To count a user's samples n times is to list them n times.
        #[test]
        fn a_count_is_a_repetition(
            rows in prop::collection::vec((0u32..6, any::<bool>(), 0u8..8), 1..60),
            counts in prop::collection::vec(0u32..4, 6),
        ) {
            let rows: Vec<_> =
                rows.iter().map(|&(user, label, p)| (user, label, f32::from(p) / 8.0)).collect();
            let scored = samples(&rows);
            let ranked = Ranked::new(&scored, &[0, 1, 2, 3, 4, 5]);
            let listed: Vec<u32> = (0u32..6)
                .flat_map(|user| vec![user; counts[user as usize] as usize])
                .collect();
            prop_assert_eq!(ranked.auc(&counts), auc(&drawn(&scored, &listed)));
        }
    }
}
