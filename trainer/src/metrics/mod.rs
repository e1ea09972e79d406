//! Metrics of binary prediction, in f64, equal to the last bit however the samples were scored.
//!
//! Callers pass the samples sorted by key, each once; sums are then added in one order.

mod auc;
pub mod baselines;
mod bootstrap;
mod breakdown;
mod calibration;
mod compared;
mod gain;
mod platt;

pub use auc::{auc, group_auc, roc};
pub use bootstrap::{Bootstrap, Difference, Differences};
pub use breakdown::{HistoryGroup, by_history_length};
pub use calibration::{CalibrationBin, calibration};
pub use compared::{COMPARED, Compared, Rgb, Role};
pub use gain::{Gain, Parts, Tried};
pub use platt::Platt;

use serde::{Deserialize, Serialize};

/// One scored sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The user, for group AUC.
    pub user: u32,
    /// Whether the user liked the item.
    pub label: bool,
    /// The predicted probability of like, in [0, 1].
    pub probability: f32,
}

/// The valid samples, scored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Validation {
    /// Their AUC, where there are any of both classes.
    pub auc: Option<f64>,
    /// Their log loss.
    pub log_loss: Option<f64>,
    /// Their logits, where these are to be kept beside the parameters.
    pub logits: Vec<f32>,
}

/// The figures of one model. `None` where a figure is not defined (no sample, one class only).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Area under the ROC curve; ties count one half.
    pub auc: Option<f64>,
    /// Mean negative log likelihood, in nats.
    pub log_loss: Option<f64>,
    /// Share of samples on the right side of 0.5.
    pub accuracy: Option<f64>,
    /// AUC within each user, weighted by the user's samples; users with one class are left out.
    pub gauc: Option<f64>,
    /// Percentile bootstrap interval of the AUC over users, 95 %.
    pub auc_ci95: Option<[f64; 2]>,
    /// Percentile bootstrap interval of the group AUC over users, 95 %.
    pub gauc_ci95: Option<[f64; 2]>,
}

impl Metrics {
    /// All figures of `scored`, which is the model at the place `model` in `bootstrap`.
    pub fn new(scored: &[Scored], bootstrap: &Bootstrap, model: usize) -> Self {
        Self {
            auc: auc(scored),
            log_loss: log_loss(scored),
            accuracy: accuracy(scored),
            gauc: group_auc(scored),
            auc_ci95: bootstrap.auc_interval(model),
            gauc_ci95: bootstrap.group_auc_interval(model),
        }
    }
}

/// Mean negative log likelihood, in nats. Probabilities are kept 1e-7 away from 0 and 1, so that
/// one certain and wrong prediction does not make the mean infinite.
pub fn log_loss(scored: &[Scored]) -> Option<f64> {
    mean(scored, |sample| {
        let p = f64::from(sample.probability).clamp(1e-7, 1.0 - 1e-7);
        if sample.label { -p.ln() } else { -(1.0 - p).ln() }
    })
}

/// Share of samples whose probability is on the right side of 0.5 (0.5 itself predicts like).
pub fn accuracy(scored: &[Scored]) -> Option<f64> {
    mean(scored, |sample| f64::from(u8::from((sample.probability >= 0.5) == sample.label)))
}

fn mean(scored: &[Scored], value: impl Fn(&Scored) -> f64) -> Option<f64> {
    (!scored.is_empty()).then(|| scored.iter().map(value).sum::<f64>() / scored.len() as f64)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Samples of (user, label, probability).
    pub(crate) fn samples(rows: &[(u32, bool, f32)]) -> Vec<Scored> {
        rows.iter().map(|&(user, label, probability)| Scored { user, label, probability }).collect()
    }

    #[test]
    fn log_loss_and_accuracy_of_known_samples() {
        let scored = samples(&[(0, true, 0.8), (0, false, 0.4), (1, true, 0.5), (1, false, 0.9)]);
        let expected = -(0.8f64.ln() + 0.6f64.ln() + 0.5f64.ln() + 0.1f64.ln()) / 4.0;
        assert!((log_loss(&scored).unwrap() - expected).abs() < 1e-6);
        assert_eq!(accuracy(&scored), Some(0.75));
    }

    #[test]
    fn a_certain_and_wrong_prediction_is_finite() {
        let loss = log_loss(&samples(&[(0, false, 1.0)])).unwrap();
        assert!((loss - -(1e-7f64).ln()).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn nothing_is_defined_without_samples() {
        let bootstrap = Bootstrap::new(&[Vec::new()], 10, 1).unwrap();
        let metrics = Metrics::new(&[], &bootstrap, 0);
        assert_eq!(serde_json::to_value(&metrics).unwrap()["auc"], serde_json::Value::Null);
        assert_eq!((metrics.auc, metrics.log_loss, metrics.accuracy), (None, None, None));
        assert_eq!((metrics.gauc, metrics.auc_ci95, metrics.gauc_ci95), (None, None, None));
    }
}
