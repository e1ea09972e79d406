//! What a training run is told.

use std::ops::Range;
use std::path::PathBuf;

use reclora_comm::Communicator;

use super::optimizer::schedule;
use crate::error::{Result, TrainerError};
use crate::parameters::{Table, TableShare};
use crate::telemetry::EpochRecord;

/// Which epoch's parameters are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Those of the last.
    Last,
    /// Those of the best AUC on valid.
    Auc {
        /// Training stops after this many epochs without a better one.
        patience: u64,
    },
    /// Those of the least log loss on valid.
    LogLoss,
}

impl Selection {
    /// By what an epoch is selected: more is better. `None` where it is not, or has no such figure.
    pub(super) fn rank(self, epoch: &EpochRecord) -> Option<f64> {
        match self {
            Self::Last => None,
            Self::Auc { .. } => epoch.valid_auc,
            Self::LogLoss => epoch.valid_log_loss.map(|loss| -loss),
        }
    }
}

/// How to train.
#[derive(Clone, Debug)]
pub struct TrainPlan {
    /// What is being done, in words a user reads.
    pub task: String,
    /// The table the parameters begin with, of which a batch touches few rows; a tensor by itself.
    pub table: Table,
    /// Whether the table is shared out over the ranks, each of which holds some of its rows.
    pub row_wise: bool,
    /// Whether the optimizer moves only the rows that a batch touches.
    pub lazy_rows: bool,
    /// Size of the training set.
    pub samples: u64,
    /// Largest number of epochs.
    pub epochs: u64,
    /// Samples per optimizer step, over all ranks.
    pub global_batch: u64,
    /// Leaves of the canonical sum: a power of two, at least the number of ranks.
    pub micro_batches: usize,
    /// Values of the dense gradient that travel together, at most.
    pub bucket: usize,
    /// The ranks' replicas are compared every this many steps; 0 never.
    pub replica_check_every: u64,
    /// Learning rate, at the start if it decays.
    pub learning_rate: f32,
    /// Whether the learning rate decays linearly to 0.
    pub decay: bool,
    /// Share of the steps of a rate that decays in which it rises from 0 first.
    pub warmup: f32,
    /// Dense parameters with a learning rate of their own, as a multiple of the others'; places count from behind the
    /// table, ascending.
    pub rates: Vec<(Range<usize>, f32)>,
    /// Weight decay of AdamW.
    pub weight_decay: f32,
    /// Gradients are scaled down to this norm, if given.
    pub max_grad_norm: Option<f32>,
    /// Seed of the order of samples.
    pub seed: u64,
    /// Which epoch's parameters are kept.
    pub selection: Selection,
    /// Write a checkpoint every this many steps, and after each epoch.
    pub checkpoint_every: u64,
    /// Where checkpoints are kept.
    pub checkpoints: PathBuf,
}

impl TrainPlan {
    /// The learning rate of a step, counted from 0.
    pub(super) fn rate_at(&self, step: u64) -> f32 {
        let total = self.epochs * self.batches();
        let warmup = (total as f64 * f64::from(self.warmup)) as u64;
        if self.decay {
            schedule(self.learning_rate, step, total, warmup)
        } else {
            self.learning_rate
        }
    }

    pub(super) fn batches(&self) -> u64 {
        self.samples.div_ceil(self.global_batch)
    }

    /// The rows that a rank holds.
    pub(super) fn share(&self, comm: &dyn Communicator) -> TableShare {
        if self.row_wise {
            TableShare::part(self.table, comm.rank(), comm.world_size())
        } else {
            TableShare::all(self.table)
        }
    }

    pub(super) fn check(&self, world_size: usize) -> Result<()> {
        let wrong = |field: &str, what: String| Err(TrainerError::config(field, what));
        if self.samples == 0 || self.global_batch == 0 {
            return wrong(
                &self.task,
                "needs at least one sample and a batch of at least one".into(),
            );
        }
        if !self.micro_batches.is_power_of_two() {
            return wrong("tune.micro_batches", "must be a power of two".into());
        }
        if !world_size.is_power_of_two() || world_size > self.micro_batches {
            let what = format!(
                "{world_size} ranks can't share {} micro-batches so that the result is the same for \
                 any number of ranks; use a power of two of at most that many",
                self.micro_batches
            );
            return wrong("runtime.nproc_per_node", what);
        }
        Ok(())
    }
}
