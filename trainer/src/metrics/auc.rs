//! Exact area under the ROC curve, over all samples and within users.

use super::Scored;

/// Samples grouped by equal probability, from the lowest: (likes, dislikes) of each group.
fn tie_groups(scored: &[Scored]) -> Vec<(u64, u64, f32)> {
    let mut order: Vec<(f32, bool)> = scored.iter().map(|s| (s.probability, s.label)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let same = |a: &(f32, bool), b: &(f32, bool)| a.0 == b.0;
    order
        .chunk_by(same)
        .map(|group| {
            let likes = group.iter().filter(|sample| sample.1).count() as u64;
            (likes, group.len() as u64 - likes, group[0].0)
        })
        .collect()
}

/// The probability that a random liked sample scores above a random disliked one, ties counting one
/// half: the Mann–Whitney statistic, counted in integers. `None` unless both classes are present.
pub fn auc(scored: &[Scored]) -> Option<f64> {
    let mut area = Area::default();
    for (likes, dislikes, _) in tie_groups(scored) {
        area.add(likes, dislikes);
    }
    area.value()
}

/// The area under the ROC curve, of tie groups from the lowest probability on.
#[derive(Default)]
pub(super) struct Area {
    likes: u64,
    dislikes: u64,
    twice_won: u128,
}

impl Area {
    /// The next tie group.
    pub(super) fn add(&mut self, likes: u64, dislikes: u64) {
        self.twice_won += u128::from(likes) * u128::from(2 * self.dislikes + dislikes);
        self.likes += likes;
        self.dislikes += dislikes;
    }

    /// `None` unless both classes were added.
    pub(super) fn value(&self) -> Option<f64> {
        let pairs = u128::from(self.likes) * u128::from(self.dislikes);
        (pairs > 0).then(|| self.twice_won as f64 / (2 * pairs) as f64)
    }
}

/// AUC within each user, weighted by the user's number of samples; users whose samples are of one
/// class have no AUC and are left out. `None` if no user is left.
pub fn group_auc(scored: &[Scored]) -> Option<f64> {
    weighted_mean(user_aucs(scored).into_iter().filter_map(|(auc, samples)| Some((auc?, samples))))
}

/// Each user's AUC, where there is one, and number of samples; in the order of the users.
pub(super) fn user_aucs(scored: &[Scored]) -> Vec<(Option<f64>, f64)> {
    let mut by_user = scored.to_vec();
    by_user.sort_by_key(|sample| sample.user);
    let groups = by_user.chunk_by(|a, b| a.user == b.user);
    groups.map(|group| (auc(group), group.len() as f64)).collect()
}

/// Mean of (value, weight); `None` of none.
pub(super) fn weighted_mean(values: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (sum, weights) = values.fold((0.0, 0.0), |(sum, weights), (value, weight)| {
        (sum + value * weight, weights + weight)
    });
    (weights > 0.0).then(|| sum / weights)
}

/// Points (false positive rate, true positive rate) of the ROC curve from (0, 0) to (1, 1), at most
/// `points` of them; empty unless both classes are present.
pub fn roc(scored: &[Scored], points: usize) -> Vec<[f64; 2]> {
    let groups = tie_groups(scored);
    let likes: u64 = groups.iter().map(|group| group.0).sum();
    let dislikes: u64 = groups.iter().map(|group| group.1).sum();
    if likes == 0 || dislikes == 0 {
        return Vec::new();
    }
    let mut curve = vec![[0.0, 0.0]];
    let (mut hits, mut alarms) = (0u64, 0u64);
    for (group_likes, group_dislikes, _) in groups.iter().rev() {
        hits += group_likes;
        alarms += group_dislikes;
        curve.push([alarms as f64 / dislikes as f64, hits as f64 / likes as f64]);
    }
    let points = points.max(2);
    if curve.len() > points {
        let last = curve.len() - 1;
        curve = (0..points).map(|i| curve[i * last / (points - 1)]).collect();
    }
    curve
}

#[cfg(test)]
mod tests {
    use super::super::tests::samples;
    use super::*;
    use proptest::prelude::*;

    /// The definition: every pair compared.
    fn by_pairs(scored: &[Scored]) -> Option<f64> {
        let (mut won, mut pairs) = (0.0, 0.0);
        for liked in scored.iter().filter(|s| s.label) {
            for disliked in scored.iter().filter(|s| !s.label) {
                pairs += 1.0;
                if liked.probability > disliked.probability {
                    won += 1.0;
                } else if liked.probability == disliked.probability {
                    won += 0.5;
                }
            }
        }
        (pairs > 0.0).then(|| won / pairs)
    }

    #[test]
    fn group_auc_leaves_out_users_of_one_class() {
        let scored = samples(&[
            (0, true, 0.9),
            (0, false, 0.1),
            (1, true, 0.2),
            (1, true, 0.3),
            (1, false, 0.25),
            (2, true, 0.0),
        ]);
        let expected = (2.0 * 1.0 + 3.0 * 0.5) / 5.0;
        assert!((group_auc(&scored).unwrap() - expected).abs() < 1e-12);
        assert_eq!(group_auc(&scored[5..]), None);
    }

    #[test]
    fn roc_runs_from_corner_to_corner() {
        let scored = samples(&[(0, true, 0.9), (0, false, 0.6), (0, true, 0.4), (0, false, 0.1)]);
        let expected = [[0.0, 0.0], [0.0, 0.5], [0.5, 0.5], [0.5, 1.0], [1.0, 1.0]];
        assert_eq!(roc(&scored, 200), expected);
        assert_eq!(roc(&scored, 3), [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]);
        assert!(roc(&scored[..1], 200).is_empty());
    }

    proptest! {
        #[test]
        fn auc_is_its_definition_in_any_order(
            mut rows in prop::collection::vec((0u32..3, any::<bool>(), 0u8..8), 0..60),
        ) {
            let build = |rows: &[(u32, bool, u8)]| -> Vec<Scored> {
                rows.iter().map(|&(user, label, p)|
                    Scored { user, label, probability: f32::from(p) / 8.0 }).collect()
            };
            let scored = build(&rows);
            let value = auc(&scored);
            let expected = by_pairs(&scored);
            prop_assert_eq!(value.is_some(), expected.is_some());
            prop_assert!((value.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs() < 1e-12);
            rows.reverse();
            prop_assert_eq!(value, auc(&build(&rows)));
        }
    }
}
