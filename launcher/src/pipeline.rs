//! Takes an experiment through its stages: which to run, one worker group each, restarts.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use color_eyre::eyre::eyre;
use reclora_comm::Secret;

use crate::cli::{Binding, StageArgs};
use crate::cluster::Leader;
use crate::error::{LaunchError, Result};
use crate::monitor::watch::Watch;
use crate::output::say;
use crate::preflight;
use crate::progress::display::Display;
use crate::run_dir::{clear, next_attempt, save};
use crate::signals::{self, Polled};
use crate::workers::cause::{History, Outcome, Restart};
use crate::workers::env::threads_per_rank;
use crate::workers::failure::{FailureReport, GroupFailure};
use crate::workers::supervision::{Ask, End, Limits};
use crate::workers::{self, Events, GroupPlan, GroupSpec, Shown, WorkerGroup, rendezvous};
use reclora_trainer::config::Config;
use reclora_trainer::stages::{RunContext, Stage, stage_dir};

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

impl StageArgs {
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
    pub selection: StageArgs,
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
            let (end, group) = self.run_group(stage, logs, &mut display)?;
            match end {
                End::Finished => return Ok(()),
                End::Paused(signal) => return Err(LaunchError::Paused(signal).into()),
                End::Interrupted(signal) => return Err(LaunchError::Interrupted(signal).into()),
                End::Failed => {
                    self.after_failure(stage, attempt, group.failure(), &mut history, &display)?;
                }
            }
        }
    }

    /// Returns if the stage is to be tried again.
    fn after_failure(
        &self,
        stage: Stage,
        attempt: usize,
        failure: GroupFailure,
        history: &mut History,
        display: &Display,
    ) -> Result<()> {
        let cause = failure.ranks.get(failure.cause).map_or(Outcome::Ended, |rank| rank.outcome);
        match history.decide(self.max_restarts, cause, &failure.reached) {
            Restart::Again => {
                display.line(&format!(
                    "rank {} failed in attempt {attempt}; starting the ranks again",
                    failure.cause
                ));
                Ok(())
            }
            Restart::GiveUp { why, hopeless } => {
                let report = FailureReport::new(stage.name(), attempt, failure, &why, hopeless);
                if let Err(error) = report.write(&self.context.run_dir) {
                    display.line(&format!("error.json could not be written: {error}"));
                }
                let error = if hopeless { LaunchError::Hopeless } else { LaunchError::Died };
                Err(error(report.to_string()).into())
            }
        }
    }

    fn run_group(
        &self,
        stage: Stage,
        logs: PathBuf,
        display: &mut Display,
    ) -> Result<(End, WorkerGroup)> {
        let runtime = &self.context.config.runtime;
        let run_dir = &self.context.run_dir;
        let leader = self.leader.as_ref().filter(|_| !stage.single_process());
        let local_world_size = if stage.single_process() { 1 } else { runtime.nproc_per_node };
        let (mut world_size, mut secret) = (local_world_size, None);
        if let Some(leader) = leader {
            let mut leader = leader.borrow_mut();
            leader.gather()?;
            (world_size, secret) = (leader.world_size(), Some(leader.next_group()));
        }
        // The store lives as long as its worker group.
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
        let spec = GroupSpec {
            program: self.program.clone(),
            args: vec!["rank".into()],
            plan: GroupPlan {
                stage: stage.name().to_owned(),
                run_dir: run_dir.clone(),
                logs,
                tee: self.tee.clone(),
                binding: self.binding,
                world_size,
                first_rank: 0,
                local_world_size,
            },
            threads: threads_per_rank(runtime.threads_per_rank, cores, local_world_size),
            part: self.context.part,
            meeting: meeting.clone(),
            host: None,
            watch: Arc::clone(&self.watch),
        };
        let others = |events: &Events| match (leader, &meeting) {
            (Some(leader), Some(meeting)) => leader.borrow().start_ranks(&spec, meeting, events),
            _ => Ok(Vec::new()),
        };
        let polled = Polled::begin();
        let pending = || signals::pending().or_else(|| leader?.borrow().asked());
        let asked = || Some(Ask::of(pending()?, !stage.single_process()));
        let (end, group) =
            workers::run(&spec, limits(&self.context.config), &others, display, &asked)?;
        drop(polled);
        let end = match (end, pending()) {
            (End::Paused(signal), _) => End::Paused(signal),
            (_, Some(signal)) => End::Interrupted(signal),
            (end, None) => end,
        };
        Ok((end, group))
    }
}

fn limits(config: &Config) -> Limits {
    let runtime = &config.runtime;
    let progress = Duration::from_secs(runtime.progress_timeout);
    Limits {
        heartbeat: Duration::from_secs(runtime.heartbeat_timeout),
        progress: (!progress.is_zero()).then_some(progress),
        pause: Duration::from_secs(runtime.pause_timeout),
        recovery: Duration::from_secs(runtime.recovery_timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans() {
        let (tune, embed, eval) = (Stage::Tune, Stage::Embed, Stage::Evaluate);
        let none = StageArgs::default();
        let from = StageArgs { from: Some(tune), ..none };
        let only = StageArgs { only: Some(tune), ..none };
        let only_again = StageArgs { only: Some(tune), force: true, ..none };
        let force = StageArgs { force: true, ..none };
        let until = StageArgs { until: Some(tune), ..none };
        let from_until = StageArgs { from: Some(tune), ..until };
        let cases = [
            (none, [Plan::IfNeeded, Plan::IfNeeded, Plan::IfNeeded]),
            (from, [Plan::IfNeeded, Plan::Again, Plan::Again]),
            (StageArgs { force: true, ..from }, [Plan::IfNeeded, Plan::Again, Plan::Again]),
            (only, [Plan::Leave, Plan::IfNeeded, Plan::Leave]),
            (only_again, [Plan::Leave, Plan::Again, Plan::Leave]),
            (force, [Plan::Again, Plan::Again, Plan::Again]),
            (until, [Plan::IfNeeded, Plan::IfNeeded, Plan::Leave]),
            (from_until, [Plan::IfNeeded, Plan::Again, Plan::Leave]),
            (StageArgs { force: true, ..until }, [Plan::Again, Plan::Again, Plan::Leave]),
        ];
        for (selection, expected) in cases {
            assert_eq!([embed, tune, eval].map(|s| selection.plan(s)), expected, "{selection:?}");
        }
    }
}
