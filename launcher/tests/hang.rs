//! A rank that hangs: in time, with who waited for whom in which collective (S-2).
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{small, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn is_not_empty(dir: &Path) -> Option<()> {
    std::fs::read_dir(dir).ok()?.next().map(drop)
}

#[test]
fn e2e_s2_a_hung_rank_is_named_with_the_collective_it_did_not_enter() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run");
    let launcher = Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"))
        .args(["run", &config, "--run-dir", run_dir.to_str().unwrap(), "--nproc-per-node", "2"])
        .args(["--max-restarts", "0", "--set", "runtime.collective_timeout=2"])
        .args(["--set", "tune.epochs=1000", "--set", "tune.checkpoint_every=1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let checkpoints = run_dir.join("adapter/checkpoints/RecLoRA");
    wait("a checkpoint of tune", || is_not_empty(&checkpoints));
    let lock = std::fs::read_to_string(run_dir.join(".ranks/rank_1/.lock")).unwrap();
    kill(Pid::from_raw(lock.trim().parse().unwrap()), Signal::SIGSTOP).unwrap();
    let stopped = Instant::now();
    let output = launcher.wait_with_output().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("waited 2s for rank 1"), "{text}");
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run_dir.join("error.json")).unwrap()).unwrap();
    let verdict = json["collectives"].as_str().unwrap();
    assert!(verdict.starts_with("rank 0 entered "), "{verdict}");
    assert!(verdict.ends_with("; rank 1 left no record"), "{verdict}");
    assert!(text.contains(&format!("collectives: {verdict}")), "{text}");
    let records = json["first_cause"]["collectives"].as_array().unwrap();
    let last = records.last().unwrap();
    assert_eq!((last["done"].as_bool(), records.len() > 1), (Some(false), true), "{last}");
    assert!(last["seconds"].as_f64().unwrap() >= 2.0, "{last}");
}
