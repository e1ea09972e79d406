//! What an engine takes: prompts, and samples to learn from.

use serde::{Deserialize, Serialize};

use crate::adapter::{AdapterLayout, Dropout};
use crate::backbone::BackboneConfig;
use crate::error::{Result, TrainerError};

/// One sequence and what its gates read.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Prompt tokens, plus the answer's tokens but the last.
    pub tokens: &'a [u32],
    /// CRM representation `[|c|]`; ignored by plain LoRA and by the bare backbone.
    pub representation: &'a [f32],
}

/// One supervised token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Index into the prompt's tokens whose next token is predicted.
    pub position: usize,
    /// The token that should follow.
    pub token: u32,
}

/// One sample of a training batch.
#[derive(Clone, Copy, Debug)]
pub struct TrainingSample<'a> {
    /// The prompt and the answer.
    pub prompt: Prompt<'a>,
    /// The supervised tokens.
    pub targets: &'a [Target],
    /// Whether the answer is yes: what a trained head learns.
    pub label: bool,
    /// The tokens no and yes at the first target's position, whose choice has a loss that is told apart.
    pub deciding: Option<[u32; 2]>,
    /// Logit that the score starts from: the loss is of the margin and this together.
    pub offset: f32,
    /// Dropout of the gates.
    pub dropout: Option<Dropout>,
}

impl<'a> TrainingSample<'a> {
    /// A sample that says nothing but its tokens: no answer, no dropout.
    pub fn new(prompt: Prompt<'a>, targets: &'a [Target]) -> Self {
        Self { prompt, targets, label: false, deciding: None, offset: 0.0, dropout: None }
    }
}

/// Everything about the inputs that later code relies on.
pub(crate) fn check(
    config: &BackboneConfig,
    layout: Option<&AdapterLayout>,
    prompt: &Prompt<'_>,
    positions: &[usize],
    token_ids: &[u32],
) -> Result<()> {
    let fail = |what: String| Err(TrainerError::Input(what));
    if layout.is_some_and(|layout| !layout.fits(config)) {
        return fail("the adapter was made for another backbone".into());
    }
    let length = prompt.tokens.len();
    if length > config.max_position_embeddings {
        let limit = config.max_position_embeddings;
        return fail(format!("the prompt has {length} tokens, the backbone takes {limit}"));
    }
    if positions.is_empty() {
        return fail("no position to predict at".into());
    }
    if let Some(p) = positions.iter().find(|p| **p >= length) {
        return fail(format!("position {p} is not in the prompt of {length} tokens"));
    }
    let ids = prompt.tokens.iter().chain(token_ids);
    if let Some(id) = ids.into_iter().find(|id| **id as usize >= config.vocab_size) {
        let vocab = config.vocab_size;
        return fail(format!(
            "token {id} is not in the backbone's vocabulary of {vocab}: is the tokenizer another \
                 model's?"
        ));
    }
    Ok(())
}

pub(crate) fn check_finite(logits: Vec<f32>) -> Result<Vec<f32>> {
    if logits.iter().all(|x| x.is_finite()) {
        return Ok(logits);
    }
    Err(TrainerError::NotFinite {
        what: "a logit".into(),
        hint:
            "the adapter or the backbone's weights overflow; was it tuned with too high a learning \
               rate?"
                .into(),
    })
}
