//! The models that read no text, fitted on a dataset.

use std::ops::Range;

use reclora_storage::dataset::{Dataset, Sample, Split};

use super::inputs::Lens;
use crate::error::Result;
use crate::metrics::baselines::{Interactions, ItemMean, LogisticRegression};
use crate::scoring::sigmoid;

/// P(like) of some samples, by each of some models.
pub type Likes = Vec<(&'static str, Vec<f32>)>;

/// The baselines of a dataset, fitted.
pub struct Baselines {
    mean: ItemMean,
    regression: LogisticRegression,
}

impl Baselines {
    /// On train; how strongly the regression is held back is chosen on valid.
    pub fn fit(dataset: &Dataset) -> Result<Self> {
        let train = Columns::of(dataset, dataset.split(Split::Train))?;
        let valid = Columns::of(dataset, dataset.split(Split::Valid))?;
        let (users, items) = (dataset.num_users(), dataset.num_items());
        Ok(Self {
            mean: ItemMean::fit(train.view(), items),
            regression: LogisticRegression::fit(train.view(), valid.view(), users, items),
        })
    }

    /// P(like) of samples by the CRM, and by the baselines.
    pub fn likes(&self, lens: &Lens, samples: &[Sample]) -> Result<Likes> {
        let crm = samples.iter().map(|sample| Ok(sigmoid(lens.logit(sample.index)?)));
        let regression =
            samples.iter().map(|sample| self.regression.predict(sample.user, sample.item));
        Ok(vec![
            ("crm", crm.collect::<Result<_>>()?),
            ("logistic_regression", regression.collect()),
            ("item_mean", samples.iter().map(|sample| self.mean.predict(sample.item)).collect()),
        ])
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
