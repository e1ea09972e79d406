//! What every stage that puts text before the LLM opens: dataset, backbone, tokenizer, template.

use std::collections::BTreeMap;
use std::path::Path;

use reclora_storage::dataset::Dataset;

use super::{RunContext, Stage, artifacts, inputs, read_json};
use crate::adapter::Adapter;
use crate::backbone::BackboneConfig;
use crate::config::{Config, Prior};
use crate::engine::{self, Adapted, Engine, Prompt};
use crate::error::Result;
use crate::metrics::Gain;
use crate::prompt::{PromptBuilder, PromptTemplate};
use crate::tokenizer::Tokenizer;

/// Longest prompt of a config that leaves it to the backbone.
const MAX_TOKENS: usize = 2048;

/// The text side of a run.
pub struct TextInputs {
    pub dataset: Dataset,
    pub llm: Box<dyn Engine>,
    tokenizer: Tokenizer,
    template: PromptTemplate,
    /// Longest prompt, the answer included.
    pub max_tokens: usize,
}

impl TextInputs {
    pub fn open(ctx: &RunContext) -> Result<Self> {
        let config = &ctx.config;
        let dataset = inputs::dataset(ctx)?;
        let llm = engine::load(config)?;
        let max_tokens = max_tokens(config, llm.config());
        Ok(Self {
            tokenizer: Tokenizer::load(&config.backbone.path)?,
            template: PromptTemplate::load(&config.prompt.template, &dataset)?,
            dataset,
            llm,
            max_tokens,
        })
    }

    pub fn prompts(&self) -> Result<PromptBuilder<'_>> {
        PromptBuilder::new(&self.template, &self.tokenizer, &self.dataset, self.max_tokens)
    }
}

/// The longest prompt of a run, the answer included.
pub fn max_tokens(config: &Config, backbone: &BackboneConfig) -> usize {
    let limit = backbone.max_position_embeddings;
    match config.prompt.max_tokens {
        0 => limit.min(MAX_TOKENS),
        wanted => wanted.min(limit),
    }
}

/// A tuned adapter, and the rule of its score.
pub struct Tuned {
    pub adapter: Adapter,
    /// How much of what the LLM adds to the CRM's logit is believed; `None` in runs without a prior, whose score is what
    /// the LLM says.
    pub gain: Option<Gain>,
}

impl Tuned {
    fn open(config: &Config, dir: &Path, backbone: &BackboneConfig) -> Result<Self> {
        let adapter = Adapter::load(&dir.join(artifacts::ADAPTER), backbone)?;
        let gain = (config.tune.prior == Prior::Crm).then(|| read_json(&dir.join(artifacts::GAIN)));
        Ok(Self { adapter, gain: gain.transpose()? })
    }

    /// The LLM with the adapter.
    pub fn model<'a>(&'a self, text: &'a TextInputs) -> Result<Box<dyn Adapted + 'a>> {
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
    /// Plain LoRA; `None` in runs without that baseline.
    pub lora: Option<Tuned>,
}

impl Adapters {
    pub fn open(ctx: &RunContext, backbone: &BackboneConfig) -> Result<Self> {
        let dir = ctx.path(Stage::Tune);
        let open = |dir: &Path| Tuned::open(&ctx.config, dir, backbone);
        let plain = ctx.config.tune.plain_lora.then(|| open(&dir.join(artifacts::PLAIN_LORA)));
        Ok(Self { reclora: open(&dir)?, lora: plain.transpose()? })
    }

    /// The rules of the scores that start from a prior, by names of models.
    pub fn gains(&self) -> BTreeMap<&'static str, Gain> {
        let lora = self.lora.iter().map(|lora| ("lora", lora));
        let tuned = [("reclora", &self.reclora)].into_iter().chain(lora);
        tuned.filter_map(|(name, tuned)| Some((name, tuned.gain.clone()?))).collect()
    }
}

/// Logits of no and yes after each prompt.
pub fn deciding_logits(
    model: &dyn Adapted,
    prompts: &[Prompt<'_>],
    deciding: [u32; 2],
) -> Result<Vec<[f32; 2]>> {
    model.answers(prompts, deciding, &|_| ())
}
