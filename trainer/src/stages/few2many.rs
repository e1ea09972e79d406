//! `few2many`: the frozen CRM over the full data; a representation and a logit per sample.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::dataset::Dataset;
use serde_json::json;

use super::folds::Crms;
use super::inputs::{Neighbours, crm_batch, dataset, lens_chunks};
use super::pretrain::BLOCK;
use super::{Counts, Description, RunContext, Stage};
use crate::crm::{CrmBatch, TrainedCrm, Workspace};
use crate::error::{Result, TrainerError};
use crate::scoring::chunks::Values;
use crate::telemetry::progress::Progress;

pub(super) const STAGE: Description = Description {
    name: "few2many",
    directory: "lens",
    what: "score all data with the recommendation model",
    reads: &[Stage::Prepare, Stage::Retrieve, Stage::Pretrain],
    settings: |config| Ok(json!([config.crm.representation])),
    run,
    ..Description::BASE
};

fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let dataset = dataset(ctx)?;
    let neighbours = Neighbours::open(ctx, &dataset)?;
    let crms = Crms::open(ctx, &dataset)?;
    let dim = crms.representation_dim();
    let read = |range: Range<u64>| -> Result<Vec<Block<'_>>> {
        // Blocks are fixed too, so that no matrix product depends on ranks or threads.
        let blocks: Vec<Range<u64>> = range
            .clone()
            .step_by(BLOCK)
            .map(|start| start..(start + BLOCK as u64).min(range.end))
            .collect();
        blocks.into_par_iter().map(|rows| Block::read(&dataset, &neighbours, &crms, rows)).collect()
    };
    let chunks = lens_chunks(ctx, &dataset).only(ctx.part);
    chunks.run("score all data", comm, progress, read, |range, blocks| {
        let scored = blocks.par_iter().map_init(Workspace::default, |ws, b| b.score(ws, dim));
        let scored: Vec<(Vec<f32>, Vec<u16>)> = scored.collect();
        let labels = blocks.into_iter().flat_map(|block| block.labels).collect();
        let (logits, representations): (Vec<_>, Vec<_>) = scored.into_iter().unzip();
        let (logits, representations) = (logits.concat(), representations.concat());
        if representations.iter().any(|&bits| !f16::from_bits(bits).is_finite()) {
            return Err(TrainerError::NotFinite {
                what: format!("a CRM representation of samples {range:?}, in half precision"),
                hint: "train the CRM with weight decay or a lower learning rate".into(),
            });
        }
        Ok(vec![
            ("key", Values::U64(range.collect())),
            ("representation", Values::U16(representations)),
            ("logit", Values::F32(logits)),
            ("label", Values::U8(labels)),
        ])
    })?;
    Ok([
        ("samples".to_owned(), dataset.num_samples()),
        ("representation_dim".to_owned(), dim as u64),
    ]
    .into())
}

/// Samples that are scored together.
struct Block<'a> {
    labels: Vec<u8>,
    /// Each CRM with those of the samples that it scores, and their places in the block.
    shares: Vec<(&'a TrainedCrm, Vec<usize>, CrmBatch)>,
}

impl<'a> Block<'a> {
    fn read(
        dataset: &Dataset,
        neighbours: &Neighbours,
        crms: &'a Crms,
        rows: Range<u64>,
    ) -> Result<Self> {
        let mut labels = vec![0; (rows.end - rows.start) as usize];
        let mut shares = Vec::new();
        for (crm, own) in crms.shares(&rows).filter(|(_, own)| !own.is_empty()) {
            let (places, indices): (Vec<usize>, Vec<u64>) = own.into_iter().unzip();
            let (batch, samples) = crm_batch(dataset, neighbours, indices.into_iter())?;
            for (place, sample) in places.iter().zip(samples) {
                labels[*place] = u8::from(sample.label);
            }
            shares.push((crm, places, batch));
        }
        Ok(Self { labels, shares })
    }

    /// Each sample's logit, and its representation `[dim]` as bits of f16.
    fn score(&self, ws: &mut Workspace, dim: usize) -> (Vec<f32>, Vec<u16>) {
        let count = self.labels.len();
        let (mut logits, mut representations) = (vec![0.0; count], vec![0; count * dim]);
        for (crm, places, batch) in &self.shares {
            let (scores, rows) = crm.crm().score(crm.parameters(), ws, &batch.inputs());
            for ((place, score), row) in places.iter().zip(scores).zip(rows.chunks_exact(dim)) {
                logits[*place] = score;
                let own = &mut representations[place * dim..(place + 1) * dim];
                own.iter_mut().zip(row).for_each(|(bits, v)| *bits = f16::from_f32(*v).to_bits());
            }
        }
        (logits, representations)
    }
}
