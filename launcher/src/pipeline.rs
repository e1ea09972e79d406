//! Takes an experiment through its stages: which to run, one gang each, restarts.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, eyre};
use reclora_comm::Secret;

use crate::cluster::Leader;
use crate::error::{LaunchError, Result};
use crate::failure::Failure;
use crate::gang::binding::Binding;
use crate::gang::cause::{History, Outcome, Restart};
use crate::gang::env::{GangEnv, threads_per_rank};
use crate::gang::supervision::Limits;
use crate::gang::{self, Autopsy, Events, GangEnd, GangSpec, Shown};
use crate::monitor::watch::Watch;
use crate::preflight;
use crate::progress::display::{Display, say};
use crate::rendezvous;
use crate::run::save;
use crate::signals::{self, Polled};
use reclora_trainer::config::Config;
use reclora_trainer::stages::{RunContext, Stage, stage_dir};

/// Which stages the user asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection {
    /// This and everything after it again.
    pub from: Option<Stage>,
    /// Only this.
    pub only: Option<Stage>,
    /// Nothing after this.
    pub until: Option<Stage>,
    /// What is selected, again.
    pub force: bool,
}

/// What to do with a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Not selected.
    Leave,
    /// Run unless it is up to date.
    IfNeeded,
    /// Run, from nothing.
    Again,
}

impl Selection {
    /// Those that are done, or found up to date.
    pub fn stages(self) -> Vec<Stage> {
        Stage::ALL.into_iter().filter(|stage| self.plan(*stage) != Plan::Leave).collect()
    }

    /// The last stage.
    pub fn last(self) -> Stage {
        self.only.or(self.until).unwrap_or(Stage::Export)
    }

    /// What to do with a stage.
    pub fn plan(self, stage: Stage) -> Plan {
        match (self.only, self.from) {
            (Some(only), _) if stage != only => Plan::Leave,
            _ if self.until.is_some_and(|until| stage > until) => Plan::Leave,
            (None, Some(from)) if stage >= from => Plan::Again,
            (None, Some(_)) => Plan::IfNeeded,
            _ if self.force => Plan::Again,
            _ => Plan::IfNeeded,
        }
    }
}

/// Everything needed to run the stages of a run.
#[derive(Debug)]
pub struct Pipeline {
    /// The run.
    pub context: RunContext,
    /// Which stages.
    pub selection: Selection,
    /// Where ranks meet, if not anywhere on this machine.
    pub endpoint: Option<SocketAddr>,
    /// The other nodes, where there are any.
    pub leader: Option<RefCell<Leader>>,
    /// Restarts of a stage.
    pub max_restarts: u32,
    /// Directory of the ranks' logs.
    pub logs: PathBuf,
    /// Whose standard error is shown.
    pub tee: Shown,
    /// On which cores ranks run.
    pub binding: Binding,
    /// Learns what this node's ranks do.
    pub watch: Arc<Watch>,
    /// This executable.
    pub program: PathBuf,
}

impl Pipeline {
    /// Runs what is selected and not up to date.
    pub fn run(&self) -> Result<()> {
        if let Some(only) = self.selection.only {
            self.check_inputs_of(only)?;
        }
        // What is refused changes nothing, and parts have the config of the run.
        if self.context.part.is_none() {
            save(&self.context.config)?;
        }
        for stage in Stage::ALL {
            let plan = self.selection.plan(stage);
            if plan == Plan::Leave {
                continue;
            }
            if !stage.is_needed(&self.context.config) {
                say(&format!("{:9} not needed", stage.name()));
                continue;
            }
            let dir = stage_dir(&self.context, stage)?;
            if plan == Plan::Again && self.context.part.is_none() {
                clear(&self.context.run_dir, dir.path())?;
            } else if dir.is_complete()? {
                say(&format!("{:9} up to date", stage.name()));
                continue;
            }
            let start = Instant::now();
            self.run_stage(stage)?;
            if let Some(part) = self.context.part {
                say(&format!("{:9} part {part} done", stage.name()));
                continue;
            }
            if !stage_dir(&self.context, stage)?.is_complete()? {
                return Err(eyre!(
                    "stage {} ended without an error, but {} is not complete; please report this",
                    stage.name(),
                    dir.path().display()
                ));
            }
            let seconds = start.elapsed().as_secs_f64();
            say(&format!("{:9} done in {seconds:.1} s", stage.name()));
            if stage == Stage::Prepare {
                preflight::prepared(&self.context, &self.selection.stages())?;
            }
        }
        Ok(())
    }

    /// `--only` runs nothing else, so what the stage reads must be there.
    fn check_inputs_of(&self, only: Stage) -> Result<()> {
        let config = &self.context.config;
        let needed = |stage: &Stage| *stage < only && stage.is_needed(config);
        for earlier in Stage::ALL.into_iter().filter(needed) {
            if !stage_dir(&self.context, earlier)?.is_complete()? {
                return Err(LaunchError::Usage(format!(
                    "--only {}: stage {} has to come first, and {} is not complete or not up to \
                     date\n  help: `reclora-launch run CONFIG` runs everything that is missing",
                    only.name(),
                    earlier.name(),
                    self.context.run_dir.join(earlier.directory()).display()
                ))
                .into());
            }
        }
        Ok(())
    }

    fn run_stage(&self, stage: Stage) -> Result<()> {
        let mut history = History::default();
        loop {
            let logs = self.logs.join(stage.name());
            let logs =
                self.context.part.map_or(logs.clone(), |p| logs.join(format!("part_{}", p.index)));
            let attempt = next_attempt(&logs);
            let logs = logs.join(format!("attempt_{attempt}"));
            let mut display = Display::new(stage.name());
            match self.run_gang(stage, logs, &mut display)? {
                GangEnd::Finished => return Ok(()),
                GangEnd::Paused(signal) => return Err(LaunchError::Paused(signal).into()),
                GangEnd::Interrupted(signal) => {
                    return Err(LaunchError::Interrupted(signal).into());
                }
                GangEnd::Failed(autopsy) => {
                    self.after_failure(stage, attempt, &autopsy, &mut history, &display)?;
                }
            }
        }
    }

    /// Returns if the stage is to be tried again.
    fn after_failure(
        &self,
        stage: Stage,
        attempt: usize,
        autopsy: &Autopsy,
        history: &mut History,
        display: &Display,
    ) -> Result<()> {
        let cause = autopsy.ranks.get(autopsy.cause).map_or(Outcome::Ended, |rank| rank.outcome);
        match history.decide(self.max_restarts, cause, &autopsy.reached) {
            Restart::Again => {
                display.line(&format!(
                    "rank {} failed in attempt {attempt}; starting the ranks again",
                    autopsy.cause
                ));
                Ok(())
            }
            Restart::GiveUp { why, hopeless } => {
                let failure = Failure::new(stage.name(), attempt, autopsy, &why, hopeless);
                if let Err(error) = failure.write(&self.context.run_dir) {
                    display.line(&format!("error.json could not be written: {error}"));
                }
                Err(LaunchError::Rank(Box::new(failure)).into())
            }
        }
    }

    fn run_gang(&self, stage: Stage, logs: PathBuf, display: &mut Display) -> Result<GangEnd> {
        let runtime = &self.context.config.runtime;
        let run_dir = &self.context.run_dir;
        let leader = self.leader.as_ref().filter(|_| !stage.single_process());
        let local_world_size = if stage.single_process() { 1 } else { runtime.nproc_per_node };
        let (mut world_size, mut secret) = (local_world_size, None);
        if let Some(leader) = leader {
            let mut leader = leader.borrow_mut();
            leader.gather()?;
            (world_size, secret) = (leader.world_size(), Some(leader.next_gang()));
        }
        // The store lives as long as its gang.
        let (_store, meeting) = match world_size {
            1 => (None, None),
            _ => {
                let secret = secret.map_or_else(Secret::generate, Ok)?;
                let config = &self.context.config;
                let (store, meeting) =
                    rendezvous::open(config, run_dir, self.endpoint, world_size, secret)?;
                (Some(store), Some(meeting))
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spec = GangSpec {
            program: self.program.clone(),
            args: vec!["rank".into()],
            env: GangEnv {
                world_size,
                first_rank: 0,
                local_world_size,
                threads: threads_per_rank(runtime.threads_per_rank, cores, local_world_size),
                stage: stage.name().to_owned(),
                run_dir: run_dir.clone(),
                part: self.context.part,
                meeting: meeting.clone(),
                host: None,
                launcher_pid: std::process::id(),
            },
            logs,
            tee: self.tee.clone(),
            binding: self.binding,
            watch: Arc::clone(&self.watch),
        };
        let others = |events: &Events| match (leader, &meeting) {
            (Some(leader), Some(meeting)) => leader.borrow().start_ranks(&spec, meeting, events),
            _ => Ok(Vec::new()),
        };
        let polled = Polled::begin();
        let pending = || signals::pending().or_else(|| leader?.borrow().asked());
        let asked = || Some(signals::meaning(pending()?, !stage.single_process()));
        let end = gang::run(&spec, limits(&self.context.config), &others, display, &asked)?;
        drop(polled);
        match (end, pending()) {
            (GangEnd::Paused(signal), _) => Ok(GangEnd::Paused(signal)),
            (_, Some(signal)) => Ok(GangEnd::Interrupted(signal)),
            (end, None) => Ok(end),
        }
    }
}

fn limits(config: &Config) -> Limits {
    let runtime = &config.runtime;
    let progress = Duration::from_secs(runtime.progress_timeout);
    Limits {
        heartbeat: Duration::from_secs(runtime.heartbeat_timeout),
        progress: (!progress.is_zero()).then_some(progress),
        pause: Duration::from_secs(runtime.pause_timeout),
        heal: Duration::from_secs(runtime.heal_timeout),
    }
}

/// Removes a stage's directory, so that nothing of an earlier result is resumed from. A directory
/// that no stage made is left alone (and refused by the stage).
fn clear(run_dir: &Path, dir: &Path) -> Result<()> {
    if !["plan.json", "manifest.json"].iter().any(|name| dir.join(name).is_file()) {
        return Ok(());
    }
    // Moved away first: a half-removed directory must not look like one somebody else made.
    let grave = run_dir.join(".removed");
    let failed = || format!("can't remove {}", dir.display());
    remove(&grave).wrap_err_with(failed)?;
    std::fs::rename(dir, &grave).wrap_err_with(failed)?;
    remove(&grave).wrap_err_with(failed)
}

fn remove(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The attempts at a stage of which there are logs.
pub fn attempts(logs: &Path) -> impl Iterator<Item = usize> {
    let entries = std::fs::read_dir(logs).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("attempt_")?.parse().ok())
}

fn next_attempt(logs: &Path) -> usize {
    attempts(logs).max().unwrap_or(0).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans() {
        let (tune, embed, eval) = (Stage::Tune, Stage::Embed, Stage::Evaluate);
        let none = Selection::default();
        let from = Selection { from: Some(tune), ..none };
        let only = Selection { only: Some(tune), ..none };
        let only_again = Selection { only: Some(tune), force: true, ..none };
        let force = Selection { force: true, ..none };
        let until = Selection { until: Some(tune), ..none };
        let from_until = Selection { from: Some(tune), ..until };
        let cases = [
            (none, [Plan::IfNeeded, Plan::IfNeeded, Plan::IfNeeded]),
            (from, [Plan::IfNeeded, Plan::Again, Plan::Again]),
            (Selection { force: true, ..from }, [Plan::IfNeeded, Plan::Again, Plan::Again]),
            (only, [Plan::Leave, Plan::IfNeeded, Plan::Leave]),
            (only_again, [Plan::Leave, Plan::Again, Plan::Leave]),
            (force, [Plan::Again, Plan::Again, Plan::Again]),
            (until, [Plan::IfNeeded, Plan::IfNeeded, Plan::Leave]),
            (from_until, [Plan::IfNeeded, Plan::Again, Plan::Leave]),
            (Selection { force: true, ..until }, [Plan::Again, Plan::Again, Plan::Leave]),
        ];
        for (selection, expected) in cases {
            assert_eq!([embed, tune, eval].map(|s| selection.plan(s)), expected, "{selection:?}");
        }
    }

    #[test]
    fn attempts_count_up() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(next_attempt(&dir.path().join("none")), 1);
        for name in ["attempt_2", "attempt_10", "attempt_x", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(next_attempt(dir.path()), 11);
    }

    #[test]
    fn only_directories_of_stages_are_cleared() {
        let run = tempfile::tempdir().unwrap();
        clear(run.path(), &run.path().join("none")).unwrap();
        let dir = run.path().join("export");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("precious"), "x").unwrap();
        clear(run.path(), &dir).unwrap();
        assert!(dir.join("precious").exists());
        std::fs::write(dir.join("plan.json"), "{}").unwrap();
        clear(run.path(), &dir).unwrap();
        assert!(!dir.exists());
    }
}
