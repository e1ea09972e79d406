//! One look at a node.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use reclora_trainer::telemetry::measure::Measures;
use serde::{Deserialize, Serialize};

/// Bytes of a GiB.
pub const GIB: f64 = (1_u64 << 30) as f64;

/// What a node and its ranks look like at a moment. All counters count from the beginning of what they belong to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since 1970.
    pub time: f64,
    /// The node's number in the job.
    pub node: usize,
    /// Its name.
    pub host: String,
    /// The stage its ranks work on; empty before the first.
    pub stage: String,
    /// Its cores.
    pub cores: usize,
    /// Seconds of processor time that the machine has spent, on all cores together.
    pub busy: f64,
    /// Memory of the machine that is in use, and all of it, in bytes.
    pub memory: (u64, u64),
    /// Its GPUs.
    pub gpus: Vec<Gpu>,
    /// Why no GPU could be looked at.
    pub no_gpus: Option<String>,
    /// The ranks that run on it.
    pub ranks: Vec<Rank>,
    /// What the run's time went to so far; of the node that has rank 0.
    #[serde(default)]
    pub goodput: Goodput,
    /// Processor time that collecting has taken so far, in seconds.
    pub collector_seconds: f64,
}

/// A GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// The driver's number of it.
    pub index: u32,
    /// Its model.
    pub name: String,
    /// Its identity.
    pub uuid: String,
    /// Why it can't be looked at any more.
    pub lost: Option<String>,
    /// Its counters, by the names of [`super::gpu::COUNTERS`].
    pub counters: BTreeMap<String, Reading>,
    /// What slows its clocks down, of the reasons that are not its own choice.
    pub throttled_by: Vec<String>,
    /// Number of the last Xid error since the launcher began.
    #[serde(default)]
    pub xid: Option<u64>,
    /// How many there were.
    #[serde(default)]
    pub xids: u64,
    /// Processes that use it, with the bytes they hold.
    pub processes: Vec<(u32, u64)>,
}

/// A counter, as it was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reading {
    /// Its value.
    Value(f64),
    /// Why there is none: "not supported", or an error.
    Missing(String),
}

impl Gpu {
    /// A counter's value.
    pub fn value(&self, name: &str) -> Option<f64> {
        match self.counters.get(name)? {
            Reading::Value(value) => Some(*value),
            Reading::Missing(_) => None,
        }
    }
}

/// A rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rank {
    /// Its number.
    pub rank: usize,
    /// Its process.
    pub pid: u32,
    /// The task it works on; empty before the first.
    pub task: String,
    /// Seconds since that began.
    #[serde(default)]
    pub task_seconds: f64,
    /// Units of it that this rank has done.
    pub done: u64,
    /// Units of all ranks.
    pub total: u64,
    /// What a unit is.
    pub unit: String,
    /// Seconds since it last said anything.
    pub silent: f64,
    /// Its counters.
    pub measures: Measures,
    /// Its process, unless that is gone.
    pub process: Option<Process>,
}

/// What the kernel says of a process, its threads together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Its state, a letter of proc(5): R runs, S sleeps, D waits for a disk, T is stopped.
    pub state: char,
    /// Threads.
    pub threads: usize,
    /// Seconds of processor time.
    pub cpu: f64,
    /// Seconds that threads which could run had to wait for a core.
    pub queued: f64,
    /// Resident bytes.
    pub rss: u64,
    /// Bytes that came from storage.
    pub read: u64,
    /// Bytes that went to storage.
    pub written: u64,
    /// Page faults that had to wait for storage.
    pub major_faults: u64,
}

/// Seconds of a run, restarts included. What is in none of the parts went into starting, saving, and between tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// Since the first sample.
    pub wall: f64,
    /// In which a task went on to where it had not been before. Of every task the last second or less is missing.
    pub progress: f64,
    /// In which work was done again that an earlier attempt had done already.
    pub repeated: f64,
    /// In which no launcher was there.
    pub away: f64,
    /// Units of rank 0's task that have been reached by any attempt.
    pub reached: u64,
}

impl Goodput {
    /// Share of the time that went into progress; `None` before there is any time.
    pub fn share(&self) -> Option<f64> {
        (self.wall > 0.0).then(|| self.progress / self.wall)
    }

    /// For a person with little room; empty before there is anything to say.
    pub fn short(&self) -> String {
        let share = self.share();
        share.map_or(String::new(), |share| {
            format!("goodput {:.0} % of {:.0} s", 100.0 * share, self.wall)
        })
    }

    /// For a person; empty before there is anything to say.
    pub fn text(&self) -> String {
        if self.share().is_none() {
            return String::new();
        }
        let percent = |seconds: f64| 100.0 * seconds / self.wall;
        format!(
            "{}: {:.0} % done again, {:.0} % without a launcher, {:.0} % in starting, saving and between tasks",
            self.short(),
            percent(self.repeated),
            percent(self.away),
            percent((self.wall - self.progress - self.repeated - self.away).max(0.0))
        )
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
