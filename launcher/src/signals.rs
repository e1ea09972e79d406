//! Ctrl-C, SIGTERM and SIGHUP as values instead of sudden death.
//!
//! The signals are blocked in every thread and taken by one thread with `sigwait`, which needs no
//! handler (and so no unsafe code). The mask is inherited by children: a rank unblocks first.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::sys::signal::{SigSet, Signal};

use crate::error::{LaunchError, block};

/// The first signal that arrived while a gang was running; 0 for none.
static PENDING: AtomicI32 = AtomicI32::new(0);
/// Whether somebody polls [`pending`]; if not, a signal ends the process at once.
static POLLED: AtomicBool = AtomicBool::new(false);

const TAKEN: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Starts taking signals. Must be called before any other thread is started.
pub fn install() -> std::io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored_mask(&status);
    // A signal that the parent had ignored (nohup, background jobs) stays ignored.
    let set: SigSet = TAKEN.into_iter().filter(|s| ignored & (1 << (*s as i32 - 1)) == 0).collect();
    set.thread_block()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = set.wait() {
            let first = PENDING.swap(signal as i32, Ordering::SeqCst) == 0;
            // A second Ctrl-C does not wait for the orderly end: the kernel ends the ranks when
            // this process is gone.
            if !first || !POLLED.load(Ordering::SeqCst) {
                let report = LaunchError::Interrupted(signal).into();
                eprintln!("{}", block(&report));
                std::process::exit(128 + signal as i32);
            }
        }
    })?;
    Ok(())
}

/// Restores what [`install`] in the parent blocked.
pub fn unblock_inherited() {
    let set: SigSet = TAKEN.into_iter().collect();
    // Fails only for an invalid `how`, which is a constant here.
    let _ = set.thread_unblock();
}

/// The signal that asks for an end, if one came.
pub fn pending() -> Option<Signal> {
    Signal::try_from(PENDING.load(Ordering::SeqCst)).ok()
}

/// While this lives, signals are reported by [`pending`] instead of ending the process.
#[derive(Debug)]
pub struct Polled(());

impl Polled {
    /// Starts polling.
    pub fn begin() -> Self {
        POLLED.store(true, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        POLLED.store(false, Ordering::SeqCst);
    }
}

/// The mask of ignored signals in the text of `/proc/self/status`.
fn ignored_mask(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_status() {
        // 0x1001: SIGHUP (1) and SIGPIPE (13).
        assert_eq!(ignored_mask("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"), 0x1001);
        assert_eq!(ignored_mask("Name:\tx\n"), 0);
    }
}
