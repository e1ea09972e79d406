//! Which rank's end began it, and whether to try again. Pure decisions, table-tested.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::exit::{EXIT_PEER_LOST, EXIT_REQUEUE};

/// How long the worker group's other ranks get to show the real cause, when the first one to end says that
/// it only lost a peer.
pub const SETTLE: Duration = Duration::from_millis(800);

/// Restarts without progress after which it is no use to go on.
pub const MAX_FRUITLESS: u32 = 3;

/// How a rank's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Exit code 0.
    Finished,
    /// It said that another rank went away.
    PeerLost,
    /// It saved what it had and ended, as it was asked to.
    Paused,
    /// Any other exit code.
    Exit(i32),
    /// A signal, not ours.
    Killed(#[serde(with = "number")] Signal),
    /// The kernel killed it, because memory ran out.
    OutOfMemory,
    /// Nothing is known but that its node went away.
    NodeLost,
    /// No sign of life, so the launcher killed it.
    Unresponsive,
    /// No progress, so the launcher killed it.
    Stalled,
    /// The launcher ended it, after the worker group had failed.
    Ended,
}

impl Outcome {
    /// From an exit code.
    pub fn from_code(code: i32) -> Self {
        match code {
            0 => Self::Finished,
            EXIT_PEER_LOST => Self::PeerLost,
            EXIT_REQUEUE => Self::Paused,
            code => Self::Exit(code),
        }
    }

    /// Whether this end is a failure in itself.
    pub fn is_failure(self) -> bool {
        self == Self::PeerLost || self.is_primary()
    }

    /// Whether it needs no other rank's failure to be explained.
    pub fn is_primary(self) -> bool {
        match self {
            Self::Exit(_) | Self::Killed(_) | Self::OutOfMemory => true,
            Self::NodeLost | Self::Unresponsive | Self::Stalled => true,
            Self::Finished | Self::PeerLost | Self::Paused | Self::Ended => false,
        }
    }
}

/// A signal as it is sent to another process: by its number.
mod number {
    use nix::sys::signal::Signal;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(signal: &Signal, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i32(*signal as i32)
    }

    /// One that is not known here ended a process nonetheless.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Signal, D::Error> {
        Ok(Signal::try_from(i32::deserialize(from)?).unwrap_or(Signal::SIGKILL))
    }
}

/// An ended rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub rank: usize,
    /// How.
    pub outcome: Outcome,
    /// When, since the start of the worker group.
    pub at: Duration,
}

/// What to do with the ranks that still run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing failed.
    GoOn,
    /// A rank lost a peer; wait for the peer's own end to be seen.
    Settle,
    /// End them.
    Stop,
}

/// Decides what to do at `now`, given the ranks that have ended.
pub fn verdict(ended: &[Ended], now: Duration) -> Verdict {
    if ended.iter().any(|end| end.outcome.is_primary()) {
        return Verdict::Stop;
    }
    match ended.iter().filter(|end| end.outcome.is_failure()).map(|end| end.at).min() {
        None => Verdict::GoOn,
        Some(first) if now.saturating_sub(first) < SETTLE => Verdict::Settle,
        Some(_) => Verdict::Stop,
    }
}

/// The end that explains the others: the earliest death by signal or error of its own; only if
/// there is none, the earliest rank that lost a peer.
pub fn first_cause(ended: &[Ended]) -> Option<Ended> {
    let earliest = |wanted: fn(Outcome) -> bool| {
        ended.iter().filter(|end| wanted(end.outcome)).min_by_key(|end| (end.at, end.rank)).copied()
    };
    earliest(Outcome::is_primary).or_else(|| earliest(Outcome::is_failure))
}

/// Whether to start the worker group again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Yes.
    Again,
    /// No.
    GiveUp {
        /// Why, unless nobody wanted restarts.
        why: String,
        /// Whether the same would come again.
        hopeless: bool,
    },
}

/// What restarts have achieved so far.
#[derive(Clone, Debug, Default)]
pub struct History {
    restarts: u32,
    fruitless: u32,
    best: BTreeMap<String, u64>,
}

impl History {
    /// Decides after a failed attempt that reached `reached` units of each task.
    pub fn decide(
        &mut self,
        limit: u32,
        cause: Outcome,
        reached: &BTreeMap<String, u64>,
    ) -> Restart {
        let progress =
            reached.iter().any(|(task, done)| *done > self.best.get(task).copied().unwrap_or(0));
        for (task, done) in reached {
            let best = self.best.entry(task.clone()).or_default();
            *best = (*best).max(*done);
        }
        self.fruitless = if progress { 0 } else { self.fruitless + 1 };
        let reported = cause == Outcome::Exit(1);
        let give_up = |why: String, hopeless| Restart::GiveUp { why, hopeless };
        if limit == 0 {
            return give_up(String::new(), reported);
        }
        if reported {
            return give_up("the rank reported an error that would come again".into(), true);
        }
        if self.fruitless >= MAX_FRUITLESS {
            let n = self.fruitless;
            return give_up(format!("{n} attempts one after another made no progress"), true);
        }
        if self.restarts >= limit {
            return give_up(format!("--max-restarts {limit} is used up"), false);
        }
        self.restarts += 1;
        Restart::Again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(rank: usize, outcome: Outcome, ms: u64) -> Ended {
        Ended { rank, outcome, at: Duration::from_millis(ms) }
    }

    #[test]
    fn a_death_explains_the_lost_peers() {
        let killed = Outcome::Killed(Signal::SIGKILL);
        let cases = [
            // The victim's neighbour is often seen first.
            (vec![end(0, Outcome::PeerLost, 10), end(1, killed, 20)], Some(1)),
            (vec![end(2, Outcome::PeerLost, 5), end(0, Outcome::PeerLost, 6)], Some(2)),
            (vec![end(0, Outcome::Exit(1), 30), end(1, Outcome::Exit(101), 20)], Some(1)),
            (vec![end(3, killed, 20), end(1, killed, 20)], Some(1)),
            (vec![end(0, Outcome::Finished, 1), end(1, Outcome::Exit(1), 9)], Some(1)),
            (vec![end(0, Outcome::Finished, 1), end(1, Outcome::Ended, 2)], None),
            (vec![], None),
        ];
        for (ended, expected) in cases {
            assert_eq!(first_cause(&ended).map(|e| e.rank), expected, "{ended:?}");
        }
    }

    #[test]
    fn a_lost_peer_is_given_time_to_be_explained() {
        let ms = Duration::from_millis;
        let lost = [end(0, Outcome::PeerLost, 100)];
        assert_eq!(verdict(&lost, ms(200)), Verdict::Settle);
        assert_eq!(verdict(&lost, ms(900)), Verdict::Stop);
        assert_eq!(verdict(&[end(0, Outcome::Exit(1), 100)], ms(100)), Verdict::Stop);
        assert_eq!(verdict(&[end(0, Outcome::Finished, 100)], ms(9000)), Verdict::GoOn);
        assert_eq!(verdict(&[], ms(0)), Verdict::GoOn);
    }

    #[test]
    fn ends_come_back_from_another_node() {
        for outcome in [
            Outcome::Finished,
            Outcome::PeerLost,
            Outcome::Paused,
            Outcome::Exit(1),
            Outcome::Exit(101),
            Outcome::Killed(Signal::SIGKILL),
            Outcome::Killed(Signal::SIGBUS),
            Outcome::OutOfMemory,
        ] {
            let text = serde_json::to_string(&outcome).unwrap();
            assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome, "{text}");
        }
        let unknown = serde_json::from_str::<Outcome>(r#"{"Killed":9999}"#).unwrap();
        assert_eq!(unknown, Outcome::Killed(Signal::SIGKILL));
    }

    #[test]
    fn exit_codes_have_meanings() {
        assert_eq!(Outcome::from_code(0), Outcome::Finished);
        assert_eq!(Outcome::from_code(75), Outcome::Paused);
        assert_eq!(Outcome::from_code(76), Outcome::PeerLost);
        assert_eq!(Outcome::from_code(101), Outcome::Exit(101));
    }

    #[test]
    fn restarts_stop_at_the_limit_and_without_progress() {
        let killed = Outcome::Killed(Signal::SIGKILL);
        let at = |n| BTreeMap::from([("tune".to_owned(), n)]);
        let gives_up = |restart| matches!(restart, Restart::GiveUp { hopeless: false, .. });
        assert!(gives_up(History::default().decide(0, killed, &at(5))));

        let mut history = History::default();
        assert_eq!(history.decide(2, killed, &at(5)), Restart::Again);
        assert_eq!(history.decide(2, killed, &at(9)), Restart::Again);
        assert!(gives_up(history.decide(2, killed, &at(12))));

        let mut history = History::default();
        assert_eq!(history.decide(100, killed, &at(5)), Restart::Again);
        assert_eq!(history.decide(100, killed, &at(5)), Restart::Again);
        assert_eq!(history.decide(100, killed, &at(4)), Restart::Again);
        let Restart::GiveUp { why, hopeless } = history.decide(100, killed, &at(5)) else {
            panic!()
        };
        assert!(hopeless && why.contains("no progress"), "{why}");

        let mut history = History::default();
        let again = history.decide(9, Outcome::Exit(1), &at(5));
        assert!(matches!(again, Restart::GiveUp { hopeless: true, .. }));
    }
}
