//! Node 0: takes agents in, and has their ranks started and watched.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use color_eyre::eyre::WrapErr;
use nix::sys::signal::Signal;
use reclora_comm::Secret;
use reclora_comm::control::{Arrival, Control, ControlListener, Incoming};
use reclora_trainer::telemetry::progress::Event;

use super::job::{Job, Membership, secret_of_leader};
use super::{StartGroup, ToAgent, ToLeader, encode};
use crate::error::{LaunchError, Result};
use crate::output::say;
use crate::signals;
use crate::workers::cause::Outcome;
use crate::workers::env::Meeting;
use crate::workers::{Events, GroupPlan, GroupSpec, Worker};

/// Between two looks for signals while nodes are waited for.
const POLL: Duration = Duration::from_millis(50);

/// The leader's side of a job over several nodes.
#[derive(Debug)]
pub struct Leader {
    job: Job,
    build_id: String,
    secret: Secret,
    listener: ControlListener,
    /// The agents by node, from 1.
    nodes: BTreeMap<usize, Node>,
    /// Worker groups started so far.
    groups: u64,
    /// Nodes of the current worker group: this one, and the first of the agents.
    taking_part: usize,
}

/// An agent that has come.
#[derive(Debug)]
struct Node {
    address: IpAddr,
    control: Arc<Control>,
    state: Arc<Mutex<NodeState>>,
    /// The signal that asks it to end soon; 0 for none. Not in the state, which is locked while an event waits
    /// for the supervisor to take it, who must not wait for that lock.
    asked: Arc<AtomicI32>,
}

/// What is known of a node, as its connection reports it.
#[derive(Debug, Default)]
struct NodeState {
    /// Why it is gone.
    lost: Option<String>,
    /// The worker group of which it runs ranks.
    group: Option<Follower>,
}

/// Ranks of a node that run.
#[derive(Debug)]
struct Follower {
    group: u64,
    events: Events,
    first_rank: usize,
    ranks: Vec<Arc<Mutex<RankState>>>,
}

#[derive(Debug, Default)]
struct RankState {
    outcome: Option<Outcome>,
    tail: Vec<String>,
}

impl Leader {
    /// Listens for agents.
    pub fn start(job: Job, address: SocketAddr, run_dir: &Path) -> Result<Self> {
        let secret = secret_of_leader(run_dir)?;
        let listener = ControlListener::start(address, secret.clone())?;
        let build_id = Job::build_id()?;
        Ok(Self {
            job,
            build_id,
            secret,
            listener,
            nodes: BTreeMap::new(),
            groups: 0,
            taking_part: 0,
        })
    }

    /// Returns when the nodes are there of which the next worker group is; those that went away may come back. Where
    /// fewer than all may do, the others are waited for only for a while, and not at all while none is lost.
    pub fn gather(&mut self) -> Result<()> {
        // Only who was there can be lost.
        let before = (self.groups > 0).then_some(self.taking_part);
        let limit = if before.is_none() { self.job.deadline } else { self.job.rejoin };
        let started = Instant::now();
        let mut said = false;
        loop {
            self.nodes.retain(|_, node| lock(&node.state).lost.is_none());
            while let Some(arrival) = self.listener.next(Duration::ZERO) {
                self.arrive(arrival);
            }
            let here = 1 + self.nodes.len();
            match self.job.membership(before, here, started.elapsed(), limit) {
                Membership::Go(nodes) => {
                    if before.is_some_and(|before| before != nodes) {
                        say(&format!("going on with {nodes} of {} nodes", self.job.nodes));
                    }
                    self.taking_part = nodes;
                    return Ok(());
                }
                Membership::GiveUp => return Err(self.missing(limit).into()),
                Membership::Wait => {}
            }
            if !said {
                let (all, at) = (self.job.nodes, self.listener.address());
                say(&format!("waiting for node {} of {all} at {at}", self.absent()));
                said = true;
            }
            if let Some(signal) = signals::pending().or_else(|| self.asked()) {
                return Err(LaunchError::Interrupted(signal).into());
            }
            if let Some(arrival) = self.listener.next(POLL) {
                self.arrive(arrival);
            }
        }
    }

    /// The nodes that are not there.
    fn absent(&self) -> String {
        let absent = (1..self.job.nodes).filter(|node| !self.nodes.contains_key(node));
        absent.map(|node| node.to_string()).collect::<Vec<_>>().join(", ")
    }

    fn missing(&self, waited: Duration) -> LaunchError {
        let more_time = match self.groups {
            0 => "--set runtime.rendezvous_timeout=N",
            _ => "--rejoin-timeout N",
        };
        LaunchError::NodeMissing(format!(
            "node {} did not come within {} s\n  help: run the same command there with its --node-rank, or \
             give it more time with {more_time}",
            self.absent(),
            waited.as_secs()
        ))
    }

    fn arrive(&mut self, arrival: Arrival) {
        let introduction = &arrival.introduction;
        let (node, address) = (introduction.node, arrival.address.ip());
        if let Some(reason) = self.refusal(&arrival) {
            say(&format!("node {node} at {address} was sent away: {reason}"));
            arrival.refuse(&reason);
            return;
        }
        let state = Arc::new(Mutex::new(NodeState::default()));
        let asked = Arc::new(AtomicI32::new(0));
        let (seen, asking) = (Arc::clone(&state), Arc::clone(&asked));
        match arrival.welcome(move |incoming| take(&seen, &asking, node, incoming)) {
            Ok(control) => {
                say(&format!("node {node} is here: {address}"));
                let control = Arc::new(control);
                self.nodes.insert(node, Node { address, control, state, asked });
            }
            Err(error) => say(&format!("node {node} went away: {error}")),
        }
    }

    /// Why an agent can't take part.
    fn refusal(&self, arrival: &Arrival) -> Option<String> {
        let theirs = &arrival.introduction;
        let differs = |what: &str, theirs: &str, ours: &str| {
            (theirs != ours).then(|| format!("its {what} is {theirs}, the job's is {ours}"))
        };
        let nodes = self.job.nodes;
        differs("build", &theirs.build_id, &self.build_id)
            .or_else(|| differs("--rdzv-id", &theirs.job, &self.job.id))
            .or_else(|| differs("--nnodes", &theirs.nodes.to_string(), &nodes.to_string()))
            .or_else(|| {
                let exists = (1..nodes).contains(&theirs.node);
                (!exists).then(|| format!("the job's agents are nodes 1 to {}", nodes - 1))
            })
            .or_else(|| {
                let here = self.nodes.contains_key(&theirs.node);
                here.then(|| format!("there is a node {} already", theirs.node))
            })
    }

    /// Ranks of all nodes that take part.
    pub fn world_size(&self) -> usize {
        self.taking_part * self.job.ranks_per_node
    }

    /// The secret of the next worker group, whose number is counted.
    pub fn next_group(&mut self) -> Secret {
        self.groups += 1;
        group_secret(&self.secret, self.groups)
    }

    /// Has the agents start their ranks of the worker group of [`Leader::next_group`].
    pub fn start_ranks(
        &self,
        spec: &GroupSpec,
        meeting: &Meeting,
        events: &Events,
    ) -> Result<Vec<Box<dyn Worker>>> {
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        for (place, (number, node)) in (1..self.taking_part).zip(&self.nodes) {
            let (first_rank, ranks) = (place * self.job.ranks_per_node, self.job.ranks_per_node);
            let states: Vec<_> = (0..ranks).map(|_| Arc::default()).collect();
            let follower = Follower {
                group: self.groups,
                events: events.clone(),
                first_rank,
                ranks: states.clone(),
            };
            let mut state = lock(&node.state);
            match &state.lost {
                Some(_) => follower.lost(),
                None => state.group = Some(follower),
            }
            drop(state);
            let start = ToAgent::Start(StartGroup {
                group: self.groups,
                plan: GroupPlan { first_rank, ..spec.plan.clone() },
                meeting: meeting.address,
            });
            node.control.send(encode(&start))?;
            for (place, state) in states.into_iter().enumerate() {
                let rank = first_rank + place;
                workers.push(Box::new(RemoteRank {
                    rank,
                    group: self.groups,
                    control: Arc::clone(&node.control),
                    state,
                    log: spec.log_of(rank),
                    host: format!("node {number} at {}", node.address),
                }));
            }
        }
        Ok(workers)
    }

    /// The signal that asks a node to end soon.
    pub fn asked(&self) -> Option<Signal> {
        let asked = |node: &Node| Signal::try_from(node.asked.load(Ordering::Relaxed)).ok();
        self.nodes.values().find_map(asked)
    }

    /// Tells the agents that there is nothing more to do, with this end's error and exit code.
    pub fn finish(self, error: Option<(String, i32)>) {
        let message = encode(&ToAgent::Finish { error });
        for node in self.nodes.values() {
            let _ = node.control.send(message.clone());
        }
    }
}

/// The secret of a worker group: known to whoever knows the job's, and of no use for another worker group.
pub fn group_secret(job: &Secret, group: u64) -> Secret {
    job.derive(&[b"group", &group.to_le_bytes()])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What comes from an agent.
fn take(state: &Mutex<NodeState>, asked: &AtomicI32, node: usize, incoming: Incoming) {
    let message = match incoming {
        Incoming::Message(bytes) => serde_json::from_slice::<ToLeader>(&bytes)
            .wrap_err_with(|| format!("node {node} sent something unknown")),
        Incoming::Lost(error) => Err(error.into()),
    };
    let mut state = lock(state);
    match message {
        Ok(ToLeader::Asked { signal }) => asked.store(signal, Ordering::Relaxed),
        Ok(message) => {
            let over = state.group.as_ref().is_some_and(|group| group.take(message));
            if over {
                // With it goes its part of the channel of events.
                state.group = None;
            }
        }
        Err(error) => {
            state.lost = Some(error.to_string());
            if let Some(group) = state.group.take() {
                group.lost();
            }
        }
    }
}

impl Follower {
    /// Returns whether all ranks have ended.
    fn take(&self, message: ToLeader) -> bool {
        match message {
            ToLeader::Event { group, rank, event } if group == self.group => {
                let own = self.first_rank..self.first_rank + self.ranks.len();
                if own.contains(&rank) {
                    let _ = self.events.send((rank, event));
                }
            }
            ToLeader::Ended { group, rank, end, tail } if group == self.group => {
                let place = rank.checked_sub(self.first_rank);
                if let Some(state) = place.and_then(|place| self.ranks.get(place)) {
                    *lock(state) = RankState { outcome: Some(end), tail };
                    // Wakes whoever waits for events, to see it.
                    let _ = self.events.send((rank, Event::Beat));
                }
            }
            ToLeader::Failed { group, error } if group == self.group => {
                let _ = self.events.send((self.first_rank, Event::Failed { error }));
                self.end_all(Outcome::Exit(crate::exit::EXIT_FAILURE));
            }
            // Of a worker group that is over.
            _ => {}
        }
        self.ranks.iter().all(|state| lock(state).outcome.is_some())
    }

    fn lost(&self) {
        self.end_all(Outcome::NodeLost);
    }

    /// For all that have not ended by themselves.
    fn end_all(&self, outcome: Outcome) {
        for state in &self.ranks {
            lock(state).outcome.get_or_insert(outcome);
        }
    }
}

/// A rank on another node.
#[derive(Debug)]
struct RemoteRank {
    rank: usize,
    group: u64,
    control: Arc<Control>,
    state: Arc<Mutex<RankState>>,
    log: PathBuf,
    host: String,
}

impl Worker for RemoteRank {
    fn poll(&mut self) -> Result<Option<Outcome>> {
        Ok(lock(&self.state).outcome)
    }

    fn signal(&self, signal: Signal) {
        let signal = ToAgent::Signal { group: self.group, rank: self.rank, signal: signal as i32 };
        let _ = self.control.send(encode(&signal));
    }

    fn tail(&self) -> Vec<String> {
        lock(&self.state).tail.clone()
    }

    fn log(&self) -> &Path {
        &self.log
    }

    fn host(&self) -> String {
        self.host.clone()
    }
}
