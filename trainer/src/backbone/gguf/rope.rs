//! Scaling of the rotary frequencies.
//!
//! LLaMA 3.1 and later have no settings for it in a GGUF file but its result, a divisor for every
//! pair of a head. The settings are found by trying: those of all models that were published with
//! this scaling differ in the largest divisor alone, which is among the divisors.

use std::f64::consts::TAU;

use serde_json::{Value, json};

use super::config::Keys;
use crate::error::Result;

/// Divisors of the rotary frequencies, one for each pair.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings` of LLaMA 3.1, 3.2, 3.3.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL_LENGTH: f64 = 8192.0;
/// How far a divisor in f32 may be from its formula, relatively.
const TOLERANCE: f64 = 1e-4;

impl Keys<'_> {
    /// `rope_scaling` as config.json has it; null for none.
    pub fn rope_scaling(self, head_dim: u64, theta: f64) -> Result<Value> {
        if let Some(factors) = self.file.rope_factors(head_dim)? {
            return self.llama3(&factors, theta);
        }
        let old = self.file.number(&self.key("rope.scale_linear"))?;
        let key = self.key("rope.scaling.type");
        let kind = self.file.text(&key)?.or(old.map(|_| "linear"));
        match kind {
            None | Some("none") => Ok(Value::Null),
            Some("linear") => {
                let key = self.key("rope.scaling.factor");
                let factor = self.file.number(&key)?.or(old);
                Ok(json!({"rope_type": "linear", "factor": self.file.need(&key, factor)?}))
            }
            Some(other) => {
                let supported = "supported: \"none\", \"linear\"";
                self.file.fail_key(&key, &format!("{other:?} not supported; {supported}"))
            }
        }
    }

    fn llama3(self, factors: &[f32], theta: f64) -> Result<Value> {
        let largest = factors.iter().copied().fold(1.0, f32::max).into();
        let near = |(&found, expected): (&f32, f64)| {
            (f64::from(found) - expected).abs() <= TOLERANCE * expected
        };
        if !factors.iter().zip(llama3_factors(factors.len(), theta, largest)).all(near) {
            return self.file.fail_tensor(
                FACTORS,
                "its divisors of the rotary frequencies are not those of LLaMA 3.1 to 3.3, others \
                 are not supported",
            );
        }
        Ok(json!({
            "rope_type": "llama3",
            "factor": largest,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL_LENGTH as u64,
        }))
    }
}

/// The divisor of every pair: 1 for short waves, `factor` for long ones, a blend between.
fn llama3_factors(pairs: usize, theta: f64, factor: f64) -> impl Iterator<Item = f64> {
    (0..pairs).map(move |pair| {
        let wave = TAU * theta.powf(pair as f64 / pairs as f64);
        let turns = ORIGINAL_LENGTH / wave;
        let blend = ((turns - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - blend) / factor + blend)
    })
}
