//! A user and an item by their raw ids, with everything the models read of the two.

use super::count::{Before, known};
use super::crms::{CrmInputs, Crms, ReadByCrm};
use super::inputs::{Lens, Neighbours, as_in_lens};
use super::{RunContext, retrieve};
use crate::crm::{CrmBatch, Workspace};
use crate::error::{Result, TrainerError};
use crate::prompt::Known;
use reclora_storage::dataset::{Dataset, Split};

/// A user and an item.
pub struct Pair {
    pub user: u32,
    pub item: u32,
    /// Positions of the history shown to the LLM.
    pub text: Vec<u32>,
    /// What was known of the two, for templates.
    pub known: Known,
    /// What the gates read.
    pub representation: Vec<f32>,
    /// The CRM's logit.
    pub crm_logit: f32,
    /// What the user said, where the dataset has it.
    pub label: Option<bool>,
}

impl Pair {
    /// The pair of raw ids: as the stages saw it where it is a sample; otherwise with the history
    /// before that interaction, or all of the user's if there was none.
    pub fn find(ctx: &RunContext, dataset: &Dataset, user: &str, item: &str) -> Result<Self> {
        let (user, item) = indices(ctx, dataset, user, item)?;
        let history = dataset.history(user, u32::MAX);
        let position = history.items.iter().position(|&seen| seen == item);
        let label = position
            .and_then(|position| history.ratings.get(position))
            .map(|&level| dataset.is_like(level));
        let position = position.map_or(history.items.len(), |position| position) as u32;
        let sample = match label {
            Some(_) => sample_at(dataset, user, position)?,
            None => None,
        };
        match sample {
            Some(index) => Self::sample(ctx, dataset, index),
            None => Self::fresh(ctx, dataset, user, item, position, label),
        }
    }

    /// The first sample of the test set.
    pub fn first_test_sample(ctx: &RunContext, dataset: &Dataset) -> Result<Self> {
        Self::sample(ctx, dataset, require_test_sample(dataset)?)
    }

    fn sample(ctx: &RunContext, dataset: &Dataset, index: u64) -> Result<Self> {
        let sample = dataset.sample(index)?;
        let lens = Lens::open(ctx, dataset)?;
        Ok(Self {
            user: sample.user,
            item: sample.item,
            text: Neighbours::open(ctx, dataset)?.text(index)?.to_vec(),
            known: known(CrmInputs::open(ctx, dataset)?.counters(index)?),
            representation: lens.representation(index)?,
            crm_logit: lens.logit(index)?,
            label: Some(sample.label),
        })
    }

    fn fresh(
        ctx: &RunContext,
        dataset: &Dataset,
        user: u32,
        item: u32,
        position: u32,
        label: Option<bool>,
    ) -> Result<Self> {
        let embeddings = retrieve::embeddings(ctx)?;
        let (config, embeddings) = (&ctx.config.retrieve, embeddings.as_ref());
        let [text, crm] = retrieve::positions(config, embeddings, dataset, user, position, item);
        let mut batch = CrmBatch::default();
        let counters = Before::count(ctx, dataset)?.counters(dataset, user, position, item);
        ReadByCrm::of(ctx, &ctx.config.crm)?.push(
            &mut batch,
            dataset,
            (user, item),
            &crm,
            &counters,
        )?;
        let scores = Crms::open(ctx)?.score(&mut Workspace::default(), &batch.inputs());
        let crm_logit = scores.logits.first().copied().unwrap_or(f32::NAN);
        let representation = as_in_lens(&scores.representations);
        let known = known(&counters);
        Ok(Self { user, item, text, known, representation, crm_logit, label })
    }
}

/// The indices of a user and an item, by their raw ids.
pub fn indices(ctx: &RunContext, dataset: &Dataset, user: &str, item: &str) -> Result<(u32, u32)> {
    let missing = |what: &str, id: &str, count: usize| {
        let core = ctx.config.data.k_core;
        TrainerError::NotFound(format!(
            "{what} {id:?} is not among the {count} {what}s of this run; it is not in the data, or has \
             fewer than {core} ratings (data.k_core)"
        ))
    };
    let of_user =
        dataset.user_index(user).ok_or_else(|| missing("user", user, dataset.num_users()));
    let of_item =
        dataset.item_index(item).ok_or_else(|| missing("item", item, dataset.num_items()));
    Ok((of_user?, of_item?))
}

/// The raw ids of one of `export.pairs`.
pub fn ids(pair: &str) -> (&str, &str) {
    pair.split_once(':').unwrap_or((pair, ""))
}

/// That there is a sample to be exported where no pair is named.
pub fn require_test_sample(dataset: &Dataset) -> Result<u64> {
    let test = dataset.split(Split::Test);
    if test.is_empty() {
        let what = "leaves no sample to test, of which the first would be exported: give test a larger \
                    share, or name what to export in export.pairs";
        return Err(TrainerError::config("data.split", what));
    }
    Ok(test.start)
}

fn sample_at(dataset: &Dataset, user: u32, position: u32) -> Result<Option<u64>> {
    for index in 0..dataset.num_samples() {
        let sample = dataset.sample(index)?;
        if (sample.user, sample.position) == (user, position) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}
