//! Export of one sample's mixed adapter as a Hugging Face PEFT directory.

use std::path::Path;

use reclora_storage::atomic::{create_dir_all, write_bytes_atomic};
use serde_json::{Value, json};

use super::Adapter;
use crate::error::{Result, TrainerError};
use crate::parameters::serialize;

/// The LoRA's matrices.
pub(crate) const PEFT_MODEL: &str = "adapter_model.safetensors";
/// The LoRA's settings. Without it PEFT loads nothing from a directory.
pub(crate) const PEFT_CONFIG: &str = "adapter_config.json";

impl Adapter {
    /// Writes the adapter mixed for `representation` as `adapter_config.json` and
    /// `adapter_model.safetensors`, which Hugging Face PEFT loads on top of the backbone. The former comes
    /// last.
    ///
    /// PEFT scales by `lora_alpha / r`. The product form has rank N * r, so its `lora_alpha` is
    /// N times the config's.
    ///
    /// # Errors
    /// The representation has another width than the adapter's, or a file can't be written.
    pub fn save_peft(
        &self,
        representation: &[f32],
        base_model_name: &str,
        dir: &Path,
    ) -> Result<()> {
        let modules = self.mixed(representation)?;
        create_dir_all(dir)?;
        let mut tensors = Vec::new();
        for module in &modules {
            let prefix = format!("base_model.model.{}", module.name);
            let a_shape = vec![module.rank, module.d_in];
            let b_shape = vec![module.d_out, module.rank];
            tensors.push((format!("{prefix}.lora_A.weight"), a_shape, &module.lora_a));
            tensors.push((format!("{prefix}.lora_B.weight"), b_shape, &module.lora_b));
        }
        let path = dir.join(PEFT_MODEL);
        let views = tensors.iter().map(|(n, s, d)| (n.as_str(), s.as_slice(), d.as_slice()));
        write_bytes_atomic(&path, &serialize(&path, views, ("format", "pt".into()))?)?;
        let path = dir.join(PEFT_CONFIG);
        let text = serde_json::to_string_pretty(&self.peft_config(base_model_name))
            .map_err(|e| TrainerError::file(&path, format!("can't be written: {e}")))?;
        Ok(write_bytes_atomic(&path, (text + "\n").as_bytes())?)
    }

    fn peft_config(&self, base_model_name: &str) -> Value {
        let rank = self.layout().mixed_rank();
        let stacked = rank / self.config().rank;
        let lora_alpha = f64::from(self.config().lora_alpha) * stacked as f64;
        // PEFT's field is an integer by convention; a fraction is written as it is.
        let whole = lora_alpha.fract() == 0.0 && lora_alpha.abs() < 1e15;
        let lora_alpha = if whole { json!(lora_alpha as i64) } else { json!(lora_alpha) };
        let targets = self.config().targets.iter().map(|target| target.name());
        let mut targets: Vec<&str> = targets.collect();
        targets.sort_unstable();
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model_name,
            "r": rank,
            "lora_alpha": lora_alpha,
            "lora_dropout": 0.0,
            "target_modules": targets,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "inference_mode": true,
            "modules_to_save": null,
            "layers_to_transform": null,
            "layers_pattern": null,
            "use_rslora": false,
            "use_dora": false,
            "rank_pattern": {},
            "alpha_pattern": {},
            "revision": null
        })
    }
}
