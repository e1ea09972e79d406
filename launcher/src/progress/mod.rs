//! What ranks report, added up ([`tracker`]) and shown ([`display`]).

pub mod display;
pub mod tee;
pub mod tracker;
