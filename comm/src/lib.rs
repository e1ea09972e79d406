//! `reclora-comm`: ranks talking.
//!
//! A [`Communicator`] moves bytes and sums between the ranks of one job. It knows nothing of models,
//! files or launching. Sums are added in one fixed order ([`tree`]), so that the same job gives the
//! same bits for every power-of-two number of ranks.
#![deny(missing_docs)]

mod communicator;
mod error;
pub mod tree;

pub use communicator::{Communicator, Solo};
pub use error::{CommError, Result};
