//! A stage from start to end, and the end of a launcher that is killed.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{assert_gone, fails, launch, small, with_ratings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_complete_stage_is_not_done_again_unless_forced() {
    let (dir, config) = with_ratings();
    let run_dir = dir.path().join("run");
    let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap(), "--only", "prepare"];
    let run = |extra: &[&str]| {
        let output = launch(&args).args(extra).assert().success().get_output().stderr.clone();
        String::from_utf8(output).unwrap()
    };
    assert!(run(&[]).contains("prepare   done in"));
    assert!(run_dir.join("config.toml").is_file());
    assert!(run_dir.join("logs/prepare/attempt_1/rank_0/stderr.log").is_file());
    assert!(run(&[]).contains("prepare   up to date"));
    assert!(!run_dir.join("logs/prepare/attempt_2").exists());
    assert!(run(&["--force"]).contains("prepare   done in"));
    assert!(run_dir.join("logs/prepare/attempt_2").exists());
    // The saved config stands for the run.
    let saved = run_dir.join("config.toml");
    let again = ["run", saved.to_str().unwrap(), "--only", "prepare"];
    let output = launch(&again).assert().success().get_output().stderr.clone();
    assert!(String::from_utf8(output).unwrap().contains("prepare   up to date"));
}

#[test]
fn what_ranks_write_can_be_shown_and_kept_elsewhere() {
    let (dir, config) = with_ratings();
    let (run_dir, logs) = (dir.path().join("run"), dir.path().join("logs"));
    // Everybody has fewer ratings than that.
    let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap(), "--only", "prepare"];
    let args = [&args[..], &["--set", "data.k_core=4000000", "--tee"]].concat();
    let args = [&args[..], &["--log-dir", logs.to_str().unwrap()]].concat();
    let error = fails(&args, 4);
    assert!(error.contains("prepare   [0] error: "), "{error}");
    assert!(logs.join("prepare/attempt_1/rank_0/stderr.log").is_file());
    assert!(!run_dir.join("logs").exists());
    let error = fails(&[&args[..], &["--local-ranks-filter", "1,2"]].concat(), 4);
    assert!(!error.contains("[0] error"), "{error}");
    assert!(logs.join("prepare/attempt_2").is_dir());
}

#[test]
fn only_needs_what_the_stage_reads() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run");
    let tune = ["run", &config, "--run-dir", run_dir.to_str().unwrap(), "--only", "tune"];
    let error = fails(&tune, 2);
    assert!(error.contains("stage prepare has to come first"), "{error}");
    assert!(error.contains("reclora-launch run CONFIG"), "{error}");
    // The settings of a run stay when a command is refused.
    let saved = run_dir.join("config.toml");
    assert!(!saved.exists());
    launch(&[&tune[..4], &["--only", "prepare"]].concat()).assert().success();
    let before = std::fs::read(&saved).unwrap();
    fails(&[&tune[..], &["--set", "tune.epochs=7"]].concat(), 2);
    assert!(std::fs::read(&saved).unwrap() == before);
}

/// S-4: no process outlives its job, not even when the launcher can't clean up.
#[test]
fn s4_ranks_die_with_a_launcher_that_is_killed_and_the_run_goes_on() {
    let (dir, config) = with_ratings();
    let run_dir = dir.path().join("run");
    let (mut launcher, rank) = start(&config, &run_dir);
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    assert_gone(&rank.map(Pid::as_raw).into_iter().collect::<Vec<_>>(), "its launcher ended");
    let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap(), "--only", "prepare"];
    launch(&args).assert().success();
}

#[test]
fn s4_an_interrupt_ends_ranks_and_says_how_to_go_on() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let (dir, config) = with_ratings();
        let (launcher, rank) = start(&config, &dir.path().join("run"));
        kill(Pid::from_raw(launcher.id().try_into().unwrap()), signal).unwrap();
        let output = launcher.wait_with_output().unwrap();
        assert_gone(&rank.map(Pid::as_raw).into_iter().collect::<Vec<_>>(), "its launcher ended");
        // A very fast machine may have finished the stage first.
        if output.status.code() != Some(0) {
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{text}");
            assert!(text.contains("continues from there"), "{text}");
        }
    }
}

/// Starts a run and waits for its first rank: returns both.
fn start(config: &str, run_dir: &Path) -> (Child, Option<Pid>) {
    let mut launcher = Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"))
        .args(["run", config, "--run-dir", run_dir.to_str().unwrap(), "--only", "prepare"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lock = run_dir.join(".ranks/rank_0/.lock");
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline && launcher.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&lock).unwrap_or_default();
        if let Ok(pid) = text.trim().parse() {
            return (launcher, Some(Pid::from_raw(pid)));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    (launcher, None)
}
