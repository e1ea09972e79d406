//! The machine says no: directories, ports, locks.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
#[path = "../../tests/skip.rs"]
mod skip;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{fails, launch, small};
use nix::fcntl::{Flock, FlockArg};
use skip::skip;

#[test]
fn a_run_directory_that_cannot_be_made_is_named() {
    let (dir, config) = small();
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
    let (dir, config) = small();
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
    let (dir, config) = small();
    let run_dir = dir.path().join("run");
    std::fs::create_dir(&run_dir).unwrap();
    let _held = hold(&run_dir);
    let error = fails(&["run", &config, "--run-dir", run_dir.to_str().unwrap()], 1);
    assert!(error.contains("locked by another process (pid 4242)"), "{error}");
}

#[test]
fn a_rank_left_by_an_earlier_launcher_is_waited_for_and_named() {
    let (dir, config) = small();
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

/// Takes the lock in a directory, as a process with pid 4242 would.
fn hold(dir: &std::path::Path) -> Flock<std::fs::File> {
    let path = dir.join(".lock");
    std::fs::write(&path, "4242\n").unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error).unwrap()
}

/// A disk that fills up: each time a clear error, nothing half-written is used, and with more space
/// the same command goes on to the end.
#[test]
fn e2e_a_full_disk_is_said_and_the_run_goes_on_with_more_space() {
    if !may_mount() {
        return skip("needs root: a small file system is mounted");
    }
    let (_dir, config) = small();
    let disk = Disk::new("40k");
    let run_dir = disk.0.path().join("run");
    let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap()];
    // What certainly does not fit is not begun.
    let error = fails(&args, 2);
    assert!(error.contains("the run will write"), "{error}");
    assert!(!run_dir.exists());
    for (size, code) in [("400k", 4), ("2m", 2), ("2300k", 4)] {
        disk.resize(size);
        let error = fails(&args, code);
        if code == 2 {
            // How much there is to write is known now.
            assert!(error.contains("the run will write"), "{error}");
            continue;
        }
        assert!(error.contains("No space left on device"), "{size}: {error}");
        assert!(error.contains("free some space"), "{size}: {error}");
    }
    disk.resize("64m");
    launch(&args).assert().success();
}

/// Whether this process may mount file systems (CAP_SYS_ADMIN).
fn may_mount() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or("0");
    u64::from_str_radix(line.trim(), 16).unwrap_or(0) & (1 << 21) != 0
}

/// A small file system in memory, unmounted on drop.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        disk.mount(&format!("size={size}"));
        disk
    }

    fn resize(&self, size: &str) {
        self.mount(&format!("remount,size={size}"));
    }

    fn mount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(self.0.path());
        assert!(mount.status().expect("mount runs").success(), "tmpfs mounts");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
