//! `reclora-trainer`: the maths and the stages.
//!
//! Frozen LLaMA-family backbone, personalised LoRA, conventional recommendation models, retriever,
//! prompts, the data-parallel training loop, metrics, and one module per stage.
#![deny(missing_docs)]

pub mod adapter;
pub mod backbone;
pub mod config;
pub mod crm;
pub mod engine;
pub mod error;
pub mod kernels;
pub mod losses;
pub mod metrics;
pub mod parameters;
pub mod prompt;
pub mod retriever;
pub mod scoring;
pub mod stages;
pub mod telemetry;
pub mod tokenizer;
pub mod training;
