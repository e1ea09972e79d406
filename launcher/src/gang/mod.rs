//! A gang: the ranks of one stage, started together and ended together.
//!
//! S-4: nothing survives. Each rank leads its own process group; the groups are ended when one rank
//! dies, when the launcher is asked to stop, and (by the kernel, see [`crate::rank`]) when the
//! launcher itself dies.

pub mod cause;
pub mod env;
pub mod process;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reclora_comm::Record;

use crate::error::Result;
use crate::progress::display::Display;
use crate::progress::tracker::Tracker;
use cause::{Ended, Outcome, Verdict, first_cause, verdict};
use env::GangEnv;
use process::RankProcess;

pub use process::Events;

/// How often the ranks are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// How long output of an ended gang may still arrive.
pub const DRAIN: Duration = Duration::from_secs(1);
/// Events on their way from the reader threads.
pub const CHANNEL: usize = 1024;

/// What to start.
#[derive(Debug)]
pub struct GangSpec {
    /// Executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: GangEnv,
    /// Directory of this attempt's logs; one directory per rank is made in it.
    pub logs: PathBuf,
}

impl GangSpec {
    /// Starts this node's ranks.
    pub fn start_local(&self, events: &Events) -> Result<Vec<RankProcess>> {
        let local = 0..self.env.local_world_size;
        local.map(|local_rank| RankProcess::start(self, local_rank, events)).collect()
    }

    /// The human-readable log of a rank.
    pub fn log_of(&self, rank: usize) -> PathBuf {
        self.logs_of(rank).join("stderr.log")
    }

    /// Directory of a rank's logs.
    fn logs_of(&self, rank: usize) -> PathBuf {
        self.logs.join(format!("rank_{rank}"))
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
}

/// Starts the ranks of other nodes, in the order of their numbers, behind this node's.
pub type StartOthers<'a> = dyn Fn(&Events) -> Result<Vec<Box<dyn Worker>>> + 'a;

/// How it went.
#[derive(Debug)]
pub enum GangEnd {
    /// Every rank finished.
    Finished,
    /// A signal to the launcher ended it.
    Interrupted(Signal),
    /// A rank failed.
    Failed(Autopsy),
}

/// What is known of a failed gang.
#[derive(Debug)]
pub struct Autopsy {
    /// Every rank, by rank.
    pub ranks: Vec<RankEnd>,
    /// The rank whose end explains the others.
    pub cause: usize,
    /// Units of each task that were done.
    pub reached: BTreeMap<String, u64>,
}

/// The end of one rank.
#[derive(Clone, Debug)]
pub struct RankEnd {
    /// How it ended.
    pub outcome: Outcome,
    /// The error it reported itself.
    pub error: Option<String>,
    /// What it was doing.
    pub doing: String,
    /// Its last collectives, if it could tell.
    pub collectives: Vec<Record>,
    /// Its last lines on standard error.
    pub tail: Vec<String>,
    /// The file they are from.
    pub log: PathBuf,
}

/// Runs a gang to its end, of which this node has the first ranks. `interrupted` is asked at every tick.
pub fn run(
    spec: &GangSpec,
    others: &StartOthers<'_>,
    display: &mut Display,
    interrupted: &dyn Fn() -> Option<Signal>,
) -> Result<GangEnd> {
    let (sender, events) = sync_channel(CHANNEL);
    let mut gang = Gang {
        ranks: Vec::new(),
        ended: Vec::new(),
        tracker: Tracker::new(spec.env.world_size),
        started: Instant::now(),
        events,
    };
    for process in spec.start_local(&sender)? {
        gang.ranks.push(Box::new(process));
    }
    gang.ranks.extend(others(&sender)?);
    // The reader threads hold the other senders: the channel closes with the last pipe.
    drop(sender);
    let stopped_by = gang.watch(display, interrupted)?;
    if gang.ended.len() < gang.ranks.len() {
        gang.stop(display)?;
    }
    gang.drain(display);
    display.clear();
    match stopped_by {
        Some(signal) => Ok(GangEnd::Interrupted(signal)),
        None => Ok(gang.autopsy()),
    }
}

struct Gang {
    ranks: Vec<Box<dyn Worker>>,
    ended: Vec<Ended>,
    tracker: Tracker,
    started: Instant,
    events: Receiver<(usize, reclora_trainer::progress::Event)>,
}

impl Gang {
    /// Until all have ended, one failed, or a signal came.
    fn watch(
        &mut self,
        display: &mut Display,
        interrupted: &dyn Fn() -> Option<Signal>,
    ) -> Result<Option<Signal>> {
        loop {
            self.take_events(display, TICK);
            self.poll(false)?;
            if self.ended.len() == self.ranks.len() {
                return Ok(None);
            }
            if let Some(signal) = interrupted() {
                return Ok(Some(signal));
            }
            if verdict(&self.ended, self.started.elapsed()) == Verdict::Stop {
                // One more look: the cause is what had ended before we began to end the rest.
                self.poll(false)?;
                return Ok(None);
            }
        }
    }

    /// SIGTERM to every group, SIGKILL to those that stay.
    fn stop(&mut self, display: &mut Display) -> Result<()> {
        let end = |ranks: &[Box<dyn Worker>], signal| ranks.iter().for_each(|r| r.signal(signal));
        end(&self.ranks, Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while self.ended.len() < self.ranks.len() && Instant::now() < deadline {
            self.take_events(display, TICK / 5);
            self.poll(true)?;
        }
        end(&self.ranks, Signal::SIGKILL);
        let deadline = Instant::now() + GRACE;
        while self.ended.len() < self.ranks.len() && Instant::now() < deadline {
            self.take_events(display, TICK / 5);
            self.poll(true)?;
        }
        Ok(())
    }

    fn poll(&mut self, stopping: bool) -> Result<()> {
        let at = self.started.elapsed();
        for (rank, process) in self.ranks.iter_mut().enumerate() {
            if self.ended.iter().any(|end| end.rank == rank) {
                continue;
            }
            if let Some(outcome) = process.poll()? {
                let outcome = if stopping { Outcome::Ended } else { outcome };
                self.ended.push(Ended { rank, outcome, at });
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
            if let Some(change) = self.tracker.apply(rank, event) {
                display.show(&change);
            }
            budget -= 1;
            if budget == 0 {
                break;
            }
            next = self.events.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
    }

    /// Output that was still in the pipes.
    fn drain(&mut self, display: &mut Display) {
        let deadline = Instant::now() + DRAIN;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match self.events.recv_timeout(left) {
                Ok((rank, event)) => {
                    if let Some(change) = self.tracker.apply(rank, event) {
                        display.show(&change);
                    }
                }
                Err(_) => break,
            }
        }
    }

    fn autopsy(&self) -> GangEnd {
        let Some(cause) = first_cause(&self.ended) else { return GangEnd::Finished };
        let ranks = self.ranks.iter().enumerate().map(|(rank, process)| RankEnd {
            outcome: self
                .ended
                .iter()
                .find(|end| end.rank == rank)
                .map_or(Outcome::Ended, |end| end.outcome),
            error: self.tracker.error(rank).map(str::to_owned),
            doing: self.tracker.doing(rank),
            collectives: self.tracker.records(rank).to_vec(),
            tail: process.tail(),
            log: process.log().to_path_buf(),
        });
        GangEnd::Failed(Autopsy {
            ranks: ranks.collect(),
            cause: cause.rank,
            reached: self.tracker.high_water(),
        })
    }
}
