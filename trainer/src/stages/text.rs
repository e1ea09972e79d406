//! What every stage that puts text before the LLM opens: dataset, backbone, tokenizer, template.

use reclora_storage::dataset::Dataset;

use super::{RunContext, inputs};
use crate::backbone::BackboneConfig;
use crate::config::Config;
use crate::engine::{self, Adapted, Engine, Prompt};
use crate::error::Result;
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

/// Logits of no and yes after each prompt.
pub fn deciding_logits(
    model: &dyn Adapted,
    prompts: &[Prompt<'_>],
    deciding: [u32; 2],
) -> Result<Vec<[f32; 2]>> {
    model.answers(prompts, deciding, &|_| ())
}
