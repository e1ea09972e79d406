//! What this node's ranks say they do, noted as it is read.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use reclora_trainer::telemetry::measure::Curve;
use reclora_trainer::telemetry::progress::Event;

use super::sample::Rank;

/// The ranks of the worker group that runs.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Mutex<Seen>,
}

/// A rank, when it last said anything, and when its task began.
#[derive(Debug)]
struct Heard {
    rank: Rank,
    last: Instant,
    began: Instant,
}

#[derive(Debug, Default)]
struct Seen {
    stage: String,
    ranks: BTreeMap<usize, Heard>,
    /// Steps and epochs that nobody has asked for yet.
    curves: Vec<Curve>,
}

impl Watch {
    /// A worker group begins: the last one's ranks are forgotten.
    pub fn clear(&self, stage: &str) {
        let mut seen = self.lock();
        (seen.stage, seen.ranks) = (stage.to_owned(), BTreeMap::new());
    }

    /// A rank begins.
    pub fn begin(&self, rank: usize, pid: u32) {
        let (last, began) = (Instant::now(), Instant::now());
        let new = Heard { rank: Rank { rank, pid, ..Rank::default() }, last, began };
        self.lock().ranks.insert(rank, new);
    }

    /// A rank says something.
    pub fn take(&self, rank: usize, event: &Event) {
        let mut seen = self.lock();
        let Seen { ranks, curves: news, .. } = &mut *seen;
        let Some(Heard { rank, last, began }) = ranks.get_mut(&rank) else { return };
        *last = Instant::now();
        match event {
            Event::Start { task, total, unit, .. } => {
                *began = *last;
                (rank.task, rank.total) = (task.clone(), *total);
                (rank.unit, rank.done) = (unit.clone(), 0);
            }
            Event::Update { task, done, .. } if *task == rank.task => rank.done = *done,
            Event::Measured { measures, curves } => {
                news.extend(curves.iter().cloned());
                // Gates are idle between batches; the last that is known stays.
                let entropy = measures.gate_entropy.or(rank.measures.gate_entropy);
                rank.measures = measures.clone();
                rank.measures.gate_entropy = entropy;
            }
            _ => {}
        }
    }

    /// The stage, and its ranks as they are known now.
    pub fn now(&self) -> (String, Vec<Rank>) {
        let seen = self.lock();
        let ranks = seen.ranks.values().map(|heard| Rank {
            silent: heard.last.elapsed().as_secs_f64(),
            task_seconds: heard.began.elapsed().as_secs_f64(),
            ..heard.rank.clone()
        });
        (seen.stage.clone(), ranks.collect())
    }

    /// Steps and epochs that were reported since the last call.
    pub fn curves(&self) -> Vec<Curve> {
        std::mem::take(&mut self.lock().curves)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ranks_say_is_noted() {
        let watch = Watch::default();
        watch.clear("tune");
        watch.begin(3, 77);
        watch.take(9, &Event::Saved);
        let (task, unit) = ("tune".into(), "steps".into());
        let start = Event::Start { task, total: 10, unit, together: true };
        watch.take(3, &start);
        watch.take(3, &Event::Update { task: "tune".into(), done: 4, note: String::new() });
        watch.take(3, &Event::Update { task: "other".into(), done: 9, note: String::new() });
        let (stage, ranks) = watch.now();
        assert_eq!((stage.as_str(), ranks.len()), ("tune", 1));
        assert_eq!((ranks[0].pid, ranks[0].done, ranks[0].total), (77, 4, 10));
        watch.clear("evaluate");
        assert!(watch.now().1.is_empty());
    }
}
