//! What a stage says of itself.

use std::collections::BTreeMap;

use reclora_comm::Communicator;
use serde_json::{Value, json};

use super::{RunContext, Stage};
use crate::config::Config;
use crate::error::Result;
use crate::telemetry::progress::Progress;

/// What a stage says of itself.
pub struct Description {
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
pub type Counts = BTreeMap<String, u64>;

/// What a stage is a function of, by name: settings, and hashes of what it reads.
pub type Inputs = BTreeMap<String, String>;
