//! Runs over several nodes: the launcher of node 0 leads, those of the others are its agents.
//!
//! Every node runs the same command with another `--node-rank`. The leader takes the stages one by one; for
//! each it tells the agents which ranks to start, and watches those as it watches its own
//! ([`crate::workers`]): events, ends and last words come over one connection per agent, which both ends also
//! listen to for signs of life. An agent that loses its leader ends its ranks and itself; ranks never
//! outlive their agent ([`crate::workers::rank`]). So nothing outlives the job (S-4), whatever is killed or cut off.
//!
//! The run directory is on a file system that all nodes share.

mod agent;
mod job;
mod leader;

pub use agent::run as run_agent;
pub use job::Job;
pub use leader::Leader;

use std::net::SocketAddr;

use reclora_trainer::telemetry::progress::Event;
use serde::{Deserialize, Serialize};

use crate::workers::GroupPlan;
use crate::workers::cause::Outcome;

/// From the leader to an agent.
#[derive(Debug, Serialize, Deserialize)]
enum ToAgent {
    /// Start your ranks of a worker group.
    Start(StartGroup),
    /// Send this signal to a rank's process group.
    Signal { group: u64, rank: usize, signal: i32 },
    /// There is nothing more to do: the leader's error and exit code, or none.
    Finish { error: Option<(String, i32)> },
}

/// A worker group, as one agent sees it.
#[derive(Debug, Serialize, Deserialize)]
struct StartGroup {
    /// Number of the worker group, of this leader.
    group: u64,
    plan: GroupPlan,
    /// Where all ranks meet; the secret is the job's, with the number of the worker group.
    meeting: SocketAddr,
}

/// From an agent to the leader.
#[derive(Debug, Serialize, Deserialize)]
enum ToLeader {
    /// A rank said something.
    Event { group: u64, rank: usize, event: Event },
    /// A rank ended.
    Ended { group: u64, rank: usize, end: Outcome, tail: Vec<String> },
    /// The ranks could not be started.
    Failed { group: u64, error: String },
    /// A signal asks this node to end soon.
    Asked { signal: i32 },
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    // Plain data with string keys: nothing in it can't be written as JSON.
    serde_json::to_vec(message).unwrap_or_default()
}
