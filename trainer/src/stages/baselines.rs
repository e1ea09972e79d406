//! The models that read no text, fitted on a dataset.

use std::ops::Range;

use reclora_storage::dataset::{Dataset, Sample, Split};

use super::count::{COUNTERS, OF_COUNTS};
use super::crms::{CrmInputs, WithoutVectors};
use super::inputs::Lens;
use super::{RunContext, Stage};
use crate::error::Result;
use crate::metrics::baselines::{Interactions, ItemMean, LogisticRegression, NumberRegression};
use crate::scoring::sigmoid;

/// Train samples that regressions on counters are fitted on, at most, evenly spaced.
const MOST: u64 = 1_000_000;

/// P(like) of some samples, by each of some models.
pub type Likes = Vec<(&'static str, Vec<f32>)>;

/// The baselines of a dataset, fitted.
pub struct Baselines<'a> {
    inputs: &'a CrmInputs<'a>,
    without_vectors: Option<WithoutVectors<'a>>,
    mean: ItemMean,
    regression: LogisticRegression,
    /// On counters: those of the user, the item and its categories, and all of them where texts were embedded.
    history: Vec<(&'static str, NumberRegression, Range<usize>)>,
}

impl<'a> Baselines<'a> {
    /// On train; how strongly the regression on users and items is held back is chosen on valid.
    pub fn fit(ctx: &RunContext, dataset: &'a Dataset, inputs: &'a CrmInputs<'_>) -> Result<Self> {
        let train = Columns::of(dataset, dataset.split(Split::Train))?;
        let valid = Columns::of(dataset, dataset.split(Split::Valid))?;
        let (users, items) = (dataset.num_users(), dataset.num_items());
        let range = dataset.split(Split::Train);
        let step = (range.end - range.start).div_ceil(MOST).max(1);
        let sample = |index: u64| Ok((inputs.counters(index)?, dataset.sample(index)?.label));
        let samples: Vec<(&[f32], bool)> =
            range.step_by(step as usize).map(sample).collect::<Result<_>>()?;
        let with_texts = Stage::Embed.is_needed(&ctx.config);
        let kinds = [("history", OF_COUNTS), ("history_text", 0..COUNTERS)];
        let history = kinds.into_iter().take(1 + usize::from(with_texts)).map(|(name, of)| {
            let samples = samples.iter().map(|(counters, like)| (&counters[of.clone()], *like));
            (name, NumberRegression::fit(samples, of.len()), of)
        });
        Ok(Self {
            inputs,
            without_vectors: WithoutVectors::open(ctx, dataset)?,
            history: history.collect(),
            mean: ItemMean::fit(train.view(), items),
            regression: LogisticRegression::fit(train.view(), valid.view(), users, items),
        })
    }

    /// P(like) of samples by the CRM, and by the baselines.
    pub fn likes(&self, lens: &Lens, samples: &[Sample]) -> Result<Likes> {
        let crm = samples.iter().map(|sample| Ok(sigmoid(lens.logit(sample.index)?)));
        let regression =
            samples.iter().map(|sample| self.regression.predict(sample.user, sample.item));
        let mut likes = vec![
            ("crm", crm.collect::<Result<_>>()?),
            ("logistic_regression", regression.collect()),
            ("item_mean", samples.iter().map(|sample| self.mean.predict(sample.item)).collect()),
        ];
        if let Some(crm) = &self.without_vectors {
            let of_crm = crm.logits(samples)?.into_iter().map(sigmoid);
            likes.push(("crm_no_vectors", of_crm.collect()));
        }
        for (name, model, of) in &self.history {
            let like = |sample: &Sample| {
                Ok(model.predict(&self.inputs.counters(sample.index)?[of.clone()]))
            };
            likes.push((name, samples.iter().map(like).collect::<Result<_>>()?));
        }
        Ok(likes)
    }
}

#[derive(Default)]
struct Columns {
    users: Vec<u32>,
    items: Vec<u32>,
    labels: Vec<bool>,
}

impl Columns {
    fn of(dataset: &Dataset, indices: Range<u64>) -> Result<Self> {
        let mut columns = Self::default();
        for index in indices {
            let sample = dataset.sample(index)?;
            columns.users.push(sample.user);
            columns.items.push(sample.item);
            columns.labels.push(sample.label);
        }
        Ok(columns)
    }

    fn view(&self) -> Interactions<'_> {
        Interactions { users: &self.users, items: &self.items, labels: &self.labels }
    }
}
