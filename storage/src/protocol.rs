//! The data protocol.
use serde::{Deserialize, Serialize};
/// When a rating counts as "like".
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelRule {
    /// rating > value
    Greater(f32),
    /// rating >= value
    AtLeast(f32),
}
