//! From a config file and the flags beside it to the config of a run.

use reclora_trainer::config::Config;

use crate::cli::{ExperimentArgs, NodeCount};
use crate::config::{self, Override};
use crate::error::{LaunchError, Result};

/// The config with every flag applied, checked for so many nodes with `ranks` on each, if that is given: one number
/// of nodes must be possible.
pub fn resolve(
    experiment: &ExperimentArgs,
    ranks: Option<u16>,
    nodes: NodeCount,
) -> Result<Config> {
    let ranks = ranks.map(|ranks| Override {
        said: format!("--nproc-per-node {ranks}"),
        text: format!("runtime.nproc_per_node={ranks}"),
    });
    let set = experiment.set.iter().map(Override::set).chain(ranks);
    let mut config = config::load_for(&experiment.config, set, |config| {
        let ranks = |nodes| usize::from(nodes).saturating_mul(config.runtime.nproc_per_node);
        let mut possible = (nodes.min..=nodes.max).rev().map(ranks);
        let best = possible.find(|ranks| config.is_shared_evenly(*ranks));
        Some(best.unwrap_or_else(|| ranks(nodes.max)))
    })?;
    if let Some(dir) = &experiment.run_dir {
        config.run_dir.clone_from(dir);
    }
    config.run_dir = std::path::absolute(&config.run_dir)
        .map_err(|error| LaunchError::Usage(format!("run directory: {error}")))?;
    Ok(config)
}
