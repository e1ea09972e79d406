//! One user and one item, scored by every model of a finished run.

use serde::Serialize;

use super::pair::Pair;
use super::text::{TextInputs, deciding_logits};
use super::tuned::{Adapters, Tuned};
use super::{RunContext, require};
use crate::config::TunedModel;
use crate::engine::Prompt;
use crate::error::Result;
use crate::scoring::sigmoid;

/// P(like) of one user and item.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// Raw id of the user.
    pub user: String,
    /// Raw id of the item.
    pub item: String,
    /// Title of the item, where there is one.
    pub title: Option<String>,
    /// P(like) of the personalised adapter.
    pub reclora: f32,
    /// P(like) of plain LoRA, where the run has it.
    pub lora: Option<f32>,
    /// P(like) of plain LoRA that starts from the CRM, where the run has it.
    pub lora_crm: Option<f32>,
    /// P(like) of the CRM alone.
    pub crm: f32,
    /// What the user said, where the data has it.
    pub liked: Option<bool>,
    /// History items in the prompt.
    pub history_items: usize,
    /// What the LLM read.
    pub prompt: String,
}

/// Scores raw ids `user` and `item` with the models of a run.
///
/// The history is what the user rated before that item, or everything, if it was never rated.
///
/// # Errors
/// The run has not been tuned, or the user or item is not in its data.
pub fn predict(ctx: &RunContext, user: &str, item: &str) -> Result<Prediction> {
    require(ctx)?;
    let text = TextInputs::open(ctx)?;
    let adapters = Adapters::open(ctx, text.llm.config())?;
    let pair = Pair::find(ctx, &text.dataset, user, item)?;
    let prompts = text.prompts()?;
    let encoded = prompts.build(pair.user, pair.item, &pair.text, &pair.known)?;
    let prompt = Prompt { tokens: &encoded.tokens, representation: &pair.representation };
    let probability = |tuned: &Tuned| -> Result<f32> {
        let model = tuned.adapted(&text)?;
        let logits = deciding_logits(&*model, &[prompt], prompts.answers().deciding())?;
        let score = |logits: &[f32; 2]| sigmoid(tuned.logit(pair.crm_logit, *logits));
        Ok(logits.first().map_or(f32::NAN, score))
    };
    let of = |model| {
        let tuned = adapters.others.iter().find(|tuned| tuned.model == model);
        tuned.map(probability).transpose()
    };
    Ok(Prediction {
        user: user.to_owned(),
        item: item.to_owned(),
        title: text.dataset.item_text(pair.item, "title").map(str::to_owned),
        reclora: probability(&adapters.reclora)?,
        lora: of(TunedModel::Lora)?,
        lora_crm: of(TunedModel::LoraCrm)?,
        crm: sigmoid(pair.crm_logit),
        liked: pair.label,
        history_items: pair.text.len() - encoded.dropped,
        prompt: encoded.text,
    })
}
