//! How much of what the LLM adds to the CRM's score is to be believed, chosen on valid.
//!
//! The score is z = offset + g · (r − c₀ − c₁ · offset). The line c takes out of r what only shrinks or shifts the
//! offset; g is one of 0, 0.1 … 1. On the users of one half the smallest g is taken that is within one standard error
//! of the best; it counts only if it lowers the log loss on the users of the other half by more than one standard error,
//! too. Where the LLM adds nothing both happen by chance in one of forty runs. g = 0 says that the LLM adds nothing
//! here.

use serde::{Deserialize, Serialize};

/// A valid sample, with what the score is put together from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts {
    /// Users are the unit of errors; samples of one lie in one half.
    pub user: u32,
    /// Whether the user is of the half that g is chosen on.
    pub chooses: bool,
    /// Whether the user liked the item.
    pub label: bool,
    /// The CRM's logit.
    pub offset: f64,
    /// What the LLM adds.
    pub residual: f64,
}

/// A gain that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// g.
    pub gain: f64,
    /// Log loss on the half that g is chosen on.
    pub log_loss: f64,
    /// Log loss on the other half.
    pub other_log_loss: f64,
}

/// The rule by which offset and residual are put together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    /// g.
    pub gain: f64,
    /// c₀ and c₁.
    pub line: [f64; 2],
    /// Correlation of residual and offset, before the line is taken out; `None` where one of them does not vary.
    pub correlation: Option<f64>,
    /// The log loss of every g.
    pub tried: Vec<Tried>,
}

/// The gains that are tried.
const GAINS: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

impl Gain {
    /// Chooses a gain on valid samples. Without users in both halves it is 0.
    pub fn choose(valid: &[Parts]) -> Self {
        let (first, other): (Vec<Parts>, Vec<Parts>) = valid.iter().partition(|s| s.chooses);
        let (line, correlation) = regression(&first);
        let rule = |gain| Self { gain, line, correlation, tried: Vec::new() };
        let tried = GAINS.map(|gain| Tried {
            gain,
            log_loss: rule(gain).log_loss(&first),
            other_log_loss: rule(gain).log_loss(&other),
        });
        let best = tried.iter().min_by(|a, b| a.log_loss.total_cmp(&b.log_loss));
        let best = best.map_or(0.0, |tried| tried.gain);
        let within = |tried: &&Tried| {
            let [mean, error] = rule(tried.gain).less(&rule(best), &first);
            mean <= error
        };
        let chosen = tried.iter().find(within).map_or(0.0, |tried| tried.gain);
        let [mean, error] = rule(chosen).less(&rule(0.0), &other);
        let confirmed = mean < -error;
        Self { gain: if confirmed { chosen } else { 0.0 }, tried: tried.into(), ..rule(0.0) }
    }

    /// What was chosen, in words.
    pub fn describe(&self) -> String {
        let of = |gain: f64| self.tried.iter().find(|tried| tried.gain == gain);
        let Some((none, chosen)) = of(0.0).zip(of(self.gain)) else { return String::new() };
        let correlation = self.correlation.map_or(String::new(), |c| {
            format!("; what it adds correlates with the CRM's logit by {c:+.2}")
        });
        if self.gain == 0.0 {
            return format!(
                "on valid the LLM adds nothing to the CRM's score, which stays as it is (gain 0){correlation}"
            );
        }
        format!(
            "{} of what the LLM adds to the CRM's score is believed: on valid log loss {:.4} -> {:.4} of the users it \
             was chosen on, {:.4} -> {:.4} of the others{correlation}",
            self.gain, none.log_loss, chosen.log_loss, none.other_log_loss, chosen.other_log_loss
        )
    }

    /// The score: the offset to the bit where the LLM adds nothing.
    pub fn score(&self, offset: f32, residual: f32) -> f32 {
        if self.gain == 0.0 {
            return offset;
        }
        self.logit(f64::from(offset), f64::from(residual)) as f32
    }

    fn logit(&self, offset: f64, residual: f64) -> f64 {
        let [constant, slope] = self.line;
        offset + self.gain * (residual - constant - slope * offset)
    }

    fn loss(&self, sample: &Parts) -> f64 {
        let logit = self.logit(sample.offset, sample.residual);
        let lead = if sample.label { logit } else { -logit };
        (-lead).max(0.0) + (-lead.abs()).exp().ln_1p()
    }

    fn log_loss(&self, samples: &[Parts]) -> f64 {
        samples.iter().map(|sample| self.loss(sample)).sum::<f64>() / samples.len().max(1) as f64
    }

    /// The mean of this rule's losses less those of another, and its standard error over users.
    fn less(&self, other: &Self, samples: &[Parts]) -> [f64; 2] {
        let mut sorted: Vec<&Parts> = samples.iter().collect();
        sorted.sort_by_key(|sample| sample.user);
        let users = sorted.chunk_by(|a, b| a.user == b.user).map(|of_user| {
            let losses = of_user.iter().map(|sample| self.loss(sample) - other.loss(sample));
            (losses.sum::<f64>(), of_user.len() as f64)
        });
        let users: Vec<(f64, f64)> = users.collect();
        let count = samples.len().max(1) as f64;
        let mean = users.iter().map(|(sum, _)| sum).sum::<f64>() / count;
        let squares: f64 = users.iter().map(|(sum, count)| (sum - mean * count).powi(2)).sum();
        let degrees = users.len() as f64 / (users.len() as f64 - 1.0).max(1.0);
        [mean, (degrees * squares).sqrt() / count]
    }
}

/// The least-squares line of the residual over the offset, and their correlation.
fn regression(samples: &[Parts]) -> ([f64; 2], Option<f64>) {
    let count = samples.len().max(1) as f64;
    let mean = |of: &dyn Fn(&Parts) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(&|s| s.offset), mean(&|s| s.residual));
    let xx = mean(&|s| (s.offset - x).powi(2));
    let yy = mean(&|s| (s.residual - y).powi(2));
    let xy = mean(&|s| (s.offset - x) * (s.residual - y));
    let slope = if xx > 0.0 { xy / xx } else { 0.0 };
    ([y - slope * x, slope], (xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::splitmix;

    /// A number in −1 … 1.
    fn number(key: u64) -> f64 {
        (splitmix(key) >> 11) as f64 / 2f64.powi(52) - 1.0
    }

    /// 400 users of 20 samples, whose log-odds are the offset and `share` of the residual.
    fn made(share: f64, of_offset: f64) -> Vec<Parts> {
        drawn(share, of_offset, 0..8000)
    }

    fn drawn(share: f64, of_offset: f64, samples: std::ops::Range<u64>) -> Vec<Parts> {
        let sample = |n: u64| {
            let (offset, own) = (2.0 * number(3 * n), 2.0 * number(3 * n + 1));
            let odds = offset + share * own;
            let label = number(3 * n + 2) < 2.0 / (1.0 + (-odds).exp()) - 1.0;
            let (user, residual) = ((n / 20) as u32, own + of_offset * offset + 0.3);
            Parts { user, chooses: user % 2 == 0, label, offset, residual }
        };
        samples.map(sample).collect()
    }

    #[test]
    fn what_adds_is_believed_as_far_as_it_goes() {
        for share in [1.0, 0.5] {
            let gain = Gain::choose(&made(share, 0.0));
            assert!((gain.gain - share).abs() < 0.25, "{gain:?}");
            assert!(gain.correlation.unwrap().abs() < 0.05);
        }
    }

    #[test]
    fn what_adds_nothing_leaves_the_offset_to_the_bit() {
        let gain = Gain::choose(&made(0.0, 0.0));
        assert_eq!(gain.gain, 0.0, "{gain:?}");
        assert_eq!(gain.score(0.1 + 0.2, 5.0).to_bits(), (0.1f32 + 0.2).to_bits());
        assert_eq!(gain.tried.len(), 11);
    }

    #[test]
    fn what_adds_nothing_is_seldom_believed() {
        let believed =
            |run: &u64| Gain::choose(&drawn(0.0, 0.0, run * 2000..(run + 1) * 2000)).gain > 0.0;
        let times = (1..=400).filter(believed).count();
        assert!(times <= 20, "{times} of 400");
    }

    #[test]
    fn the_part_that_only_shrinks_the_offset_is_taken_out() {
        let gain = Gain::choose(&made(1.0, -0.8));
        assert!((gain.line[1] + 0.8).abs() < 0.05 && (gain.line[0] - 0.3).abs() < 0.05, "{gain:?}");
        assert!(gain.correlation.unwrap() < -0.5);
        assert!(gain.gain > 0.7);
    }

    #[test]
    fn without_users_in_both_halves_the_gain_is_zero() {
        let samples = made(1.0, 0.0);
        let (first, other): (Vec<Parts>, Vec<Parts>) = samples.iter().partition(|s| s.chooses);
        for samples in [vec![], first, other, samples[..1].to_vec()] {
            assert_eq!(Gain::choose(&samples).gain, 0.0);
        }
    }
}
