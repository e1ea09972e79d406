//! What a stage is, and the graph of stages.
//!
//! Each stage describes itself in its own file, in a constant `STAGE`; here they are put in order. A new stage is one
//! file, a variant of [`Stage`] with its place in [`Stage::ALL`], and a line of `description`. A stage that not every
//! config needs says so in `is_needed`: without it the others are what they are in a run that never had it.

use reclora_comm::Communicator;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Inputs, RunContext, embed, evaluate, export, few2many, prepare, pretrain, retrieve, tune,
};
use crate::config::Config;
use crate::error::Result;
use crate::telemetry::progress::Progress;

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

/// What a stage says of itself.
pub(super) struct Description {
    /// Name in commands, manifests and logs.
    pub name: &'static str,
    /// Directory in the run directory.
    pub directory: &'static str,
    /// What it does, in a phrase.
    pub what: &'static str,
    /// The stages whose output it reads, where a config has them.
    pub reads: &'static [Stage],
    /// Whether it reads the backbone.
    pub reads_backbone: bool,
    /// Whether it reads the whole prompt template.
    pub reads_template: bool,
    /// Whether it sums gradients over ranks: then the order of the sums is part of what it is a function of.
    pub trains: bool,
    /// Whether it runs as one process.
    pub single_process: bool,
    /// Whether a run of this config has it.
    pub is_needed: fn(&Config) -> bool,
    /// The settings it is a function of.
    pub settings: fn(&Config) -> Result<Value>,
    /// What else it is a function of, by name: hashes of files that no other stage has written.
    pub files: fn(&RunContext) -> Result<Inputs>,
    /// Does the work of one rank; returns what it counted.
    pub run: fn(&RunContext, &mut dyn Communicator, &mut dyn Progress) -> Result<Counts>,
}

impl Description {
    /// A stage that does nothing, to be filled in.
    pub const BASE: Self = Self {
        name: "",
        directory: "",
        what: "",
        reads: &[],
        reads_backbone: false,
        reads_template: false,
        trains: false,
        single_process: false,
        is_needed: |_| true,
        settings: |_| Ok(json!([])),
        files: |_| Ok(Inputs::new()),
        run: |_, _, _| Ok(Counts::new()),
    };
}

/// What a stage counted, for its manifest.
pub(super) type Counts = std::collections::BTreeMap<String, u64>;

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 8] = [
        Stage::Prepare,
        Stage::Embed,
        Stage::Retrieve,
        Stage::Pretrain,
        Stage::Few2many,
        Stage::Tune,
        Stage::Evaluate,
        Stage::Export,
    ];

    pub(super) fn description(self) -> &'static Description {
        match self {
            Stage::Prepare => &prepare::STAGE,
            Stage::Embed => &embed::STAGE,
            Stage::Retrieve => &retrieve::STAGE,
            Stage::Pretrain => &pretrain::STAGE,
            Stage::Few2many => &few2many::STAGE,
            Stage::Tune => &tune::STAGE,
            Stage::Evaluate => &evaluate::STAGE,
            Stage::Export => &export::STAGE,
        }
    }

    /// Name in commands, manifests and logs.
    pub fn name(self) -> &'static str {
        self.description().name
    }

    /// Directory in the run directory.
    pub fn directory(self) -> &'static str {
        self.description().directory
    }

    /// What it does, in a phrase.
    pub fn describe(self) -> &'static str {
        self.description().what
    }

    /// Whether it runs as one process.
    pub fn single_process(self) -> bool {
        self.description().single_process
    }

    /// Whether it reads the backbone.
    pub fn reads_backbone(self) -> bool {
        self.description().reads_backbone
    }

    /// Whether a run of this config has it.
    pub fn is_needed(self, config: &Config) -> bool {
        (self.description().is_needed)(config)
    }

    /// The stages whose output it reads in a run of this config.
    pub(super) fn reads(self, config: &Config) -> impl Iterator<Item = Stage> {
        let reads = self.description().reads.iter().copied();
        reads.filter(|stage| stage.is_needed(config))
    }
}
