//! The one block a failed worker group is reported with, which is also in `RUN/error.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use reclora_comm::{Record, compare};
use serde::Serialize;

use super::Worker;
use super::cause::Outcome;
use crate::error::Result;
use crate::exit::{EXIT_PEER_LOST, continue_command};
use crate::output::{printable, write_json};
use crate::progress::tracker::Tracker;
use crate::run_dir::ERROR_FILE;

/// What is known of a failed worker group.
#[derive(Debug)]
pub struct GroupFailure {
    /// Every rank, by rank.
    pub ranks: Vec<RankReport>,
    /// The rank whose end explains the others.
    pub cause: usize,
    /// Units of each task that were done.
    pub reached: BTreeMap<String, u64>,
}

/// A failed stage.
#[derive(Debug, Serialize)]
pub struct FailureReport {
    /// The stage.
    pub stage: String,
    /// Which attempt at it, over all runs in this directory.
    pub attempt: usize,
    /// The rank whose end explains the others.
    pub first_cause: RankReport,
    /// The other ranks.
    pub others: Vec<RankReport>,
    /// Where the ranks were, by their last collectives.
    pub collectives: Option<String>,
    /// Whether the same would come again.
    pub hopeless: bool,
    /// What to try.
    pub advice: Vec<String>,
    /// The command that continues.
    pub command: String,
}

/// What is known of one rank's end.
#[derive(Debug, Serialize)]
pub struct RankReport {
    /// Which.
    pub rank: usize,
    /// The machine it ran on.
    pub host: String,
    /// How it ended.
    #[serde(skip)]
    pub outcome: Outcome,
    /// How it ended, in words.
    pub ended: String,
    /// Its exit code, unless it was killed.
    pub exit_code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<&'static str>,
    /// The error it reported.
    pub error: Option<String>,
    /// What it was doing.
    pub doing: String,
    /// Its last collectives, oldest first, if it reported them.
    pub collectives: Vec<Record>,
    /// The last lines of its log.
    pub log_tail: Vec<String>,
    /// Its log.
    pub log: PathBuf,
}

impl FailureReport {
    /// From what was found; `gave_up` says why there is no restart, `hopeless` whether one would help.
    pub fn new(
        stage: &str,
        attempt: usize,
        failure: GroupFailure,
        gave_up: &str,
        hopeless: bool,
    ) -> Self {
        let GroupFailure { mut ranks, cause, .. } = failure;
        let records: Vec<Vec<Record>> = ranks.iter().map(|rank| rank.collectives.clone()).collect();
        let first_cause = ranks.remove(cause);
        let mut advice = advice(first_cause.outcome, first_cause.error.as_deref(), hopeless);
        if !gave_up.is_empty() {
            advice.insert(0, format!("no restart: {gave_up}"));
        }
        Self {
            stage: stage.to_owned(),
            attempt,
            first_cause,
            others: ranks,
            collectives: compare(&records),
            hopeless,
            advice,
            command: continue_command(),
        }
    }

    /// Writes `error.json`.
    pub fn write(&self, run_dir: &Path) -> Result<()> {
        write_json(&run_dir.join(ERROR_FILE), self)
    }
}

impl RankReport {
    /// Of a rank that ended so: what its process left, and what it had said.
    pub fn new(rank: usize, outcome: Outcome, process: &dyn Worker, said: &Tracker) -> Self {
        let error = said.error(rank).map(str::to_owned);
        Self {
            rank,
            host: process.host(),
            outcome,
            ended: in_words(outcome, error.is_some()),
            exit_code: exit_code(outcome),
            signal: signal(outcome),
            error,
            doing: said.doing(rank),
            collectives: said.records(rank).to_vec(),
            log_tail: process.tail(),
            log: process.log().to_path_buf(),
        }
    }
}

fn exit_code(outcome: Outcome) -> Option<i32> {
    match outcome {
        Outcome::Finished => Some(0),
        Outcome::PeerLost => Some(EXIT_PEER_LOST),
        Outcome::Exit(code) => Some(code),
        _ => None,
    }
}

fn signal(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Killed(signal) => Some(signal.as_str()),
        Outcome::OutOfMemory => Some(Signal::SIGKILL.as_str()),
        _ => None,
    }
}

fn in_words(outcome: Outcome, reported: bool) -> String {
    let words = match outcome {
        Outcome::Finished => "had finished",
        Outcome::PeerLost => "stopped because another rank went away or did not answer",
        Outcome::Exit(1) if reported => "reported an error",
        Outcome::Exit(code) => return format!("ended with exit code {code}"),
        Outcome::Killed(signal) => return format!("was killed by {signal}"),
        Outcome::OutOfMemory => "was killed by the kernel, because memory ran out",
        Outcome::NodeLost => "is lost: the launcher of its node ended or did not answer",
        Outcome::Unresponsive => {
            "gave no sign of life for runtime.heartbeat_timeout seconds and was killed"
        }
        Outcome::Stalled => "made no progress for runtime.progress_timeout seconds and was killed",
        Outcome::Paused => "had saved what it had",
        Outcome::Ended => "was ended by the launcher",
    };
    words.to_owned()
}

/// What to try, by how the first rank ended. Where the same would come again something has to be changed first.
fn advice(outcome: Outcome, error: Option<&str>, hopeless: bool) -> Vec<String> {
    let specific = match outcome {
        Outcome::Killed(Signal::SIGKILL) => Some(
            "SIGKILL without a cause of ours is usually the kernel when memory runs out (see \
             `dmesg`): use fewer ranks (--nproc-per-node) or smaller batches",
        ),
        Outcome::Killed(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP) => {
            Some("something outside asked the rank to end: a batch system, or a person")
        }
        Outcome::Killed(Signal::SIGXCPU | Signal::SIGXFSZ) => {
            Some("a resource limit was reached (see `ulimit -a`)")
        }
        Outcome::Killed(Signal::SIGILL) => {
            Some("this processor lacks an instruction the program was built for: rebuild it here")
        }
        Outcome::Killed(Signal::SIGBUS) => Some(
            "SIGBUS is usually a mapped file that was cut short or taken away while in use, or a \
             failing disk: `reclora-launch verify RUN` finds damaged files, and --set \
             runtime.file_access=pread reads files instead of mapping them",
        ),
        Outcome::Killed(_) => Some("the rank crashed: please report it with its log"),
        Outcome::OutOfMemory => Some(
            "use fewer ranks (--nproc-per-node), smaller batches, or a machine or a job with more memory",
        ),
        Outcome::PeerLost => Some(
            "a rank did not answer in time: if the machine is overloaded, raise \
             runtime.collective_timeout or use fewer ranks",
        ),
        Outcome::NodeLost => Some(
            "see what became of the node and its launcher; with --max-restarts the others wait for it \
             to be started again",
        ),
        Outcome::Unresponsive => Some(
            "the process was stopped (SIGSTOP, a debugger), or its machine is overloaded or swaps: \
             then raise runtime.heartbeat_timeout",
        ),
        Outcome::Stalled => Some(
            "its log may say what it was at; if one piece of work takes so long here, raise \
             runtime.progress_timeout",
        ),
        Outcome::Exit(_) if error.is_none() => Some("the log says more"),
        _ => None,
    };
    let mut all: Vec<String> = specific.into_iter().map(str::to_owned).collect();
    let setting = error.and_then(|error| error.strip_prefix("config: ")?.split_once(": "));
    all.push(match setting {
        Some((setting, _)) if hopeless => format!(
            "change {setting} in the config, or add --set {setting}=VALUE; then run the command below, which \
             keeps what is complete:"
        ),
        _ if hopeless => {
            "fix the above, then run the command below, which keeps what is complete:".to_owned()
        }
        _ => "run the command below: it continues from what is complete".to_owned(),
    });
    all
}

impl fmt::Display for FailureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = &self.first_cause;
        // Where all ran on one machine, it is known.
        let several = self.others.iter().any(|other| other.host != first.host);
        let place = |report: &RankReport| match several {
            true => format!(" ({})", printable(&report.host)),
            false => String::new(),
        };
        let (rank, on) = (first.rank, place(first));
        write!(f, "stage {} failed: rank {rank}{on} {}", self.stage, first.ended)?;
        if let Some(error) = &first.error {
            for line in error.lines() {
                write!(f, "\n  {}", printable(line))?;
            }
        }
        write!(f, "\n  it was at: {}", printable(&first.doing))?;
        let known = first.error.as_deref().unwrap_or("");
        let tail: Vec<&String> =
            first.log_tail.iter().filter(|line| !is_repeated(line, known)).collect();
        if !tail.is_empty() {
            write!(f, "\n  its last log lines:")?;
            for line in tail {
                write!(f, "\n    | {}", printable(line))?;
            }
        }
        write!(f, "\n  log: {}", first.log.display())?;
        if !self.others.is_empty() {
            write!(f, "\n  the other ranks:")?;
        }
        for other in &self.others {
            let doing = printable(&other.doing);
            let on = place(other);
            write!(f, "\n    rank {}{on} {}; at: {doing}", other.rank, other.ended)?;
        }
        if let Some(collectives) = &self.collectives {
            write!(f, "\n  collectives: {}", printable(collectives))?;
        }
        write!(f, "\n  what to try:")?;
        for line in &self.advice {
            write!(f, "\n    - {line}")?;
        }
        write!(f, "\n    {}", self.command)
    }
}

/// Whether a log line only says the reported error again.
fn is_repeated(line: &str, error: &str) -> bool {
    let line = line.trim().trim_start_matches("error: ");
    !line.is_empty() && error.contains(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(outcome: Outcome, error: Option<&str>, tail: &[&str]) -> RankReport {
        RankReport {
            rank: 0,
            host: "a".into(),
            outcome,
            ended: in_words(outcome, error.is_some()),
            exit_code: exit_code(outcome),
            signal: signal(outcome),
            error: error.map(str::to_owned),
            doing: "tune RecLoRA, 4 samples done on this rank".into(),
            collectives: Vec::new(),
            log_tail: tail.iter().map(|&line| line.to_owned()).collect(),
            log: "logs/x".into(),
        }
    }

    fn failure(mut ranks: Vec<RankReport>, cause: usize) -> FailureReport {
        ranks.iter_mut().enumerate().for_each(|(number, report)| report.rank = number);
        let failure = GroupFailure { ranks, cause, reached: BTreeMap::new() };
        FailureReport::new("tune", 2, failure, "", false)
    }

    #[test]
    fn block_names_the_first_cause_and_the_others() {
        let mapped = advice(Outcome::Killed(Signal::SIGBUS), None, false);
        assert!(mapped[0].contains("runtime.file_access=pread"), "{mapped:?}");
        let killed = end(Outcome::Killed(Signal::SIGKILL), None, &["step 4"]);
        let text = failure(vec![end(Outcome::PeerLost, None, &[]), killed], 1).to_string();
        assert!(text.starts_with("stage tune failed: rank 1 was killed by SIGKILL\n"), "{text}");
        assert!(text.contains("| step 4"), "{text}");
        assert!(text.contains("rank 0 stopped because another rank went away"), "{text}");
        assert!(text.contains("memory"), "{text}");
    }

    /// Exit code 4 says that the same would come again; so must the advice.
    #[test]
    fn what_would_come_again_has_to_be_fixed_first() {
        let last = |outcome, error, hopeless| advice(outcome, error, hopeless).pop().unwrap();
        let error = Some("data/ratings.dat:7: no rating");
        assert!(last(Outcome::Exit(1), error, true).starts_with("fix the above, then run"));
        let setting = Some("config: data.label: no rating is a like; the highest is 5");
        let advised = last(Outcome::Exit(1), setting, true);
        assert!(advised.starts_with("change data.label in the config, or add --set data.label="));
        let killed = Outcome::Killed(Signal::SIGKILL);
        assert!(last(killed, None, true).starts_with("fix the above"), "no attempt got further");
        assert!(last(killed, None, false).starts_with("run the command below: it continues"));
    }

    #[test]
    fn machines_are_named_where_there_are_several() {
        let ranks = || {
            let killed = end(Outcome::Killed(Signal::SIGKILL), None, &[]);
            vec![
                end(Outcome::PeerLost, None, &[]),
                RankReport { host: "node 1 at b".into(), ..killed },
            ]
        };
        let text = failure(ranks(), 1).to_string();
        assert!(text.contains("rank 1 (node 1 at b) was killed"), "{text}");
        assert!(text.contains("rank 0 (a) stopped because"), "{text}");
        let json = serde_json::to_value(failure(ranks(), 1)).unwrap();
        assert_eq!(json["first_cause"]["host"], "node 1 at b");
    }

    #[test]
    fn a_reported_error_is_said_once() {
        let ranks = vec![end(Outcome::Exit(1), Some("disk full"), &["note", "error: disk full"])];
        let text = failure(ranks, 0).to_string();
        assert_eq!(text.matches("disk full").count(), 1, "{text}");
        assert!(text.contains("| note"), "{text}");
        assert!(!text.contains("the other ranks"), "{text}");
    }

    #[test]
    fn json_has_the_same() {
        let dir = tempfile::tempdir().unwrap();
        failure(vec![end(Outcome::Exit(9), None, &[])], 0).write(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(ERROR_FILE)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["stage"], "tune");
        assert_eq!(json["attempt"], 2);
        assert_eq!(json["first_cause"]["exit_code"], 9);
    }
}
