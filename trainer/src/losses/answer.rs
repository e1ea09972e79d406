//! The cross-entropy of the answer among yes and no.

use super::{Loss, Readout, each, lead, softplus};
use crate::error::{Result, TrainerError};
use crate::parameters::Losses;

/// softplus(−m) of the margin m by which the right answer leads: the two-way softmax's cross-entropy, and the binary
/// one of a single output.
#[derive(Clone, Copy, Debug)]
pub struct AnswerCrossEntropy;

impl Loss for AnswerCrossEntropy {
    fn of(&self, group: &[Readout], likes: &[bool]) -> Result<(Losses, Vec<Readout>)> {
        each(group, likes, |readout, like| {
            let Some(margin) = readout.margin else {
                let what = "an answer has a loss only where the tokens no and yes are named";
                return Err(TrainerError::Input(what.into()));
            };
            let lead = lead(margin, like);
            let loss = softplus(-lead) as f32;
            let slope = 1.0 / (1.0 + lead.exp());
            let margin = Some(if like { -slope } else { slope });
            let log_likelihoods = vec![0.0; readout.log_likelihoods.len()];
            let losses = Losses { training: loss, deciding: loss };
            Ok((losses, Readout { log_likelihoods, margin }))
        })
    }
}
