//! A run that is asked to pause, as schedulers do before they end a job: it saves, says that it wants to be
//! started again, and goes on to the same bits (D-2).
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
#[path = "common/workers.rs"]
mod workers;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{assert_gone, assert_same_results, children, launch, small};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use workers::Random;

fn start(config: &str, run_dir: &str, extra: &[&str]) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"))
        .args(["run", config, "--run-dir", run_dir, "--nproc-per-node", "2", "--no-report"])
        .args(extra)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn e2e_d2_a_run_paused_again_and_again_ends_with_the_same_bits() {
    let (dir, config) = small();
    let path = |name: &str| dir.path().join(name).display().to_string();
    launch(&["run", &config, "--run-dir", &path("one"), "--no-report"]).assert().success();
    let mut random = Random::from_clock();
    let (mut pauses, mut saved) = (0, 0);
    // It makes progress each time, if only a step; so it ends.
    for attempt in 0..200 {
        let launcher = start(&config, &path("run"), &[]);
        let moment = Duration::from_secs_f64(0.3 + random.unit());
        std::thread::sleep(moment);
        let ranks = children(launcher.id());
        // Of a process that has ended but was not waited for, the pid is still its own.
        kill(Pid::from_raw(launcher.id() as i32), Signal::SIGUSR1).unwrap();
        let output = launcher.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_gone(&ranks, &format!("attempt {attempt}, asked after {moment:?}"));
        match output.status.code() {
            Some(0) => break,
            Some(75) => pauses += 1,
            other => panic!("attempt {attempt}, asked after {moment:?}: {other:?}\n{text}"),
        }
        assert!(text.contains("continues from there"), "{text}");
        saved += usize::from(text.contains("every rank has saved what it had"));
    }
    assert!(pauses > 1 && saved > 0, "{saved} of {pauses} pauses were in a worker group");
    let run = |name: &str| dir.path().join(name);
    assert_same_results(&run("one"), &run("run"), &format!("after {pauses} pauses"));
}

#[test]
fn e2e_sigterm_pauses_a_stage_that_can_be_and_a_pause_is_not_for_ever() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run").display().to_string();
    let checkpoints = dir.path().join("run/adapter/checkpoints/RecLoRA");
    // One long epoch, without a checkpoint in it.
    let endless = ["--set", "tune.few_shot=8000", "--set", "tune.checkpoint_every=1000000"];
    let launcher = start(&config, &run_dir, &endless);
    let log = dir.path().join("run/logs/tune/attempt_1/rank_1/stdout.log");
    let steps = || std::fs::read_to_string(&log).is_ok_and(|log| log.matches("loss").count() > 3);
    common::wait("steps of tune", || steps().then_some(()));
    kill(Pid::from_raw(launcher.id() as i32), Signal::SIGTERM).unwrap();
    let output = launcher.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(143), "{text}");
    assert!(text.contains("SIGTERM: ranks finish their step and save it, within 60 s"), "{text}");
    assert!(text.contains("every rank has saved what it had"), "{text}");
    // The checkpoint that the pause made: none was due.
    assert_eq!(std::fs::read_dir(checkpoints).unwrap().count(), 1);

    // A rank that stands still can't save; the others are not kept waiting.
    let args = [&endless[..], &["--set", "runtime.pause_timeout=1"]].concat();
    let launcher = start(&config, &run_dir, &args);
    let log = dir.path().join("run/logs/tune/attempt_2/rank_1/stdout.log");
    let steps = || std::fs::read_to_string(&log).is_ok_and(|log| log.matches("loss").count() > 3);
    common::wait("steps of tune", || steps().then_some(()));
    let ranks = children(launcher.id());
    kill(Pid::from_raw(ranks[0]), Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(launcher.id() as i32), Signal::SIGUSR1).unwrap();
    let output = launcher.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{text}");
    assert!(text.contains("every rank has been ended"), "{text}");
    assert_gone(&ranks, "after the pause's time was up");
}

/// The step after which a rank's first update of an attempt was sent.
fn first_step(log: &std::path::Path) -> Option<u64> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().find_map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["event"] == "update").then(|| event["done"].as_u64())?
    })
}

#[test]
fn e2e_a_restart_goes_on_from_what_the_others_had_in_memory() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run").display().to_string();
    // One long epoch, without a checkpoint in it.
    let args = ["--set", "tune.few_shot=8000", "--set", "tune.checkpoint_every=1000000"];
    let args = [&args[..], &["--max-restarts", "1"]].concat();
    let launcher = start(&config, &run_dir, &args);
    let log = |attempt: u32| {
        dir.path().join(format!("run/logs/tune/attempt_{attempt}/rank_0/stdout.log"))
    };
    common::wait("the first step", || first_step(&log(1)));
    std::thread::sleep(Duration::from_secs(7));
    let ranks = children(launcher.id());
    kill(Pid::from_raw(ranks[1]), Signal::SIGKILL).unwrap();
    let step = common::wait("a step of the second attempt", || first_step(&log(2)));
    assert!(step > 10, "it began again at step {step}");
    kill(Pid::from_raw(launcher.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(launcher.wait_with_output().unwrap().status.code(), Some(130));
}
