//! What a config means at a number of ranks, computed without running anything.

use reclora_comm::Wire;
use reclora_storage::dataset::{Dataset, Split};
use serde::Serialize;

use super::crms::shape;
use super::draw::Drawn;
use super::{RunContext, Stage, finished, inputs};
use crate::adapter::AdapterLayout;
use crate::backbone::{self, BackboneConfig, Projection, WeightType};
use crate::config::{Config, EmbeddingSharding};
use crate::crm::Crm;
use crate::error::Result;

/// Bytes of a number in f32.
const F32: u64 = size_of::<f32>() as u64;

/// A run to be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Ranks.
    pub world_size: usize,
    /// The frozen LLM.
    pub backbone: Frozen,
    /// Training the CRM; unknown until `prepare` has counted users and items.
    pub pretrain: Option<Training>,
    /// Tuning one adapter (plain LoRA beside it is smaller).
    pub tune: Training,
    /// Samples of the whole data and of the test set, where `prepare` has counted them.
    pub samples: Option<Samples>,
}

/// Weights that are not trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Frozen {
    /// Weights.
    pub parameters: u64,
    /// Bytes in memory. Matrices that the files hold in this type are mapped: ranks of a machine share them.
    pub bytes: u64,
}

/// Training something on all ranks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Training {
    /// Trained parameters.
    pub parameters: u64,
    /// Bytes of a rank for parameters, AdamW's two moments, and a gradient for each of its threads, at most.
    pub bytes_per_rank: u64,
    /// Optimizer steps, unless the patience ends them earlier; of the CRM of all of train.
    pub steps: u64,
    /// Samples of each step.
    pub global_batch: u64,
    /// Bytes of the gradient that each rank sends in a step, the rows of a table left out.
    pub sent_per_step: u64,
    /// The same of all steps.
    pub sent: u64,
    /// Seconds that the stage took in this run directory, if it was done there.
    pub measured_seconds: Option<f64>,
}

/// Counts of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Samples {
    /// Scored by few2many.
    pub all: u64,
    /// Trained on by pretrain.
    pub train: u64,
    /// The test set.
    pub test: u64,
    /// Those of it that evaluate scores.
    pub evaluated: u64,
}

/// Computes a run.
///
/// # Errors
/// A setting that can't work, or a backbone or dataset that can't be read.
pub fn forecast(ctx: &RunContext, world_size: usize, threads: usize) -> Result<Forecast> {
    ctx.config.validate(world_size)?;
    let config = &ctx.config;
    // The files say whether the head is the embedding.
    let backbone = backbone::check(&config.backbone.path, config.backbone.weights)?.config;
    let dataset = match ctx.path(Stage::Prepare).exists() {
        true => Some(inputs::dataset(ctx)?),
        false => None,
    };
    let crm = crm(config, &backbone, dataset.as_ref())?;
    let layout = AdapterLayout::new(&backbone, &config.adapter, crm.representation_dim())?;
    let samples = dataset.as_ref().map(|dataset| Samples {
        all: dataset.num_samples(),
        train: dataset.split(Split::Train).end - dataset.split(Split::Train).start,
        test: dataset.split(Split::Test).end - dataset.split(Split::Test).start,
        evaluated: {
            let (split, of) = (dataset.split(Split::Test), &config.evaluate);
            Drawn::limited(split, of.limit, of.limit_order, config.seed).len()
        },
    });
    let context = Context { ctx, world_size, threads };
    let tune = context.training(
        Stage::Tune,
        layout.num_parameters() as u64,
        0,
        (config.tune.few_shot as u64, config.tune.global_batch as u64, config.tune.epochs as u64),
    )?;
    let pretrain = samples.map(|samples| {
        let table = (crm.table().rows * crm.table().width) as u64;
        let settings = &config.crm;
        let work = (samples.train, settings.batch_size as u64, settings.epochs as u64);
        context.training(Stage::Pretrain, crm.num_parameters() as u64, table, work)
    });
    Ok(Forecast {
        world_size,
        backbone: frozen(&backbone, config.backbone.weights),
        pretrain: pretrain.transpose()?,
        tune,
        samples,
    })
}

/// The CRM of a dataset, or of one that is not known yet: the width of its representation does not depend
/// on the data, but for the number of fields.
pub(super) fn crm(
    config: &Config,
    backbone: &BackboneConfig,
    dataset: Option<&Dataset>,
) -> Result<Crm> {
    let dimensions = backbone.hidden_size.min(config.retrieve.pca_dimensions);
    Crm::new(&config.crm, shape(&config.crm, dataset, dimensions))
}

struct Context<'a> {
    ctx: &'a RunContext,
    world_size: usize,
    threads: usize,
}

impl Context<'_> {
    /// Of `parameters`, the first `table` of which are the rows of a table; `work` is the number of samples,
    /// those of a step, and epochs.
    fn training(
        &self,
        stage: Stage,
        parameters: u64,
        table: u64,
        (samples, global_batch, epochs): (u64, u64, u64),
    ) -> Result<Training> {
        let runtime = &self.ctx.config.runtime;
        let shards = match runtime.embedding_sharding {
            EmbeddingSharding::RowWise => self.world_size as u64,
            EmbeddingSharding::DataParallel => 1,
        };
        let dense = parameters - table;
        let held = dense + table.div_ceil(shards);
        let steps = epochs * samples.div_ceil(global_batch.max(1));
        let ranks = self.world_size as u64;
        // Each rank sends its pieces to their ranks, and the sum of its own to all.
        let value = match runtime.gradient_wire {
            Wire::F32 => F32,
            Wire::Bf16 => F32 / 2,
        };
        let sent_per_step = 2 * (ranks - 1) * (dense * value) / ranks;
        let manifest = finished(self.ctx, stage).manifest()?;
        Ok(Training {
            parameters,
            bytes_per_rank: F32 * (3 * held + dense * self.threads as u64),
            steps,
            global_batch,
            sent_per_step,
            sent: sent_per_step * steps,
            measured_seconds: manifest.map(|manifest| manifest.seconds),
        })
    }
}

fn frozen(config: &BackboneConfig, weights: WeightType) -> Frozen {
    let (hidden, vocab) = (config.hidden_size as u64, config.vocab_size as u64);
    let in_block = |layer: usize| -> u64 {
        let shapes = Projection::ALL.map(|projection| config.projection(layer, projection));
        shapes.iter().map(|[outputs, inputs]| (outputs * inputs) as u64).sum()
    };
    let blocks: u64 = (0..config.num_layers()).map(in_block).sum();
    let tables = if config.tie_word_embeddings { 1 } else { 2 };
    let matrices = blocks + tables * vocab * hidden;
    let norms = (2 * config.num_layers() as u64 + 1) * hidden;
    let bytes = match weights {
        WeightType::F32 => matrices * F32,
        WeightType::Bf16 => matrices * F32 / 2,
        // Blocks of 32 numbers with a scale in f16.
        WeightType::Q8_0 => matrices / 32 * 34,
    };
    Frozen { parameters: matrices + norms, bytes: bytes + norms * F32 }
}
