//! `[adapter]` as adapter files and fingerprints hold it.
//!
//! Both hash it. A setting that came after the first adapters were written is left out at its default,
//! so that their hashes stay what they were. The path of a frozen LoRA is never part of it: its place
//! changes nothing, and what is in that file is hashed by itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{AdapterConfig, GateInput, Head, MixForm};
use crate::backbone::Projection;

/// The settings of an adapter, written without newer ones that have their default.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct StoredAdapter(#[serde(with = "Stored")] pub AdapterConfig);

/// The fields of [`AdapterConfig`], in their order (serde's derive compares the two).
#[derive(Serialize, Deserialize)]
#[serde(remote = "AdapterConfig", deny_unknown_fields)]
struct Stored {
    experts: usize,
    rank: usize,
    lora_alpha: f32,
    temperature: f32,
    form: MixForm,
    sqrt_alpha: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    top_k: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    gate: GateInput,
    gate_hidden: usize,
    gate_dropout: f32,
    targets: Vec<Projection>,
    #[serde(default, skip_serializing_if = "is_default")]
    head: Head,
    #[serde(skip)]
    scale_of: PathBuf,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the first version wrote: other bytes would be other hashes.
    const FIRST: &str = concat!(
        r#"{"experts":8,"rank":8,"lora_alpha":16.0,"temperature":5.0,"form":"factor","#,
        r#""sqrt_alpha":false,"gate_hidden":60,"gate_dropout":0.1,"targets":["q_proj","v_proj"]}"#
    );

    #[test]
    fn defaults_of_newer_settings_are_not_written() {
        let written = serde_json::to_string(&StoredAdapter(AdapterConfig::default())).unwrap();
        assert_eq!(written, FIRST);
        let StoredAdapter(read) = serde_json::from_str(FIRST).unwrap();
        assert_eq!(read, AdapterConfig::default());
        let elsewhere = AdapterConfig { scale_of: "some/file".into(), ..AdapterConfig::default() };
        assert_eq!(serde_json::to_string(&StoredAdapter(elsewhere)).unwrap(), written);
    }

    #[test]
    fn other_values_of_newer_settings_come_back() {
        let config = AdapterConfig {
            top_k: 3,
            gate: GateInput::Token,
            head: Head::Ctr1,
            ..AdapterConfig::default()
        };
        let written = serde_json::to_string(&StoredAdapter(config.clone())).unwrap();
        assert_ne!(written, FIRST);
        let StoredAdapter(read) = serde_json::from_str(&written).unwrap();
        assert_eq!(read, config);
    }
}
