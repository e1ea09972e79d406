//! Every node but the first: starts ranks as the leader says, and notifies it of what they do.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, eyre};
use nix::sys::signal::Signal;
use reclora_comm::control::{Control, Incoming, Introduction, connect};
use reclora_comm::{CommError, Secret};
use reclora_trainer::config::RuntimeConfig;
use reclora_trainer::telemetry::progress::Event;

use super::job::{Job, POLL, secret_of_agent};
use super::leader::group_secret;
use super::{StartGroup, ToAgent, ToLeader, encode};
use crate::error::{LaunchError, Result};
use crate::monitor::collect::Collector;
use crate::monitor::watch::Watch;
use crate::output::say;
use crate::signals::{self, Polled};
use crate::workers::env::{Meeting, threads_per_rank};
use crate::workers::process::RankProcess;
use crate::workers::supervision::{Ask, GRACE};
use crate::workers::{CHANNEL, DRAIN, GroupSpec, Worker};

/// How often ranks and the leader are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How long the leader may take to end what it could not pause.
const LEADER_GRACE: Duration = GRACE.saturating_mul(3);

/// Works for the leader until that is done.
pub fn run(job: &Job, run_dir: &Path, runtime: &RuntimeConfig) -> Result<()> {
    let until = Instant::now() + job.deadline;
    let (arrived, incoming) = channel();
    let introduction = Introduction {
        node: job.node,
        nodes: job.nodes,
        build_id: Job::build_id()?,
        job: job.id.clone(),
    };
    let agent = loop {
        let secret = secret_of_agent(run_dir, until)?;
        let arrived = arrived.clone();
        let on = move |incoming| arrived.send(incoming).unwrap_or_default();
        let left = until.saturating_duration_since(Instant::now());
        match connect(&job.endpoint, &secret, &introduction, left, on) {
            // The leader may be about to replace a secret that an earlier one left.
            Err(CommError::WrongSecret { .. }) if Instant::now() < until => {
                std::thread::sleep(POLL);
            }
            Err(error) => return Err(error).wrap_err("this node can't take part"),
            Ok(control) => {
                let collector = Collector::start(run_dir, &format!("node_{}", job.node), job.node)?;
                break Agent { control, secret, runtime, collector, group: None, asked: None };
            }
        }
    };
    say(&format!("node {} of {}: led by {}", job.node, job.nodes, agent.control.peer()));
    agent.serve(&incoming)
}

struct Agent<'a> {
    control: Control,
    secret: Secret,
    runtime: &'a RuntimeConfig,
    collector: Collector,
    group: Option<Ranks>,
    /// When the leader was notified that this node is to end.
    asked: Option<Instant>,
}

impl Agent<'_> {
    fn serve(mut self, incoming: &Receiver<Incoming>) -> Result<()> {
        let _polled = Polled::begin();
        loop {
            match incoming.recv_timeout(TICK) {
                Ok(Incoming::Message(bytes)) => {
                    let message = serde_json::from_slice(&bytes);
                    match message.wrap_err("node 0 sent something unknown")? {
                        ToAgent::Start(start) => self.start(&start)?,
                        ToAgent::Signal { group, rank, signal } => self.signal(group, rank, signal),
                        ToAgent::Finish { error: None } => return Ok(()),
                        ToAgent::Finish { error: Some((error, code)) } => {
                            return Err(LaunchError::LeaderEnded(error, code).into());
                        }
                    }
                }
                // Ranks are ended with `self`.
                Ok(Incoming::Lost(error)) => {
                    return Err(error).wrap_err("node 0 is gone; every rank here has been ended");
                }
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {}
            }
            self.notify_leader(signals::pending())?;
            if let Some(group) = &mut self.group
                && group.report(&self.control)?
            {
                self.group = None;
            }
        }
    }

    /// Asked to end, this node asks the leader, who decides for all; but it does not wait for ever.
    fn notify_leader(&mut self, signal: Option<Signal>) -> Result<()> {
        let Some(signal) = signal else { return Ok(()) };
        if matches!(Ask::of(signal, true), Ask::End(_)) {
            return Err(LaunchError::Interrupted(signal).into());
        }
        if self.asked.is_none() {
            self.control.send(encode(&ToLeader::Asked { signal: signal as i32 }))?;
        }
        let since = *self.asked.get_or_insert_with(Instant::now);
        // The leader's own limit, and some time for it to notify this node.
        if since.elapsed() > Duration::from_secs(self.runtime.pause_timeout) + LEADER_GRACE {
            return Err(LaunchError::Interrupted(signal).into());
        }
        Ok(())
    }

    fn start(&mut self, start: &StartGroup) -> Result<()> {
        let threads = self.runtime.threads_per_rank;
        match Ranks::start(start, &self.secret, threads, &self.control, self.collector.watch()) {
            Ok(group) => self.group = Some(group),
            Err(error) => {
                let error = crate::exit::block(&error);
                let failed = ToLeader::Failed { group: start.group, error };
                self.control.send(encode(&failed))?;
            }
        }
        Ok(())
    }

    fn signal(&self, group: u64, rank: usize, signal: i32) {
        if let (Some(ranks), Ok(signal)) = (&self.group, Signal::try_from(signal))
            && ranks.group == group
            && let Some(process) =
                rank.checked_sub(ranks.first_rank).and_then(|place| ranks.processes.get(place))
        {
            process.signal(signal);
        }
    }
}

/// This node's ranks of a worker group. Dropping them ends them.
struct Ranks {
    group: u64,
    first_rank: usize,
    processes: Vec<RankProcess>,
    /// Whether the leader has been notified of a rank's end.
    notified: Vec<bool>,
    events: Receiver<(usize, Event)>,
}

impl Ranks {
    fn start(
        start: &StartGroup,
        secret: &Secret,
        threads: usize,
        control: &Control,
        watch: Arc<Watch>,
    ) -> Result<Self> {
        let StartGroup { group, plan, meeting } = start;
        if !plan.run_dir.is_dir() {
            return Err(eyre!(
                "node 0 works in {}, which is not there on this node; use a run directory that all \
                 nodes share",
                plan.run_dir.display()
            ));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let secret = group_secret(secret, *group).to_hex();
        let spec = GroupSpec {
            program: std::env::current_exe().wrap_err("can't find this executable")?,
            args: vec!["rank".into()],
            plan: plan.clone(),
            threads: threads_per_rank(threads, cores, plan.local_world_size),
            part: None,
            meeting: Some(Meeting { address: *meeting, secret }),
            host: Some(control.local()),
            watch,
        };
        let (sender, events) = sync_channel(CHANNEL);
        let processes = spec.start_local(&sender)?;
        let notified = vec![false; processes.len()];
        let first_rank = plan.first_rank;
        Ok(Self { group: *group, first_rank, processes, notified, events })
    }

    /// Notifies the leader of what is new; returns whether all ranks have ended.
    fn report(&mut self, control: &Control) -> Result<bool> {
        let group = self.group;
        let notify = |(rank, event): (usize, Event)| {
            control.send(encode(&ToLeader::Event { group, rank, event }))
        };
        self.events.try_iter().try_for_each(notify)?;
        for (place, process) in self.processes.iter_mut().enumerate() {
            if self.notified[place] {
                continue;
            }
            let Some(outcome) = process.poll()? else { continue };
            // Its last words were written before it ended, but perhaps not read yet.
            let deadline = Instant::now() + DRAIN;
            while !process.is_drained() && Instant::now() < deadline {
                self.events.try_iter().try_for_each(notify)?;
                std::thread::sleep(TICK / 10);
            }
            self.events.try_iter().try_for_each(notify)?;
            let rank = self.first_rank + place;
            let tail = process.tail();
            control.send(encode(&ToLeader::Ended { group, rank, end: outcome, tail }))?;
            self.notified[place] = true;
        }
        Ok(self.notified.iter().all(|notified| *notified))
    }
}
