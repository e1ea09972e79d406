//! A worker group: the ranks of one stage, started together and ended together.
//!
//! S-4: nothing survives. Each rank leads its own process group; the groups are ended when one rank
//! dies, when the launcher is asked to stop, and (by the kernel, see [`rank`]) when the
//! launcher itself dies.

pub mod binding;
pub mod cause;
pub mod env;
pub mod failure;
pub mod process;
pub mod rank;
pub mod rendezvous;
pub mod supervision;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reclora_trainer::stages::Part;
use reclora_trainer::telemetry::progress::Event;
use serde::{Deserialize, Serialize};

use crate::cli::Binding;
use crate::error::Result;
use crate::monitor::watch::Watch;
use crate::progress::display::Display;
use crate::progress::tee::Tee;
use crate::progress::tracker::Tracker;
use cause::{Outcome, first_cause};
use env::Meeting;
use failure::{GroupFailure, RankReport};
use process::RankProcess;
use supervision::{Action, Ask, End, Input, Limits, Phase, State, step};

pub use process::Events;

/// How often the ranks are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long output of an ended worker group may still arrive.
pub const DRAIN: Duration = Duration::from_secs(1);
/// Events on their way from the reader threads.
pub const CHANNEL: usize = 1024;

/// What to start on a node.
#[derive(Debug)]
pub struct GroupSpec {
    /// Executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// What every node knows.
    pub plan: GroupPlan,
    /// Compute threads of each rank.
    pub threads: usize,
    /// The part of the stage's chunks to do, if not all.
    pub part: Option<Part>,
    /// Where ranks meet; none for one rank.
    pub meeting: Option<Meeting>,
    /// Address on which ranks of other nodes reach those of this one, where that is not said by the meeting.
    pub host: Option<IpAddr>,
    /// Learns what this node's ranks do.
    pub watch: Arc<Watch>,
}

/// A worker group as each of its nodes knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupPlan {
    /// Stage to run.
    pub stage: String,
    /// Run directory.
    pub run_dir: PathBuf,
    /// Directory of this attempt's logs; one directory per rank is made in it.
    pub logs: PathBuf,
    /// Whose standard error is shown too.
    pub tee: Shown,
    /// On which cores ranks run.
    pub binding: Binding,
    /// Number of ranks.
    pub world_size: usize,
    /// The first rank of the node.
    pub first_rank: usize,
    /// Number of ranks of the node, as of every other.
    pub local_world_size: usize,
}

/// The ranks of each node whose standard error is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shown {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// Those of these local numbers.
    Some(Vec<usize>),
}

impl Shown {
    /// Whether a rank is among them.
    pub fn has(&self, local_rank: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(ranks) => ranks.contains(&local_rank),
        }
    }
}

impl GroupSpec {
    /// Starts this node's ranks.
    pub fn start_local(&self, events: &Events) -> Result<Vec<RankProcess>> {
        let ranks = self.plan.local_world_size;
        self.watch.clear(&self.plan.stage);
        let nodes = match self.plan.binding {
            Binding::None => Vec::new(),
            Binding::Node => binding::nodes()?,
        };
        let start = |local_rank| {
            let cpus = binding::cpus_of(local_rank, ranks, &nodes);
            RankProcess::start(self, local_rank, &cpus, events)
        };
        (0..ranks).map(start).collect()
    }

    /// The human-readable log of a rank.
    pub fn log_of(&self, rank: usize) -> PathBuf {
        self.logs_of(rank).join("stderr.log")
    }

    /// Directory of a rank's logs.
    fn logs_of(&self, rank: usize) -> PathBuf {
        self.plan.logs.join(format!("rank_{rank}"))
    }
}

/// A rank, wherever it runs.
pub trait Worker {
    /// How it ended, if it has.
    fn poll(&mut self) -> Result<Option<Outcome>>;
    /// Sends a signal to its process group.
    fn signal(&self, signal: Signal);
    /// The last lines of its standard error.
    fn tail(&self) -> Vec<String>;
    /// Its human-readable log.
    fn log(&self) -> &Path;
    /// The machine it runs on.
    fn host(&self) -> String;
}

/// Starts the ranks of other nodes, in the order of their numbers, behind this node's.
pub type StartOthers<'a> = dyn Fn(&Events) -> Result<Vec<Box<dyn Worker>>> + 'a;

/// Runs a worker group, of which this node has the first ranks, to its end. `asked` is called at every tick.
pub fn run(
    spec: &GroupSpec,
    limits: Limits,
    others: &StartOthers<'_>,
    display: &mut Display,
    asked: &dyn Fn() -> Option<Ask>,
) -> Result<(End, WorkerGroup)> {
    let (sender, events) = sync_channel(CHANNEL);
    let world_size = spec.plan.world_size;
    let mut group = WorkerGroup {
        ranks: Vec::new(),
        gone: vec![false; world_size],
        state: State::new(world_size, limits),
        tracker: Tracker::new(world_size),
        tee: Tee::default(),
        started: Instant::now(),
        events,
    };
    for process in spec.start_local(&sender)? {
        group.ranks.push(Box::new(process));
    }
    group.ranks.extend(others(&sender)?);
    // The reader threads hold the other senders: the channel closes with the last pipe.
    drop(sender);
    let end = group.supervise(display, asked)?;
    group.drain(display);
    display.clear();
    Ok((end, group))
}

/// Sees and does what [`supervision`] decides on.
pub struct WorkerGroup {
    ranks: Vec<Box<dyn Worker>>,
    /// Whose process is known to be gone.
    gone: Vec<bool>,
    state: State,
    tracker: Tracker,
    tee: Tee,
    started: Instant,
    events: Receiver<(usize, Event)>,
}

impl WorkerGroup {
    fn supervise(&mut self, display: &mut Display, asked: &dyn Fn() -> Option<Ask>) -> Result<End> {
        loop {
            let wait = match self.state.phase {
                Phase::Terminating(_) => Duration::ZERO,
                Phase::Ending { .. } => TICK / 5,
                _ => TICK,
            };
            self.take_events(display, wait);
            self.poll(display)?;
            if let Some(ask) = asked() {
                self.feed(display, Input::Asked(ask));
            }
            self.feed(display, Input::Tick);
            self.tee.due(self.started.elapsed()).iter().for_each(|line| display.line(line));
            if let Some(end) = self.state.end() {
                return Ok(end);
            }
        }
    }

    /// Takes a step, and does what follows from it.
    fn feed(&mut self, display: &Display, input: Input) {
        let pausing = matches!(input, Input::Asked(Ask::Pause(_)));
        let state = std::mem::take(&mut self.state);
        let (state, decision) = step(state, self.started.elapsed(), input);
        self.state = state;
        for Action::Signal(rank, signal) in decision.actions {
            if let Some(rank) = self.ranks.get(rank) {
                rank.signal(signal);
            }
        }
        // Of a failure the block at the end says more.
        if let Some(reason) = decision.reason.filter(|_| pausing) {
            display.line(&reason);
        }
    }

    fn poll(&mut self, display: &Display) -> Result<()> {
        for rank in 0..self.ranks.len() {
            if self.gone[rank] {
                continue;
            }
            if let Some(outcome) = self.ranks[rank].poll()? {
                self.gone[rank] = true;
                self.feed(display, Input::Ended(rank, outcome));
            }
        }
        Ok(())
    }

    /// Takes what has arrived; waits at most `wait` for the first.
    fn take_events(&mut self, display: &mut Display, wait: Duration) {
        let mut next = self.events.recv_timeout(wait);
        if let Err(RecvTimeoutError::Disconnected) = next {
            // All pipes are closed; the processes end now. Don't spin until they have.
            std::thread::sleep(wait.min(TICK / 5));
        }
        let mut budget = CHANNEL;
        while let Ok((rank, event)) = next {
            self.take(display, rank, event);
            budget -= 1;
            if budget == 0 {
                break;
            }
            next = self.events.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
    }

    fn take(&mut self, display: &mut Display, rank: usize, event: Event) {
        let input = match event {
            Event::Start { .. } | Event::Update { .. } | Event::Finish { .. } => {
                Input::Progress(rank)
            }
            Event::Saved => Input::Saved,
            _ => Input::Alive(rank),
        };
        self.feed(display, input);
        if let Event::Said { text } = &event
            && let Some(line) = self.tee.push(self.started.elapsed(), rank, text)
        {
            display.line(&line);
        }
        if let Some(change) = self.tracker.apply(rank, event) {
            display.show(&change);
        }
    }

    /// Output that was still in the pipes.
    fn drain(&mut self, display: &mut Display) {
        let deadline = Instant::now() + DRAIN;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match self.events.recv_timeout(left) {
                Ok((rank, event)) => self.take(display, rank, event),
                Err(_) => break,
            }
        }
        self.tee.due(Duration::MAX).iter().for_each(|line| display.line(line));
    }

    /// What is known of it, after a rank has failed.
    pub fn failure(&self) -> GroupFailure {
        let ended = &self.state.ended;
        let ranks = self.ranks.iter().enumerate().map(|(rank, process)| {
            let end = ended.iter().find(|end| end.rank == rank);
            let outcome = end.map_or(Outcome::Ended, |end| end.outcome);
            RankReport::new(rank, outcome, process.as_ref(), &self.tracker)
        });
        GroupFailure {
            ranks: ranks.collect(),
            cause: first_cause(ended).map_or(0, |cause| cause.rank),
            reached: self.tracker.high_water(),
        }
    }
}
