//! The models that `tune` makes, and the rule of their scores.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::text::TextInputs;
use super::{RunContext, Stage, artifacts, read_json};
use crate::adapter::Adapter;
use crate::backbone::BackboneConfig;
use crate::config::{AdapterConfig, Config, GateInput, Prior, TunedModel};
use crate::engine::Adapted;
use crate::error::Result;
use crate::metrics::Gain;

impl TunedModel {
    /// Name in files and columns.
    pub fn key(self) -> &'static str {
        match self {
            Self::Reclora => "reclora",
            Self::Lora => "lora",
            Self::LoraCrm => "lora_crm",
        }
    }

    /// Name in messages and of checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reclora => "RecLoRA",
            Self::Lora => "plain LoRA",
            Self::LoraCrm => "plain LoRA + CRM",
        }
    }

    /// Its directory below a directory of adapters.
    pub fn directory(self, adapters: &Path) -> PathBuf {
        match self {
            Self::Reclora => adapters.to_path_buf(),
            Self::Lora => adapters.join(artifacts::PLAIN_LORA),
            Self::LoraCrm => adapters.join(artifacts::PLAIN_LORA_CRM),
        }
    }

    /// The settings of its adapter. Plain LoRA is tuned from the beginning, with the same but for experts, gate and
    /// scales.
    pub fn adapter(self, config: &AdapterConfig) -> AdapterConfig {
        if self == Self::Reclora {
            return config.clone();
        }
        AdapterConfig {
            experts: 1,
            sqrt_alpha: false,
            top_k: 0,
            gate: GateInput::Sample,
            scale_of: PathBuf::new(),
            ..config.clone()
        }
    }

    /// What its score starts from.
    pub fn prior(self, config: &Config) -> Prior {
        if self == Self::Lora { Prior::None } else { config.tune.prior }
    }
}

/// A tuned adapter, and the rule of its score.
pub struct Tuned {
    /// Which model it is.
    pub model: TunedModel,
    pub adapter: Adapter,
    /// How much of what the LLM adds to the CRM's logit is believed; `None` without a prior: the score is what the LLM
    /// says.
    pub gain: Option<Gain>,
}

impl Tuned {
    fn open(ctx: &RunContext, model: TunedModel, backbone: &BackboneConfig) -> Result<Self> {
        let dir = model.directory(&ctx.path(Stage::Tune));
        let adapter = Adapter::load(&dir.join(artifacts::ADAPTER), backbone)?;
        let starts = model.prior(&ctx.config) == Prior::Crm;
        let gain = starts.then(|| read_json(&dir.join(artifacts::GAIN))).transpose()?;
        Ok(Self { model, adapter, gain })
    }

    /// The LLM with the adapter.
    pub fn adapted<'a>(&'a self, text: &'a TextInputs) -> Result<Box<dyn Adapted + 'a>> {
        text.llm.adapted(Some(self.adapter.view()))
    }

    /// The logit of like, from the CRM's and the LLM's logits of the answers.
    pub fn logit(&self, crm: f32, [no, yes]: [f32; 2]) -> f32 {
        self.gain.as_ref().map_or(yes - no, |gain| gain.score(crm, yes - no))
    }
}

/// The tuned adapters of a run.
pub struct Adapters {
    pub reclora: Tuned,
    /// The plain LoRAs of the run.
    pub others: Vec<Tuned>,
}

impl Adapters {
    pub fn open(ctx: &RunContext, backbone: &BackboneConfig) -> Result<Self> {
        let open = |model| Tuned::open(ctx, model, backbone);
        let others = ctx.config.tune.models.iter().filter(|model| **model != TunedModel::Reclora);
        Ok(Self {
            reclora: open(TunedModel::Reclora)?,
            others: others.map(|model| open(*model)).collect::<Result<_>>()?,
        })
    }

    /// All of them, RecLoRA first.
    pub fn all(&self) -> impl Iterator<Item = &Tuned> {
        std::iter::once(&self.reclora).chain(&self.others)
    }

    /// The rules of the scores that start from a prior, by names of models.
    pub fn gains(&self) -> BTreeMap<&'static str, Gain> {
        self.all().filter_map(|tuned| Some((tuned.model.key(), tuned.gain.clone()?))).collect()
    }
}
