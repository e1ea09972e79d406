//! `reclora-comm`: ranks talking.
#![deny(missing_docs)]
/// Errors of communication.
#[derive(Debug, thiserror::Error)]
pub enum CommError {}
