//! Runs that are killed, really.
// Each test file uses a part of this; a panic is the report of a failed test.
#![allow(dead_code, clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{assert_gone, children};

/// Who is killed.
#[derive(Clone, Copy, Debug)]
pub enum Victim {
    /// One of the rank processes.
    Rank,
    /// The launcher.
    Launcher,
}

/// A stream of numbers that differs from test to test run (splitmix64); each use says what it drew.
pub struct Random(u64);

impl Random {
    pub fn from_clock() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Starts the program and kills the victim after a while; returns whether the run was still
/// going on. Afterwards no process of it is left.
pub fn kill_at(
    args: &[&str],
    victim: Victim,
    moment: Duration,
    random: &mut Random,
    what: &str,
) -> bool {
    let mut launcher = Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"))
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(moment);
    let ranks = children(launcher.id());
    let running = launcher.try_wait().unwrap().is_none();
    let mut killed = running;
    match victim {
        Victim::Launcher => launcher.kill().unwrap(),
        // Between two stages there is none, for some milliseconds.
        Victim::Rank if ranks.is_empty() => killed = false,
        Victim::Rank => {
            let rank = ranks[random.next() as usize % ranks.len()];
            killed &= kill(Pid::from_raw(rank), Signal::SIGKILL).is_ok();
        }
    }
    let status = launcher.wait().unwrap();
    if killed && matches!(victim, Victim::Rank) {
        // A rank that had done its last bit of work may be killed too late to be missed.
        assert!(matches!(status.code(), Some(0 | 3)), "{what}: {status}");
    }
    assert_gone(&ranks, what);
    killed
}
