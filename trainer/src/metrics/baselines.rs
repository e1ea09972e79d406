//! What one would use without an LLM and without a CRM: the item's mean, and logistic regressions on user and item, and
//! on counters of what came before.

use nalgebra::{DMatrix, DVector};

/// Samples as parallel columns.
#[derive(Clone, Copy, Debug)]
pub struct Interactions<'a> {
    /// User of each sample.
    pub users: &'a [u32],
    /// Item of each sample.
    pub items: &'a [u32],
    /// Whether the user liked the item.
    pub labels: &'a [bool],
}

/// P(like | item): the item's share of likes, drawn toward the share over all items.
#[derive(Clone, Debug)]
pub struct ItemMean {
    /// (likes, samples) of each item.
    counts: Vec<(f64, f64)>,
    global: f64,
}

impl ItemMean {
    /// How many samples of the global share each item begins with.
    const PRIOR: f64 = 5.0;

    /// Counts the training samples.
    pub fn fit(train: Interactions<'_>, num_items: usize) -> Self {
        let mut counts = vec![(0.0, 0.0); num_items];
        for (&item, &label) in train.items.iter().zip(train.labels) {
            if let Some((likes, samples)) = counts.get_mut(item as usize) {
                *likes += f64::from(u8::from(label));
                *samples += 1.0;
            }
        }
        let likes: f64 = counts.iter().map(|count| count.0).sum();
        let samples: f64 = counts.iter().map(|count| count.1).sum();
        Self { counts, global: if samples > 0.0 { likes / samples } else { 0.5 } }
    }

    /// (likes + 5 · global) / (samples + 5); the global share for an item that was never seen.
    pub fn predict(&self, item: u32) -> f32 {
        let (likes, samples) = self.counts.get(item as usize).copied().unwrap_or_default();
        ((likes + Self::PRIOR * self.global) / (samples + Self::PRIOR)) as f32
    }
}

/// logit P(like | user, item) = b + w_user + w_item, with an L2 penalty on the weights.
#[derive(Clone, Debug)]
pub struct LogisticRegression {
    bias: f64,
    users: Vec<f64>,
    items: Vec<f64>,
    /// The penalty that was selected.
    pub l2: f64,
}

impl LogisticRegression {
    /// Penalties tried.
    const PENALTIES: [f64; 5] = [0.5, 1.0, 2.0, 4.0, 8.0];
    const SWEEPS: usize = 30;

    /// Fits with each penalty on `train` and keeps the one with the best log loss on `valid` (the
    /// first, if that is empty). Cyclic coordinate Newton steps: the same bits each time.
    pub fn fit(
        train: Interactions<'_>,
        valid: Interactions<'_>,
        num_users: usize,
        num_items: usize,
    ) -> Self {
        let candidates = Self::PENALTIES.map(|l2| Self::fit_with(train, num_users, num_items, l2));
        let losses: Vec<f64> = candidates.iter().map(|model| model.log_loss(valid)).collect();
        let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b]));
        let [first, ..] = &candidates;
        best.and_then(|best| candidates.get(best)).unwrap_or(first).clone()
    }

    fn fit_with(train: Interactions<'_>, num_users: usize, num_items: usize, l2: f64) -> Self {
        let by_user = group(train.users, num_users);
        let by_item = group(train.items, num_items);
        let everyone: Vec<usize> = (0..train.labels.len()).collect();
        let mut model =
            Self { bias: 0.0, users: vec![0.0; num_users], items: vec![0.0; num_items], l2 };
        let mut logits = vec![0.0; train.labels.len()];
        for _ in 0..Self::SWEEPS {
            newton(&mut model.bias, &everyone, 0.0, train.labels, &mut logits);
            for (weight, samples) in model.users.iter_mut().zip(&by_user) {
                newton(weight, samples, l2, train.labels, &mut logits);
            }
            for (weight, samples) in model.items.iter_mut().zip(&by_item) {
                newton(weight, samples, l2, train.labels, &mut logits);
            }
        }
        model
    }

    /// P(like); a user or item that was never seen adds nothing.
    pub fn predict(&self, user: u32, item: u32) -> f32 {
        let user = self.users.get(user as usize).copied().unwrap_or_default();
        let item = self.items.get(item as usize).copied().unwrap_or_default();
        sigmoid(self.bias + user + item) as f32
    }

    fn log_loss(&self, samples: Interactions<'_>) -> f64 {
        let columns = samples.users.iter().zip(samples.items).zip(samples.labels);
        columns
            .map(|((&user, &item), &label)| {
                let p = f64::from(self.predict(user, item)).clamp(1e-7, 1.0 - 1e-7);
                if label { -p.ln() } else { -(1.0 - p).ln() }
            })
            .sum()
    }
}

/// logit P(like) = b + w · x of a few numbers x, with an L2 penalty of 1 on w.
#[derive(Clone, Debug)]
pub struct NumberRegression {
    /// w, then b.
    weights: DVector<f64>,
}

impl NumberRegression {
    const STEPS: usize = 25;

    /// Fits samples of (x, like), all of `width` numbers, by Newton's method: the same bits each time.
    pub fn fit<'a>(samples: impl Iterator<Item = (&'a [f32], bool)> + Clone, width: usize) -> Self {
        let mut model = Self { weights: DVector::zeros(width + 1) };
        for _ in 0..Self::STEPS {
            let mut by = model.weights.clone();
            let mut curve = DMatrix::identity(width + 1, width + 1);
            // Not of b.
            (by[width], curve[(width, width)]) = (0.0, 1e-9);
            for (x, like) in samples.clone() {
                let x = DVector::from_iterator(width + 1, Self::with_one(x));
                let p = sigmoid(model.weights.dot(&x));
                by.axpy(p - f64::from(u8::from(like)), &x, 1.0);
                curve.ger(p * (1.0 - p), &x, &x, 1.0);
            }
            let Some(step) = curve.cholesky().map(|factors| factors.solve(&by)) else { break };
            // Far from the optimum a whole step can be too long.
            let length = step.amax().max(1.0);
            model.weights -= &step / length;
            if step.amax() < 1e-9 {
                break;
            }
        }
        model
    }

    /// P(like).
    pub fn predict(&self, x: &[f32]) -> f32 {
        let logit = self.weights.iter().zip(Self::with_one(x)).map(|(w, x)| w * x);
        sigmoid(logit.sum()) as f32
    }

    fn with_one(x: &[f32]) -> impl Iterator<Item = f64> {
        x.iter().copied().map(f64::from).chain([1.0])
    }
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

/// The samples of each id.
fn group(ids: &[u32], count: usize) -> Vec<Vec<usize>> {
    let mut groups = vec![Vec::new(); count];
    for (sample, &id) in ids.iter().enumerate() {
        if let Some(group) = groups.get_mut(id as usize) {
            group.push(sample);
        }
    }
    groups
}

/// One Newton step of one weight, of length 1 at most; `logits` follow.
fn newton(weight: &mut f64, samples: &[usize], l2: f64, labels: &[bool], logits: &mut [f64]) {
    let (mut slope, mut curvature) = (l2 * *weight, l2);
    for &sample in samples {
        let p = sigmoid(logits[sample]);
        slope += p - f64::from(u8::from(labels[sample]));
        curvature += p * (1.0 - p);
    }
    if curvature > 0.0 {
        let step = (-slope / curvature).clamp(-1.0, 1.0);
        *weight += step;
        samples.iter().for_each(|&sample| logits[sample] += step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users 0 and 1 like much and little, items 0 and 1 are good and bad.
    fn planted() -> (Vec<u32>, Vec<u32>, Vec<bool>) {
        let mut columns = (Vec::new(), Vec::new(), Vec::new());
        for sample in 0..2000u64 {
            let (user, item) = ((sample % 2) as u32, (sample / 2 % 2) as u32);
            let logit = 0.3 + [1.0, -1.0][user as usize] + [0.5, -0.5][item as usize];
            let hash = sample.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            columns.0.push(user);
            columns.1.push(item);
            columns.2.push((hash as f64 / (1u64 << 24) as f64) < sigmoid(logit));
        }
        columns
    }

    #[test]
    fn logistic_regression_recovers_planted_effects() {
        let (users, items, labels) = planted();
        let train = Interactions { users: &users, items: &items, labels: &labels };
        let model = LogisticRegression::fit(train, train, 3, 3);
        for (user, item, logit) in [(0, 0, 1.8), (0, 1, 0.8), (1, 0, -0.2), (1, 1, -1.2)] {
            let p = f64::from(model.predict(user, item));
            assert!((p - sigmoid(logit)).abs() < 0.04, "{user} {item}: {p} {}", sigmoid(logit));
        }
        let unseen = model.predict(2, 7);
        assert!((f64::from(unseen) - sigmoid(model.bias)).abs() < 1e-6);
    }

    #[test]
    fn a_regression_on_numbers_recovers_planted_weights() {
        let (users, items, labels) = planted();
        let number = |id: &u32| 1.0 - 2.0 * *id as f32;
        let x: Vec<[f32; 2]> =
            users.iter().zip(&items).map(|(user, item)| [number(user), number(item)]).collect();
        let samples = x.iter().map(|x| &x[..]).zip(labels.iter().copied());
        let model = NumberRegression::fit(samples.clone(), 2);
        for (x, logit) in [([1.0, 1.0], 1.8), ([1.0, -1.0], 0.8), ([-1.0, -1.0], -1.2)] {
            let p = f64::from(model.predict(&x));
            assert!((p - sigmoid(logit)).abs() < 0.04, "{x:?}: {p} {}", sigmoid(logit));
        }
        assert_eq!(NumberRegression::fit(samples.take(0), 2).predict(&[9.0, 9.0]), 0.5);
    }

    #[test]
    fn the_penalty_is_selected_on_valid() {
        // Labels that have nothing to do with the users: the strongest penalty predicts them best.
        let users: Vec<u32> = (0..300).collect();
        let items = vec![0; 300];
        let labels: Vec<bool> = (0..300u64).map(|s| s.wrapping_mul(31) % 7 < 3).collect();
        let train = Interactions { users: &users, items: &items, labels: &labels };
        let flipped: Vec<bool> = labels.iter().map(|label| !label).collect();
        let valid = Interactions { labels: &flipped, ..train };
        assert_eq!(LogisticRegression::fit(train, valid, 300, 1).l2, 8.0);
        assert_eq!(LogisticRegression::fit(train, train, 300, 1).l2, 0.5);
    }

    #[test]
    fn item_means_are_drawn_toward_the_global_share() {
        let items = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1];
        let labels = [true, true, true, true, true, false, false, false, true, false];
        let train = Interactions { users: &[0; 10], items: &items, labels: &labels };
        let mean = ItemMean::fit(train, 3);
        assert_eq!(mean.predict(0), 0.8);
        assert_eq!(mean.predict(1), 0.4);
        assert_eq!((mean.predict(2), mean.predict(99)), (0.6, 0.6));
        let empty = Interactions { users: &[], items: &[], labels: &[] };
        assert_eq!(ItemMean::fit(empty, 1).predict(0), 0.5);
    }
}
