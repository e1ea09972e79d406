//! Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 as values instead of sudden death.
//!
//! The signals are blocked in every thread and taken by one thread with `sigwait`, which needs no
//! handler (and so no unsafe code). The mask is inherited by children: a rank unblocks first.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::error::LaunchError;
use crate::exit::{block, exit_code};

/// The signal that was asked with while a worker group was running; 0 for none.
static PENDING: AtomicI32 = AtomicI32::new(0);
/// Whether somebody polls [`pending`]; if not, a signal ends the process at once.
static POLLED: AtomicBool = AtomicBool::new(false);

/// What asks for an end.
const TAKEN: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
/// What asks for a pause: schedulers send it some time before they end a job.
pub const PAUSE: Signal = Signal::SIGUSR1;
/// Signals that come together are one request: schedulers send one to several processes, which pass it on.
const TOGETHER: Duration = Duration::from_secs(1);

/// Starts taking signals. Must be called before any other thread is started.
pub fn install() -> std::io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored_mask(&status);
    // A signal that the parent had ignored (nohup, background jobs) stays ignored.
    let taken = TAKEN.into_iter().filter(|s| ignored & (1 << (*s as i32 - 1)) == 0);
    let set: SigSet = taken.chain([PAUSE]).collect();
    set.thread_block()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut first = None;
        while let Ok(signal) = set.wait() {
            if signal == PAUSE {
                // An end that was asked for before is not taken back.
                let none =
                    PENDING.compare_exchange(0, PAUSE as i32, Ordering::SeqCst, Ordering::SeqCst);
                if none.is_ok() && !POLLED.load(Ordering::SeqCst) {
                    end_by(signal);
                }
                continue;
            }
            PENDING.store(signal as i32, Ordering::SeqCst);
            // A second Ctrl-C does not wait for the orderly end: the kernel ends the ranks when
            // this process is gone.
            let again = first.get_or_insert_with(Instant::now).elapsed() > TOGETHER;
            if again || !POLLED.load(Ordering::SeqCst) {
                end_by(signal);
            }
        }
    })?;
    Ok(())
}

fn end_by(signal: Signal) -> ! {
    let report = LaunchError::Interrupted(signal).into();
    eprintln!("{}", block(&report));
    std::process::exit(exit_code(&report));
}

/// In a rank: calls `then` when a pause is asked for, by the launcher or, with SIGTERM, by a scheduler, which
/// sends it to every process of a job that it preempts.
pub fn on_pause(then: impl Fn() + Send + 'static) -> std::io::Result<()> {
    let set = SigSet::from_iter([PAUSE, Signal::SIGTERM]);
    set.thread_block()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while set.wait().is_ok() {
            then();
        }
    })?;
    Ok(())
}

/// In a rank: restores what [`install`] in the parent blocked, but for what [`on_pause`] takes.
pub fn unblock_inherited() {
    let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGHUP]);
    // Fails only for an invalid `how`, which is a constant here.
    let _ = set.thread_unblock();
}

/// The signal that asks for an end or a pause, if one came.
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
