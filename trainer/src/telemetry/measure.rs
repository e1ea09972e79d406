//! What this process spends its time on: counters that code adds to while it works, for whoever watches.
//!
//! They are of the process, which runs one stage as one rank. Adding is an atomic addition, at most a few per
//! sample; nothing that is computed depends on them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::history::History;

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading samples, and making inputs of them.
    Data,
    /// Computing outputs.
    Forward,
    /// Computing gradients. On a GPU this is part of [`Phase::Forward`]: the host waits for both together.
    Backward,
    /// In collectives with nothing to compute, the wait for slower ranks included.
    Communication,
    /// Changing parameters.
    Optimizer,
}

impl Phase {
    /// All, in the order of a step.
    pub const ALL: [Self; 5] =
        [Self::Data, Self::Forward, Self::Backward, Self::Communication, Self::Optimizer];

    /// What users read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Communication => "communication",
            Self::Optimizer => "optimizer",
        }
    }

    /// Whether threads work on it side by side, so that their times are to be averaged.
    fn is_threaded(self) -> bool {
        matches!(self, Self::Data | Self::Forward | Self::Backward)
    }
}

/// The counters of a process, since it began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Optimizer steps.
    pub steps: u64,
    /// Samples that went through a model.
    pub samples: u64,
    /// Tokens that went through the LLM.
    pub tokens: u64,
    /// Seconds per [`Phase`], in the order of [`Phase::ALL`]. Of what threads share, the mean over all of them: one
    /// that has nothing to do counts as none of the phases. Data that is prepared ahead counts beside the rest.
    pub seconds: [f64; 5],
    /// The newest training loss.
    pub loss: Option<f64>,
    /// The newest loss of the choice between yes and no alone, where the LLM is tuned.
    #[serde(default)]
    pub deciding_loss: Option<f64>,
    /// How evenly the gates use the experts, since the last call: the entropy of their mean weights over its
    /// maximum ln N. 1 is even, 0 is one expert alone.
    pub gate_entropy: Option<f64>,
}

static STEPS: AtomicU64 = AtomicU64::new(0);
static SAMPLES: AtomicU64 = AtomicU64::new(0);
static TOKENS: AtomicU64 = AtomicU64::new(0);
static NANOSECONDS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
/// Bits of the newest loss; not a number before there is one.
static LOSS: AtomicU32 = AtomicU32::new(f32::NAN.to_bits());
/// The same of the choice between yes and no.
static DECIDING_LOSS: AtomicU32 = AtomicU32::new(f32::NAN.to_bits());
/// Sums of the experts' weights.
static GATES: Mutex<Vec<f64>> = Mutex::new(Vec::new());

/// What a task has gone through since the last call of [`curves`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The task, in the words of [`super::progress::Event::Start`].
    pub task: String,
    /// Its new steps and epochs.
    pub history: History,
}

/// Most steps and epochs that are kept for whoever asks next; where nobody does, nothing more is.
const MAX_NOTED: usize = 1 << 16;
static CURVES: Mutex<Vec<Curve>> = Mutex::new(Vec::new());

/// Notes a step or an epoch of a task: `note` puts it where it belongs.
pub fn noted(task: &str, note: impl FnOnce(&mut History)) {
    let mut curves = CURVES.lock().unwrap_or_else(PoisonError::into_inner);
    if curves.last().is_none_or(|curve| curve.task != task) {
        curves.push(Curve { task: task.to_owned(), history: History::default() });
    }
    let Some(Curve { history, .. }) = curves.last_mut() else { return };
    if history.steps.len() + history.epochs.len() < MAX_NOTED {
        note(history);
    }
}

/// What was noted since the last call.
pub fn curves() -> Vec<Curve> {
    std::mem::take(&mut *CURVES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Adds the time that `work` takes.
pub fn timed<T>(phase: Phase, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    spent(phase, started.elapsed());
    result
}

/// Adds to a phase.
pub fn spent(phase: Phase, time: Duration) {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    NANOSECONDS[phase as usize].fetch_add(nanoseconds, Ordering::Relaxed);
}

/// Samples that went through a model, and their tokens (0 for a model without).
pub fn processed(samples: usize, tokens: usize) {
    SAMPLES.fetch_add(samples as u64, Ordering::Relaxed);
    TOKENS.fetch_add(tokens as u64, Ordering::Relaxed);
}

/// An optimizer step, and the losses before it.
pub fn stepped(loss: f32, deciding_loss: Option<f32>) {
    STEPS.fetch_add(1, Ordering::Relaxed);
    LOSS.store(loss.to_bits(), Ordering::Relaxed);
    DECIDING_LOSS.store(deciding_loss.unwrap_or(f32::NAN).to_bits(), Ordering::Relaxed);
}

/// The weights `[N]` that a gate gave to the experts.
pub fn gated(weights: &[f32]) {
    let mut sums = GATES.lock().unwrap_or_else(PoisonError::into_inner);
    if sums.len() != weights.len() {
        *sums = vec![0.0; weights.len()];
    }
    sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += f64::from(*weight));
}

/// The counters now. `threads` work on what threads share.
pub fn now(threads: usize) -> Measures {
    let sums = std::mem::take(&mut *GATES.lock().unwrap_or_else(PoisonError::into_inner));
    let newest = |loss: &AtomicU32| {
        let loss = f32::from_bits(loss.load(Ordering::Relaxed));
        loss.is_finite().then(|| f64::from(loss))
    };
    let seconds = Phase::ALL.map(|phase| {
        let seconds = NANOSECONDS[phase as usize].load(Ordering::Relaxed) as f64 / 1e9;
        if phase.is_threaded() { seconds / threads.max(1) as f64 } else { seconds }
    });
    Measures {
        steps: STEPS.load(Ordering::Relaxed),
        samples: SAMPLES.load(Ordering::Relaxed),
        tokens: TOKENS.load(Ordering::Relaxed),
        seconds,
        loss: newest(&LOSS),
        deciding_loss: newest(&DECIDING_LOSS),
        gate_entropy: evenness(&sums),
    }
}

/// Entropy over its maximum; `None` of fewer than two experts, or of nothing.
fn evenness(sums: &[f64]) -> Option<f64> {
    let total: f64 = sums.iter().sum();
    if sums.len() < 2 || !(total > 0.0 && total.is_finite()) {
        return None;
    }
    let shares = sums.iter().map(|sum| sum / total).filter(|share| *share > 0.0);
    let entropy: f64 = shares.map(|share| -share * share.ln()).sum();
    Some(entropy / (sums.len() as f64).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenness_of_experts() {
        assert_eq!(evenness(&[]), None);
        assert_eq!(evenness(&[3.0]), None);
        assert_eq!(evenness(&[0.0, 0.0]), None);
        assert_eq!(evenness(&[f64::NAN, 1.0]), None);
        assert!((evenness(&[2.0; 4]).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(evenness(&[0.0, 5.0]), Some(0.0));
    }

    /// One test for all counters: they are of the process, and tests of a process may share it.
    #[test]
    fn counters_only_grow() {
        let before = now(1);
        timed(Phase::Forward, || std::thread::sleep(Duration::from_millis(4)));
        spent(Phase::Communication, Duration::from_secs(2));
        processed(3, 70);
        stepped(0.5, Some(0.25));
        gated(&[0.5, 0.5]);
        let after = now(2);
        assert!(after.samples >= before.samples + 3 && after.tokens >= before.tokens + 70);
        assert!(after.steps > before.steps);
        assert!(after.seconds[Phase::Communication as usize] >= 2.0);
        assert!(after.seconds[Phase::Forward as usize] >= 0.002, "half of 4 ms: two threads");
        assert!(after.loss.is_some() && after.deciding_loss.is_some());
    }
}
