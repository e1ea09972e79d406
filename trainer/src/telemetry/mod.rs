//! What a run says of itself while it works: counters of the process, progress events, curves. Nothing that is
//! computed depends on any of it.

mod history;
pub mod measure;
pub mod progress;

pub use history::{EpochRecord, History, StepRecord};
