//! What a run will write, as far as it is known.

use std::path::Path;

use reclora_storage::dataset::Dataset;

use crate::adapter::AdapterLayout;
use crate::backbone::Backbone;
use crate::error::Result;
use crate::stages::{RunContext, Stage, forecast};

/// Bytes of a number in f32, and of one in f16.
const F32: u64 = 4;
const F16: u64 = 2;
/// A checkpoint has parameters and AdamW's two moments.
const CHECKPOINT: u64 = 3;

/// Bytes that a run directory will need beyond what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskForecast {
    /// What stages leave for certain. Before `prepare` that of the data is not known, and not in it.
    pub at_least: u64,
    /// The same with a checkpoint of what is trained.
    pub while_training: u64,
}

/// Computes what `stages` will write; what can't be known counts as nothing.
pub fn disk_forecast(
    ctx: &RunContext,
    stages: &[Stage],
    dataset: Option<&Dataset>,
) -> DiskForecast {
    let mut forecast = DiskForecast::default();
    for stage in stages.iter().filter(|stage| stage.is_needed(&ctx.config)) {
        let (files, trained) = files(ctx, *stage, dataset).unwrap_or_default();
        // What is there is replaced, or continued.
        let there = size(&ctx.path(*stage));
        forecast.at_least += files.saturating_sub(there);
        forecast.while_training += (files + CHECKPOINT * trained).saturating_sub(there);
    }
    forecast
}

/// Bytes of the files that a stage ends with, and of parameters that it trains.
fn files(ctx: &RunContext, stage: Stage, dataset: Option<&Dataset>) -> Result<(u64, u64)> {
    let config = &ctx.config;
    let backbone = Backbone::read_config(&config.backbone.path)?;
    let crm = forecast::crm(config, &backbone, dataset)?;
    let held_out = u64::from(config.crm.holdout > 0.0);
    Ok(match (stage, dataset) {
        (Stage::Embed, Some(dataset)) => {
            let width = backbone.hidden_size.min(config.retrieve.pca_dimensions) as u64;
            (dataset.num_items() as u64 * width * F32, 0)
        }
        (Stage::Pretrain, Some(_)) => {
            let bytes = crm.num_parameters() as u64 * F32;
            (bytes * (1 + held_out), bytes)
        }
        (Stage::Few2many, Some(dataset)) => {
            // Key, label and logits.
            let row = crm.representation_dim() as u64 * F16 + 8 + 1 + F32 * (1 + held_out);
            (dataset.num_samples() * row, 0)
        }
        (Stage::Tune, _) => {
            let (mut files, mut largest) = (0, 0);
            for model in &config.tune.models {
                let adapter = model.adapter(&config.adapter);
                let layout = AdapterLayout::new(&backbone, &adapter, crm.representation_dim())?;
                let bytes = layout.num_parameters() as u64 * F32;
                (files, largest) = (files + bytes, largest.max(bytes));
            }
            (files, largest)
        }
        _ => (0, 0),
    })
}

/// Bytes of all files below a directory.
fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
