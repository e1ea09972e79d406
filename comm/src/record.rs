//! A flight recorder: the last collectives of a rank, and what those of all ranks say together.

use std::collections::VecDeque;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Collectives that are remembered.
const KEPT: usize = 64;

/// One collective of one rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, counted from 0 by every rank.
    pub sequence: u64,
    /// Kind, name and length.
    pub what: String,
    /// Seconds that it took, or has taken so far.
    pub seconds: f64,
    /// Whether it has succeeded.
    pub done: bool,
}

/// Remembers the last collectives.
#[derive(Debug, Default)]
pub(crate) struct Recorder(VecDeque<(Record, Instant)>);

impl Recorder {
    /// A collective is entered.
    pub fn enter(&mut self, sequence: u64, what: String) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((Record { sequence, what, seconds: 0.0, done: false }, Instant::now()));
    }

    /// The last one entered has ended.
    pub fn leave(&mut self, done: bool) {
        if let Some((record, entered)) = self.0.back_mut() {
            (record.seconds, record.done) = (entered.elapsed().as_secs_f64(), done);
        }
    }

    /// What is remembered, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.0.iter().map(|(record, _)| record.clone()).collect()
    }
}

/// Where the ranks of a failed job were, by their records (none of a rank that could not tell): who waited
/// in which collective, and who never entered it. `None` where no collective is open.
pub fn compare(of_ranks: &[Vec<Record>]) -> Option<String> {
    let open = |records: &Vec<Record>| records.last().filter(|last| !last.done).cloned();
    let first = of_ranks.iter().filter_map(open).min_by_key(|record| record.sequence)?;
    let (mut within, mut elsewhere, mut never, mut silent) = (vec![], vec![], vec![], vec![]);
    for (rank, records) in of_ranks.iter().enumerate() {
        match records.iter().find(|record| record.sequence == first.sequence) {
            _ if records.is_empty() => silent.push(rank),
            None => never.push(rank),
            Some(record) if record.what == first.what => within.push(rank),
            Some(record) => elsewhere.push((rank, record.what.as_str())),
        }
    }
    let mut text = format!("{} entered {} #{}", ranks(&within), first.what, first.sequence);
    for (rank, what) in elsewhere {
        text += &format!("; rank {rank} entered {what} instead");
    }
    if !never.is_empty() {
        text += &format!("; {} never did", ranks(&never));
    }
    if !silent.is_empty() {
        text += &format!("; {} left no record", ranks(&silent));
    }
    Some(text)
}

/// "rank 3" or "ranks 0, 1, 3".
pub(crate) fn ranks(ranks: &[usize]) -> String {
    let list: Vec<_> = ranks.iter().map(usize::to_string).collect();
    format!("{} {}", if list.len() == 1 { "rank" } else { "ranks" }, list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(of: &[(u64, &str, bool)]) -> Vec<Record> {
        let record = |(sequence, what, done): &(u64, &str, bool)| Record {
            sequence: *sequence,
            what: (*what).to_owned(),
            seconds: 0.5,
            done: *done,
        };
        of.iter().map(record).collect()
    }

    #[test]
    fn the_records_of_all_ranks_say_who_is_missing() {
        let (bucket, barrier) = ("AllReduce \"gradient bucket 3\" of 9 elements", "Barrier \"x\"");
        let waits = || records(&[(811, barrier, true), (812, bucket, false)]);
        let behind = records(&[(810, barrier, true), (811, barrier, true)]);
        let lost = records(&[(811, barrier, true), (812, barrier, false)]);
        let ahead = records(&[(812, bucket, true), (813, barrier, false)]);
        for (of_ranks, expected) in [
            (
                vec![waits(), behind, waits()],
                "ranks 0, 2 entered AllReduce \"gradient bucket 3\" of 9 elements #812; rank 1 never did",
            ),
            (
                vec![waits(), vec![]],
                "rank 0 entered AllReduce \"gradient bucket 3\" of 9 elements #812; rank 1 left no record",
            ),
            (
                vec![waits(), lost],
                "rank 0 entered AllReduce \"gradient bucket 3\" of 9 elements #812; rank 1 entered Barrier \"x\" instead",
            ),
            (
                vec![ahead, waits()],
                "ranks 0, 1 entered AllReduce \"gradient bucket 3\" of 9 elements #812",
            ),
        ] {
            assert_eq!(compare(&of_ranks).as_deref(), Some(expected));
        }
        assert_eq!(compare(&[records(&[(1, barrier, true)]), vec![]]), None);
        assert_eq!(compare(&[]), None);
    }

    #[test]
    fn only_the_last_ones_are_kept() {
        let mut recorder = Recorder::default();
        for sequence in 0..100 {
            recorder.enter(sequence, "Barrier".into());
            recorder.leave(sequence < 99);
        }
        let records = recorder.records();
        assert_eq!((records.len(), records[0].sequence), (KEPT, 36));
        assert!(records[62].done && !records[63].done);
    }
}
