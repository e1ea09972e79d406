//! The curves of a training run.

use serde::{Deserialize, Serialize};

/// One optimizer step, as shown in curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epoch the step belongs to, from 1.
    pub epoch: u64,
    /// Mean loss over the global batch.
    pub loss: f32,
    /// The same of the choice between yes and no alone, where the LLM is tuned.
    #[serde(default)]
    pub deciding_loss: Option<f32>,
    /// Learning rate of the step.
    pub learning_rate: f32,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
}

/// One epoch, as shown in curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Number of the epoch, from 1.
    pub epoch: u64,
    /// Mean of the steps' losses.
    pub train_loss: f64,
    /// Mean of the steps' losses of the choice between yes and no alone, where the LLM is tuned.
    #[serde(default)]
    pub deciding_loss: Option<f64>,
    /// AUC on the valid samples, where there are any of both classes.
    pub valid_auc: Option<f64>,
    /// Log loss on the valid samples.
    pub valid_log_loss: Option<f64>,
}

/// The curves of a training run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Every optimizer step.
    pub steps: Vec<StepRecord>,
    /// Every finished epoch.
    pub epochs: Vec<EpochRecord>,
}
