//! The CRMs of a run: that of all of train, and one that has not seen the last of it.
//!
//! A CRM is surer of the samples it was trained on than of new ones, and its representation of them tells their labels.
//! Gates that are tuned on such samples learn to believe what is not there later. So the few-shot set can be held out:
//! the gates then read, everywhere, a CRM that was trained before it.

use std::ops::Range;

use rayon::prelude::*;
use reclora_storage::dataset::{Dataset, Sample, Split};

use super::count::{COUNTERS, counter_chunks, read_by};
use super::inputs::{Lens, Neighbours, damaged, located};
use super::retrieve;
use super::{RunContext, Stage, artifacts};
use crate::config::{CrmConfig, ItemVectors};
use crate::crm::{CrmBatch, CrmInput, CrmShape, TrainedCrm, Workspace};
use crate::error::{Result, TrainerError};
use crate::metrics::Platt;
use crate::retriever::ItemEmbeddings;
use crate::scoring::chunks::ChunkStore;
use crate::telemetry::measure::{Phase, timed};

/// Samples scored in one pass of the network.
pub const BLOCK: usize = 64;

/// Train without the holdout, which is the last of it in time; `None` in runs that hold nothing out.
pub fn before_holdout(ctx: &RunContext, dataset: &Dataset) -> Option<Range<u64>> {
    let (train, share) = (dataset.split(Split::Train), ctx.config.crm.holdout);
    let held_out = ((train.end - train.start) as f64 * share).ceil() as u64;
    (held_out > 0).then(|| train.start..train.end - held_out)
}

/// The samples that the few-shot set is drawn from: the holdout where there is one, or all of train.
pub fn few_shot_range(ctx: &RunContext, dataset: &Dataset) -> Range<u64> {
    let train = dataset.split(Split::Train);
    before_holdout(ctx, dataset).map_or(train.clone(), |early| early.end..train.end)
}

/// What the CRMs read of samples.
pub struct CrmInputs<'a> {
    dataset: &'a Dataset,
    neighbours: Neighbours,
    counters: ChunkStore,
    told: ReadByCrm,
}

/// What the CRM of a run is told beside the rows of its table.
pub struct ReadByCrm {
    /// Which counters.
    counters: Range<usize>,
    /// Vectors of the items' texts, where a run has them.
    vectors: Option<ItemEmbeddings>,
    of_target: bool,
    of_history: bool,
}

impl ReadByCrm {
    /// Opens what earlier stages wrote, for a CRM of these settings.
    pub fn of(ctx: &RunContext, config: &CrmConfig) -> Result<Self> {
        Ok(Self {
            counters: read_by(config),
            vectors: retrieve::embeddings(ctx)?,
            of_target: config.item_vectors.contains(&ItemVectors::Input),
            of_history: config.item_vectors.contains(&ItemVectors::Attention),
        })
    }

    /// Adds a sample, shown with the user's interactions at `positions`, of which all `counters` are given.
    pub fn push(
        &self,
        batch: &mut CrmBatch,
        dataset: &Dataset,
        (user, item): (u32, u32),
        positions: &[u32],
        counters: &[f32],
    ) -> Result<()> {
        let vectors = self.vectors.as_ref();
        let vector = vectors.filter(|_| self.of_target).map_or(&[][..], |v| v.row(item));
        // Of length 1: entries of about 1 are what a layer's first weights are made for.
        let scale = (vector.len() as f32).sqrt();
        let vector = vector.iter().map(|value| scale * value);
        let numbers = counters[self.counters.clone()].iter().copied().chain(vector);
        let vectors = vectors.filter(|_| self.of_history);
        let similarity = vectors.map(|v| move |seen| v.similarity(item, seen));
        let similarity = similarity.as_ref().map(|similarity| similarity as &dyn Fn(u32) -> f32);
        batch.push(dataset, (user, item), positions, numbers, similarity)
    }
}

/// What the network of these settings needs to know of a dataset, whose items have vectors of these `dimensions` (0
/// where nothing embeds them). Of one that is not known yet, numbers with which it has the same representations, but
/// for that of fields.
pub fn shape(config: &CrmConfig, dataset: Option<&Dataset>, dimensions: usize) -> CrmShape {
    let reads = |vectors| config.item_vectors.contains(&vectors);
    let of_target = if reads(ItemVectors::Input) { dimensions } else { 0 };
    CrmShape {
        features: dataset.map_or(2, Dataset::num_features),
        fields: dataset.map_or(2, |dataset| dataset.fields().len()),
        item_field: dataset.map_or(1, Dataset::item_field),
        user_field: dataset.map_or(0, Dataset::user_field),
        numbers: read_by(config).len() + of_target,
        similarities: reads(ItemVectors::Attention),
    }
}

impl<'a> CrmInputs<'a> {
    /// Opens what earlier stages wrote, for a CRM of the run's settings.
    pub fn open(ctx: &RunContext, dataset: &'a Dataset) -> Result<Self> {
        Self::of(ctx, &ctx.config.crm, dataset)
    }

    /// The same for a CRM of other settings.
    pub fn of(ctx: &RunContext, config: &CrmConfig, dataset: &'a Dataset) -> Result<Self> {
        Ok(Self {
            dataset,
            neighbours: Neighbours::open(ctx, dataset)?,
            counters: counter_chunks(ctx, dataset).open()?,
            told: ReadByCrm::of(ctx, config)?,
        })
    }

    /// Dimensions of the vectors of items; 0 where there are none.
    pub fn dimensions(&self) -> usize {
        self.told.vectors.as_ref().map_or(0, ItemEmbeddings::dimensions)
    }

    /// All counters of a sample.
    pub fn counters(&self, sample: u64) -> Result<&[f32]> {
        let (shard, row) = located(&self.counters, sample)?;
        let counters = shard.f32("counters")?.get(row * COUNTERS..(row + 1) * COUNTERS);
        counters.ok_or_else(|| damaged(shard, "counters"))
    }

    /// The inputs of samples, and the samples.
    pub fn batch(&self, indices: impl Iterator<Item = u64>) -> Result<(CrmBatch, Vec<Sample>)> {
        let (mut batch, mut samples) = (CrmBatch::default(), Vec::new());
        timed(Phase::Data, || {
            for index in indices {
                let sample = self.dataset.sample(index)?;
                let (counters, positions) = (self.counters(index)?, self.neighbours.crm(index)?);
                let pair = (sample.user, sample.item);
                self.told.push(&mut batch, self.dataset, pair, positions, counters)?;
                samples.push(sample);
            }
            Ok((batch, samples))
        })
    }
}

/// The CRMs of a run.
#[derive(Debug)]
pub struct Crms {
    /// That of all of train, whose logit is the CRM's score.
    pub full: TrainedCrm,
    /// That of train without the holdout, in runs that have one.
    pub early: Option<TrainedCrm>,
}

impl Crms {
    /// Opens what `pretrain` wrote.
    pub fn open(ctx: &RunContext) -> Result<Self> {
        let open = |file| {
            let path = ctx.path(Stage::Pretrain).join(file);
            TrainedCrm::open(&path, ctx.config.crm.representation)
        };
        let early = (ctx.config.crm.holdout > 0.0).then(|| open(artifacts::EARLY_CRM));
        Ok(Self { full: open(artifacts::CRM)?, early: early.transpose()? })
    }

    /// What both say of samples.
    pub fn score(&self, ws: &mut Workspace, inputs: &[CrmInput<'_>]) -> CrmScores {
        let score = |ws: &mut _, crm: &TrainedCrm| crm.crm().score(crm.parameters(), ws, inputs);
        let (logits, representations) = score(ws, &self.full);
        let Some(early) = &self.early else {
            return CrmScores { logits, early_logits: Vec::new(), representations };
        };
        let (early_logits, representations) = score(ws, early);
        CrmScores { logits, early_logits, representations }
    }

    /// Width of a representation.
    pub fn representation_dim(&self) -> usize {
        self.full.crm().representation_dim()
    }
}

/// The settings of the CRM that reads no vectors of items; `None` in runs whose CRM reads none.
pub fn without_vectors(config: &CrmConfig) -> Option<CrmConfig> {
    let plain = CrmConfig { item_vectors: Vec::new(), ..config.clone() };
    (!config.item_vectors.is_empty()).then_some(plain)
}

/// The CRM that reads no vectors of items, by which the run's CRM shows what it has of them.
pub struct WithoutVectors<'a> {
    inputs: CrmInputs<'a>,
    crm: TrainedCrm,
}

impl<'a> WithoutVectors<'a> {
    /// Opens what `pretrain` wrote; `None` in runs whose CRM reads no vectors.
    pub fn open(ctx: &RunContext, dataset: &'a Dataset) -> Result<Option<Self>> {
        let Some(config) = without_vectors(&ctx.config.crm) else { return Ok(None) };
        let path = ctx.path(Stage::Pretrain).join(artifacts::CRM_NO_VECTORS);
        let crm = TrainedCrm::open(&path, config.representation)?;
        Ok(Some(Self { inputs: CrmInputs::of(ctx, &config, dataset)?, crm }))
    }

    /// The logits of samples.
    pub fn logits(&self, samples: &[Sample]) -> Result<Vec<f32>> {
        let blocks = samples.par_chunks(BLOCK).map_init(Workspace::default, |ws, block| {
            let (batch, _) = self.inputs.batch(block.iter().map(|sample| sample.index))?;
            let crm = self.crm.crm();
            Ok(crm.score(self.crm.parameters(), ws, &batch.inputs()).0)
        });
        Ok(blocks.collect::<Result<Vec<_>>>()?.concat())
    }
}

/// What the CRMs say of some samples.
#[derive(Debug)]
pub struct CrmScores {
    /// Of the CRM of all of train.
    pub logits: Vec<f32>,
    /// Of that without the holdout; empty in runs without one.
    pub early_logits: Vec<f32>,
    /// What the gates read, `[samples, dim]`: of the CRM without the holdout where there is one, which no sample's
    /// label has reached that the gates are tuned on.
    pub representations: Vec<f32>,
}

/// The line that brings a logit of the CRM of train without the holdout to the scale of that of all of train, which is
/// the offset of the score at valid and test. Both are calibrated on valid, which neither has seen; so no label of a
/// few-shot sample is in its offset.
///
/// # Errors
/// A CRM whose logits say nothing of valid.
pub fn early_to_full(dataset: &Dataset, lens: &Lens) -> Result<Platt> {
    let fit = |logit: &dyn Fn(u64) -> Result<f32>| {
        let sample = |index| Ok((logit(index)?, dataset.sample(index)?.label));
        let samples: Result<Vec<_>> = dataset.split(Split::Valid).map(sample).collect();
        Ok::<_, TrainerError>(Platt::fit(&samples?))
    };
    let (early, full) = (fit(&|index| lens.early_logit(index))?, fit(&|index| lens.logit(index))?);
    let to_logit = full.inverse().ok_or_else(|| {
        let what = "the CRM's logits do not rise with what is liked in valid, so there is nothing to \
                    start from; train it better, or set it to \"none\"";
        TrainerError::config("tune.prior", what)
    })?;
    Ok(early.then(to_logit))
}
