//! Folds of train: which CRM has not seen a sample.

use std::ops::Range;

use reclora_storage::dataset::{Dataset, Split};
use reclora_storage::permutation::EpochOrder;

use super::{RunContext, Stage, artifacts};
use crate::crm::TrainedCrm;
use crate::error::Result;

/// Sets the draw of folds apart from the order of epochs, which has the same seed.
const DRAW: u64 = u64::MAX - 1;

/// Train, cut into folds of one size (but for one sample), drawn with the seed.
#[derive(Clone, Debug)]
pub struct Folds {
    train: Range<u64>,
    order: EpochOrder,
    count: u64,
}

impl Folds {
    /// The folds of a run; none where it has not asked for any.
    pub fn new(ctx: &RunContext, dataset: &Dataset) -> Self {
        let train = dataset.split(Split::Train);
        let order = EpochOrder::new(train.end - train.start, ctx.config.seed, DRAW);
        Self { train, order, count: ctx.config.crm.folds as u64 }
    }

    /// The fold of a sample; `None` outside train, and where there are no folds.
    pub fn of(&self, index: u64) -> Option<u64> {
        let inside = self.count > 0 && self.train.contains(&index);
        inside.then(|| self.order.at(index - self.train.start) % self.count)
    }

    /// All folds.
    pub fn all(&self) -> Range<u64> {
        0..self.count
    }

    /// Train without a fold.
    pub fn without(&self, fold: u64) -> Vec<u64> {
        self.train.clone().filter(|index| self.of(*index) != Some(fold)).collect()
    }
}

/// The CRMs of a run: that of all of train, and one for each fold.
pub struct Crms {
    folds: Folds,
    /// The CRM of all of train, then those without each fold.
    models: Vec<TrainedCrm>,
}

impl Crms {
    /// Opens what `pretrain` wrote.
    pub fn open(ctx: &RunContext, dataset: &Dataset) -> Result<Self> {
        let folds = Folds::new(ctx, dataset);
        let (dir, representation) = (ctx.path(Stage::Pretrain), ctx.config.crm.representation);
        let names = std::iter::once(artifacts::CRM.to_owned())
            .chain(folds.all().map(artifacts::crm_without));
        let models = names
            .map(|name| TrainedCrm::open(&dir.join(name), representation))
            .collect::<Result<_>>()?;
        Ok(Self { folds, models })
    }

    /// Each CRM with those of the samples that it scores, and their places among them.
    pub fn shares(
        &self,
        samples: &Range<u64>,
    ) -> impl Iterator<Item = (&TrainedCrm, Vec<(usize, u64)>)> {
        self.models.iter().enumerate().map(|(number, model)| {
            let fold = number.checked_sub(1).map(|fold| fold as u64);
            let own =
                samples.clone().enumerate().filter(|(_, index)| self.folds.of(*index) == fold);
            (model, own.collect())
        })
    }

    /// Width of a representation.
    pub fn representation_dim(&self) -> usize {
        self.models.first().map_or(0, |crm| crm.crm().representation_dim())
    }
}
