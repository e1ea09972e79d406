//! A run, as its stages see it.

use std::path::PathBuf;

use super::Stage;
use crate::config::Config;
use crate::scoring::chunks::Part;

/// One run: its directory and its config, paths absolute.
#[derive(Clone, Debug)]
pub struct RunContext {
    /// The run directory.
    pub run_dir: PathBuf,
    /// The experiment.
    pub config: Config,
    /// The part of a stage's chunks that is to be done, where several launchers share them.
    pub part: Option<Part>,
}

impl RunContext {
    /// A run of which all is to be done.
    pub fn new(run_dir: PathBuf, config: Config) -> Self {
        Self { run_dir, config, part: None }
    }

    /// The directory a stage writes.
    pub fn path(&self, stage: Stage) -> PathBuf {
        self.run_dir.join(stage.directory())
    }
}
