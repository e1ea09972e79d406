//! What a rank tells the launcher while it works: one JSON object per line on standard output.

use reclora_comm::Record;
use serde::{Deserialize, Serialize};

use super::measure::{Curve, Measures};

/// One line of a rank's standard output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A piece of work begins; `total` units are to be done (over all ranks).
    Start {
        /// What is being done, in words a user reads ("tune RecLoRA").
        task: String,
        /// Units of work over all ranks.
        total: u64,
        /// What one unit is ("samples", "steps", "items").
        unit: String,
        /// Whether all ranks do every unit together, as an optimizer step; otherwise each does a share of them.
        #[serde(default)]
        together: bool,
    },
    /// `done` units of this rank's share are finished (absolute, not a difference).
    Update {
        /// The task of the matching `Start`.
        task: String,
        /// Units this rank has finished.
        done: u64,
        /// A short remark for the end of the line ("loss 0.652"), or empty.
        note: String,
    },
    /// The task is finished.
    Finish {
        /// The task of the matching `Start`.
        task: String,
    },
    /// Something a user should read once.
    Message {
        /// The text, one line.
        text: String,
    },
    /// All that is done is on disk: another attempt goes on from here.
    Saved,
    /// Nothing new, but there is something to look at.
    Beat,
    /// A sign of life, with what the process has done since it began.
    Measured {
        /// Its counters.
        measures: Measures,
        /// Of rank 0: steps and epochs since it last said so.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        curves: Vec<Curve>,
    },
    /// A line on standard error, passed on by the launcher that reads it.
    Said {
        /// The line.
        text: String,
    },
    /// The last collectives of a rank that fails.
    Collectives {
        /// Oldest first.
        records: Vec<Record>,
    },
    /// The rank failed; the last line it writes.
    Failed {
        /// What went wrong, where, and what to do.
        error: String,
    },
}

/// Receives what a stage reports. Implementations must be cheap: stages call it per step.
pub trait Progress: Send {
    /// Takes one event.
    fn emit(&mut self, event: Event);

    /// Whether the work is to be interrupted, at the next point from which it can go on later. Once true, it
    /// stays so; ranks need not see it at the same time.
    fn pause_asked(&self) -> bool {
        false
    }
}

/// Discards everything (tests, library use).
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn emit(&mut self, _event: Event) {}
}
