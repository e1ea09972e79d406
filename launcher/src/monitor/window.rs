//! The latest samples of a node, and the rates they show.

use reclora_trainer::telemetry::measure::Phase;
use serde::Serialize;

use super::sample::{Rank, Sample};

/// Seconds that are looked at.
pub const WINDOW: f64 = 15.0;

/// Samples of one node, oldest first.
#[derive(Clone, Debug)]
pub struct Window {
    /// Its name.
    pub name: String,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// What a rank does per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Seconds between the samples compared.
    pub seconds: f64,
    /// Units of the task.
    pub units: f64,
    /// Optimizer steps.
    pub steps: f64,
    /// Samples through a model.
    pub samples: f64,
    /// Tokens through the LLM.
    pub tokens: f64,
    /// Share of the time per [`Phase`], in their order.
    pub phases: [f64; 5],
    /// Cores in use.
    pub cpu: f64,
    /// Threads that waited for a core, on average.
    pub queued: f64,
    /// Bytes from storage.
    pub read: f64,
    /// Bytes to storage.
    pub written: f64,
    /// Page faults that had to wait for storage.
    pub major_faults: f64,
}

impl Rates {
    /// Share of the time in a phase.
    pub fn phase(&self, phase: Phase) -> f64 {
        self.phases[phase as usize]
    }
}

impl Window {
    /// Of these samples.
    pub fn new(name: &str, samples: Vec<Sample>) -> Self {
        Self { name: name.to_owned(), samples }
    }

    /// The newest sample.
    pub fn last(&self) -> Option<&Sample> {
        self.samples.last()
    }

    /// Cores in use by everything but the ranks, on average.
    pub fn used_by_others(&self) -> Option<f64> {
        let (first, last) = (self.samples.first()?, self.last()?);
        let own: f64 = last.ranks.iter().filter_map(|rank| Some(self.rates(rank)?.cpu)).sum();
        let seconds = last.time - first.time;
        (seconds > 0.5).then(|| ((last.busy - first.busy) / seconds - own).max(0.0))
    }

    /// Rates of a rank, from the oldest sample in which it was the same process with the same task. `None` where
    /// there is only one such sample.
    pub fn rates(&self, rank: &Rank) -> Option<Rates> {
        let find = |sample: &Sample| {
            let found = sample.ranks.iter().find(|other| {
                other.pid == rank.pid && other.rank == rank.rank && other.task == rank.task
            });
            found.cloned().map(|rank| (sample.time, rank))
        };
        let (from, before) = self.samples.iter().find_map(find)?;
        let seconds = self.last()?.time - from;
        (seconds > 0.5).then(|| between(&before, rank, seconds))
    }
}

/// What a rank did per second between two looks that lie `seconds` apart.
pub fn between(before: &Rank, after: &Rank, seconds: f64) -> Rates {
    let per_second = |before: f64, after: f64| (after - before).max(0.0) / seconds;
    let count = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
    let (a, b) = (&before.measures, &after.measures);
    let (p, q) = (before.process.clone(), after.process.clone());
    let (p, q) = (p.unwrap_or_default(), q.unwrap_or_default());
    Rates {
        seconds,
        units: count(before.done, after.done),
        steps: count(a.steps, b.steps),
        samples: count(a.samples, b.samples),
        tokens: count(a.tokens, b.tokens),
        phases: std::array::from_fn(|phase| per_second(a.seconds[phase], b.seconds[phase])),
        cpu: per_second(p.cpu, q.cpu),
        queued: per_second(p.queued, q.queued),
        read: count(p.read, q.read),
        written: count(p.written, q.written),
        major_faults: count(p.major_faults, q.major_faults),
    }
}
