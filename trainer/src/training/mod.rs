//! Data-parallel training whose result does not depend on the number of ranks.

pub mod checkpoint;
pub mod exchange;
mod optimizer;
mod plan;
pub mod replica;
mod step;
mod train;

pub use optimizer::{AdamW, clip_gradient_norm, schedule};
pub use plan::{Selection, TrainPlan};
pub use step::Objective;
pub use train::{Trained, train};
