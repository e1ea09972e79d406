//! Before the first stage: what would end a run later is looked for, and all of it is said at once.

use std::fmt::Display;
use std::path::Path;

use indicatif::BinaryBytes;
use nix::sys::statvfs::statvfs;
use reclora_trainer::config::{Config, Device};
use reclora_trainer::stages::preflight::{self, DiskForecast, Finding, Severity, disk_forecast};
use reclora_trainer::stages::{RunContext, Stage};
use serde::Serialize;

use crate::error::{LaunchError, Result};
use crate::hints;
use crate::output::say;

/// Less than this is soon full of checkpoints and logs.
const SPACE: u64 = 1 << 30;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Fine,
    /// It may do harm.
    Warning,
    /// A run would fail.
    Wrong,
}

/// What was looked at, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was seen.
    pub seen: String,
    /// What to do.
    pub help: Option<String>,
}

impl Check {
    /// As it should be.
    pub fn fine(name: &'static str, seen: impl Display) -> Self {
        Self { name, level: Level::Fine, seen: seen.to_string(), help: None }
    }

    /// It may do harm.
    pub fn warning(name: &'static str, seen: impl Display, help: &str) -> Self {
        Self { name, level: Level::Warning, seen: seen.to_string(), help: Some(help.into()) }
    }

    /// A run would fail.
    pub fn wrong(name: &'static str, seen: impl Display, help: &str) -> Self {
        Self { name, level: Level::Wrong, seen: seen.to_string(), help: Some(help.into()) }
    }
}

impl From<Finding> for Check {
    fn from(finding: Finding) -> Self {
        let name = finding.name;
        let (seen, help) = hints::of_finding(&finding);
        match finding.severity {
            Severity::Fine => Self::fine(name, seen),
            Severity::Warning => Self::warning(name, seen, help),
            Severity::Wrong => Self::wrong(name, seen, help),
        }
    }
}

/// Everything that `stages` need of this machine.
pub fn checks(context: &RunContext, stages: &[Stage]) -> Vec<Check> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let device = device(&context.config, visible.as_deref());
    std::iter::once(device).chain(inputs(context, stages)).collect()
}

/// Everything but the devices.
fn inputs(context: &RunContext, stages: &[Stage]) -> Vec<Check> {
    let dataset = preflight::known_dataset(context);
    let found = preflight::check(context, stages, dataset.as_ref());
    let forecast = disk_forecast(context, stages, dataset.as_ref());
    found.into_iter().map(Check::from).chain([space(&context.run_dir, forecast)]).collect()
}

/// Refuses what `run` would stumble over here. What is done already needs no device.
pub fn run(context: &RunContext, stages: &[Stage]) -> Result<()> {
    let is_done = |stage: &Stage| context.path(*stage).join("manifest.json").is_file();
    match stages.iter().filter(|stage| stage.reads_backbone()).all(is_done) {
        true => refuse(&inputs(context, stages)),
        false => refuse(&checks(context, stages)),
    }
}

/// The same for a run on other machines, which have the files and other devices.
pub fn elsewhere(context: &RunContext) -> Result<()> {
    refuse(&inputs(context, &Stage::ALL))
}

/// Refuses what can't work with the dataset that `prepare` has just made.
pub fn prepared(context: &RunContext, stages: &[Stage]) -> Result<()> {
    // Who reads a damaged dataset says how to rebuild it.
    let Some(dataset) = preflight::known_dataset(context) else { return Ok(()) };
    let found = preflight::check_dataset(context, &dataset, stages);
    let forecast = disk_forecast(context, stages, Some(&dataset));
    let all = found.into_iter().map(Check::from).chain([space(&context.run_dir, forecast)]);
    // What may do harm was said before.
    let wrong: Vec<Check> = all.filter(|check| check.level == Level::Wrong).collect();
    refuse(&wrong)
}

/// Says what may do harm, and ends with what is wrong.
fn refuse(checks: &[Check]) -> Result<()> {
    let (mut wrong, mut number) = (String::new(), 0);
    for Check { name, level, seen, help } in checks {
        let help = help.as_deref().unwrap_or_default();
        match level {
            Level::Fine => {}
            Level::Warning => say(&format!("warning: {name}: {seen}; {help}")),
            Level::Wrong => {
                number += 1;
                wrong.push_str(&format!("\n  {name}: {seen}\n    help: {help}"));
            }
        }
    }
    match number {
        0 => Ok(()),
        1 => Err(LaunchError::Usage(format!("this would end the run:{wrong}")).into()),
        n => Err(LaunchError::Usage(format!("these {n} things would end the run:{wrong}")).into()),
    }
}

fn device(config: &Config, visible: Option<&str>) -> Check {
    let ranks = config.runtime.nproc_per_node;
    if config.runtime.device == Device::Cpu {
        return Check::fine("device", "cpu");
    }
    let shown = visible.and_then(|visible| too_few(ranks, visible));
    shown.unwrap_or_else(|| gpu_of_each(ranks))
}

/// Ranks take the GPUs of `CUDA_VISIBLE_DEVICES` in order, so there must be enough of them.
fn too_few(ranks: usize, visible: &str) -> Option<Check> {
    let count = visible.split(',').filter(|device| !device.trim().is_empty()).count();
    let seen = format!(
        "{ranks} ranks on this machine, but CUDA_VISIBLE_DEVICES={visible} shows them {count} GPUs"
    );
    let help = "give it one GPU per rank, or start fewer ranks with --nproc-per-node";
    (count < ranks).then(|| Check::wrong("device", seen, help))
}

#[cfg(feature = "cuda")]
fn gpu_of_each(ranks: usize) -> Check {
    // GPUs are numbered without gaps.
    match reclora_trainer::engine::device::require_gpu(ranks.saturating_sub(1)) {
        Ok(()) => Check::fine("device", format!("cuda, a GPU for each of {ranks} ranks")),
        Err(error) => Check::wrong(
            "device",
            format!("the GPU of rank {} can't be used: {error}", ranks.saturating_sub(1)),
            "run it on a machine with a GPU per rank, or with --set runtime.device=cpu",
        ),
    }
}

/// The config was refused already.
#[cfg(not(feature = "cuda"))]
fn gpu_of_each(_ranks: usize) -> Check {
    Check::wrong("device", "this build has no CUDA", "run it with --set runtime.device=cpu")
}

/// Room for what the stages will write.
fn space(run_dir: &Path, forecast: DiskForecast) -> Check {
    let help = "make room, or choose another with --run-dir";
    let Some(there) = run_dir.ancestors().find(|dir| dir.is_dir()) else {
        return Check::wrong("disk", format!("{}: no such place", run_dir.display()), help);
    };
    let Some(free) = free(there) else {
        return Check::fine("disk", format!("{} does not say how much is free", there.display()));
    };
    let seen = format!("{} free in {}", BinaryBytes(free), there.display());
    if forecast.at_least > free {
        let least = BinaryBytes(forecast.at_least);
        return Check::wrong(
            "disk",
            format!("{seen}, and the run will write {least} at least"),
            help,
        );
    }
    if forecast.while_training > free {
        let more = BinaryBytes(forecast.while_training);
        return Check::warning("disk", format!("{seen}, and with a checkpoint it is {more}"), help);
    }
    if free < SPACE {
        return Check::warning("disk", seen, help);
    }
    Check::fine("disk", seen)
}

/// Bytes that are free in a directory; `None` where its file system does not count them.
fn free(dir: &Path) -> Option<u64> {
    let stat = statvfs(dir).ok().filter(|stat| stat.blocks() > 0)?;
    Some(stat.blocks_available() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_gpu_for_every_rank() {
        assert_eq!(device(&Config::default(), Some("")).level, Level::Fine, "on the CPU");
        for enough in ["0,1", "GPU-5,GPU-7,GPU-9"] {
            assert_eq!(too_few(2, enough), None, "{enough:?}");
        }
        for few in ["", "3", "0,"] {
            let check = too_few(2, few).unwrap();
            assert_eq!(check.level, Level::Wrong);
            assert!(check.help.unwrap().contains("--nproc-per-node"));
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let checks = [
            Check::fine("device", "cpu"),
            Check::wrong("data", "a", "do this"),
            Check::wrong("prompt", "b", "do that"),
        ];
        let text = refuse(&checks).unwrap_err().to_string();
        assert_eq!(
            text,
            "these 2 things would end the run:\n  data: a\n    help: do this\n  prompt: b\n    help: do that"
        );
        refuse(&checks[..1]).unwrap();
    }
}
