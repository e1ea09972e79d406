//! Scoring, which trains nothing: work in chunks that are done exactly once, and scores of few samples that every rank
//! knows.

pub mod chunks;
mod scores;

pub use scores::{read_valid, sigmoid, valid_metrics, write_valid};
