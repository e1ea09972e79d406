//! The graph of stages.
//!
//! Each stage describes itself in its own file, in a constant `STAGE`; here they are put in order. A new stage is one
//! file, a variant of [`Stage`] with its place in [`Stage::ALL`], and a line of `description` in `mod.rs`. A stage that
//! not every config needs says so in `is_needed`: without it the others are what they are in a run that never had it.

use serde::{Deserialize, Serialize};

use super::description;
use crate::config::Config;

/// A stage of the pipeline, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Raw files to samples.
    Prepare,
    /// Items to vectors.
    Embed,
    /// Samples to the history they are shown with.
    Retrieve,
    /// Samples to what is known from the ratings before them.
    Count,
    /// The CRM on all training data.
    Pretrain,
    /// The CRM's view of every sample.
    Few2many,
    /// The adapters on the few-shot set.
    Tune,
    /// All models on the test set.
    Evaluate,
    /// Adapters for other programs.
    Export,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 9] = [
        Stage::Prepare,
        Stage::Embed,
        Stage::Retrieve,
        Stage::Count,
        Stage::Pretrain,
        Stage::Few2many,
        Stage::Tune,
        Stage::Evaluate,
        Stage::Export,
    ];

    /// Name in commands, manifests and logs.
    pub fn name(self) -> &'static str {
        description(self).name
    }

    /// Directory in the run directory.
    pub fn directory(self) -> &'static str {
        description(self).directory
    }

    /// What it does, in a phrase.
    pub fn describe(self) -> &'static str {
        description(self).what
    }

    /// Whether it runs as one process.
    pub fn single_process(self) -> bool {
        description(self).single_process
    }

    /// Whether it reads the backbone.
    pub fn reads_backbone(self) -> bool {
        description(self).reads_backbone
    }

    /// Whether a run of this config has it.
    pub fn is_needed(self, config: &Config) -> bool {
        (description(self).is_needed)(config)
    }

    /// The stages whose output it reads in a run of this config.
    pub(super) fn reads(self, config: &Config) -> impl Iterator<Item = Stage> {
        let reads = description(self).reads.iter().copied();
        reads.filter(|stage| stage.is_needed(config))
    }
}
