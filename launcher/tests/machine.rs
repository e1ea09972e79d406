//! The machine says no: directories, ports, locks.

mod common;
use std::time::{Duration, Instant};

use common::{experiment, fails};
use nix::fcntl::{Flock, FlockArg};

#[test]
fn a_run_directory_that_cannot_be_made_is_named() {
    let (dir, config) = experiment("");
    // Works for root as well: a file can't have children.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let run_dir = file.join("run");
    let error = fails(&["run", &config, "--run-dir", run_dir.to_str().unwrap()], 1);
    assert!(error.contains(run_dir.to_str().unwrap()), "{error}");
    assert!(error.contains("--run-dir"), "{error}");
    let error = fails(&["run", &config, "--run-dir", "/proc/no-such-directory"], 1);
    assert!(error.contains("/proc/no-such-directory"), "{error}");
}

#[test]
fn a_port_in_use_is_said_at_once() {
    let (dir, config) = experiment("");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = taken.local_addr().unwrap().to_string();
    let run_dir = dir.path().join("run");
    let run_dir = run_dir.to_str().unwrap();
    let start = Instant::now();
    let error = fails(&["run", &config, "--run-dir", run_dir, "--rdzv-endpoint", &endpoint], 1);
    assert!(error.contains(&endpoint) && error.contains("in use"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    let error = fails(&["run", &config, "--rdzv-endpoint", "nonsense"], 2);
    assert!(error.contains("HOST:PORT"), "{error}");
}

#[test]
fn a_run_directory_in_use_by_another_process_is_refused() {
    let (dir, config) = experiment("");
    let run_dir = dir.path().join("run");
    std::fs::create_dir(&run_dir).unwrap();
    let _held = hold(&run_dir);
    let error = fails(&["run", &config, "--run-dir", run_dir.to_str().unwrap()], 1);
    assert!(error.contains("locked by another process (pid 4242)"), "{error}");
}

#[test]
fn a_rank_left_by_an_earlier_launcher_is_waited_for_and_named() {
    let (dir, config) = experiment("");
    let run_dir = dir.path().join("run");
    let rank = run_dir.join(".ranks/rank_1");
    std::fs::create_dir_all(&rank).unwrap();
    let _held = hold(&rank);
    let start = Instant::now();
    let error = fails(&["run", &config, "--run-dir", run_dir.to_str().unwrap()], 1);
    assert!(error.contains("rank of an earlier launcher"), "{error}");
    assert!(error.contains("pid 4242"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[allow(clippy::unwrap_used)]
/// Takes the lock in a directory, as a process with pid 4242 would.
fn hold(dir: &std::path::Path) -> Flock<std::fs::File> {
    let path = dir.join(".lock");
    std::fs::write(&path, "4242\n").unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error).unwrap()
}
