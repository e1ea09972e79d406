//! From a config file and the flags beside it to the config of a run.

use std::path::Path;

use reclora_trainer::config::Config;

use crate::cli::NodeCount;
use crate::config;
use crate::error::{LaunchError, Result};

/// Flags that change a config.
#[derive(Clone, Copy, Debug)]
pub struct Overrides<'a> {
    /// Settings.
    pub set: &'a [String],
    /// The run directory.
    pub run_dir: Option<&'a Path>,
    /// Ranks on each node.
    pub ranks: Option<u16>,
}

/// The config with every flag applied, checked for so many nodes: one number of them must be possible.
pub fn resolve(path: &Path, overrides: Overrides<'_>, nodes: NodeCount) -> Result<Config> {
    let mut config = config::load(path, overrides.set)?;
    if let Some(ranks) = overrides.ranks {
        config.runtime.nproc_per_node = ranks.into();
    }
    if let Some(dir) = overrides.run_dir {
        config.run_dir = dir.to_owned();
    }
    config.run_dir = std::path::absolute(&config.run_dir)
        .map_err(|error| LaunchError::Usage(format!("run directory: {error}")))?;
    let mut numbers = (nodes.min..=nodes.max).rev().map(usize::from);
    let refused = config.validate(usize::from(nodes.max) * config.runtime.nproc_per_node);
    if !numbers.any(|nodes| is_possible(&config, nodes)) {
        refused?;
    }
    Ok(config)
}

/// Whether a run can have so many nodes.
pub fn is_possible(config: &Config, nodes: usize) -> bool {
    config.validate(nodes * config.runtime.nproc_per_node).is_ok()
}
