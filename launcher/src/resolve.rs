//! From a config file and the flags beside it to the config of a run.

use reclora_trainer::config::Config;

use crate::cli::{ExperimentArgs, NodeCount};
use crate::config;
use crate::error::{LaunchError, Result};

/// The config with every flag applied, checked for so many nodes with `ranks` on each, if that is given: one number
/// of nodes must be possible.
pub fn resolve(
    experiment: &ExperimentArgs,
    ranks: Option<u16>,
    nodes: NodeCount,
) -> Result<Config> {
    let mut config = config::load(&experiment.config, &experiment.set)?;
    if let Some(ranks) = ranks {
        config.runtime.nproc_per_node = ranks.into();
    }
    if let Some(dir) = &experiment.run_dir {
        config.run_dir.clone_from(dir);
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
