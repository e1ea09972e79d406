//! What every distributed stage is made of: work in fixed chunks, and data-parallel training.

pub mod buckets;
pub mod checkpoint;
pub mod chunks;
pub mod exchange;
mod leaves;
pub mod overlap;
mod plan;
pub mod replica;
pub mod train;
