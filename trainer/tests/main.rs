//! What the crate does, seen from outside. One executable, since linking many takes longer than running them.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod adapter_files;
mod attention;
mod backbone_loading;
mod crm;
mod finite_differences;
mod gguf;
mod gguf_damage;
mod gguf_file;
mod gguf_tokenizer;
mod golden;
mod golden_families;
mod golden_gradients;
mod golden_stories;
mod method_facts;
mod overlap;
mod preflight;
mod prompt;
mod ranks;
mod rooms;
mod routing_facts;
mod scale_mode;
mod stories;
mod tiny;
mod tokenizer;
mod toy;
mod train;
mod train_interrupted;
mod weights;
