//! The cross-entropy of the answer's tokens, which the paper tunes with.

use super::{Loss, Readout, each, lead, softplus};
use crate::error::{Result, TrainerError};
use crate::parameters::Losses;

/// Mean negative log-likelihood of the supervised tokens under the softmax over the whole vocabulary. Beside it the
/// cross-entropy of the answer among yes and no, where these were read (otherwise 0).
#[derive(Clone, Copy, Debug)]
pub struct TokenCrossEntropy;

impl Loss for TokenCrossEntropy {
    fn of(&self, group: &[Readout], likes: &[bool]) -> Result<(Losses, Vec<Readout>)> {
        each(group, likes, |readout, like| {
            let count = readout.log_likelihoods.len();
            if count == 0 {
                let what = "the adapter has a trained head, which learns from answers, not tokens";
                return Err(TrainerError::Input(what.into()));
            }
            let total: f64 = readout.log_likelihoods.iter().map(|likelihood| -likelihood).sum();
            let deciding = readout.margin.map_or(0.0, |margin| softplus(-lead(margin, like)));
            let losses =
                Losses { training: (total / count as f64) as f32, deciding: deciding as f32 };
            let log_likelihoods = vec![-1.0 / count as f64; count];
            Ok((losses, Readout { log_likelihoods, margin: None }))
        })
    }
}
