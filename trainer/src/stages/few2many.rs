//! `few2many`: the frozen CRM over the full data; a representation and a logit per sample.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::dataset::Sample;
use serde_json::json;

use super::crms::{BLOCK, CrmInputs, CrmScores, Crms};
use super::inputs::{dataset, lens_chunks};
use super::{Counts, Description, RunContext, Stage};
use crate::crm::{CrmBatch, Workspace};
use crate::error::{Result, TrainerError};
use crate::scoring::chunks::Values;
use crate::telemetry::progress::Progress;

pub(super) const STAGE: Description = Description {
    name: "few2many",
    directory: "lens",
    what: "score all data with the recommendation model",
    reads: &[Stage::Prepare, Stage::Retrieve, Stage::Count, Stage::Pretrain],
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
    let inputs = CrmInputs::open(ctx, &dataset)?;
    let crms = Crms::open(ctx)?;
    let read = |range: Range<u64>| -> Result<Vec<(CrmBatch, Vec<Sample>)>> {
        // Blocks are fixed too, so that no matrix product depends on ranks or threads.
        let blocks: Vec<Range<u64>> = range
            .clone()
            .step_by(BLOCK)
            .map(|start| start..(start + BLOCK as u64).min(range.end))
            .collect();
        blocks.into_par_iter().map(|rows| inputs.batch(rows)).collect()
    };
    let chunks = lens_chunks(ctx, &dataset).only(ctx.part);
    chunks.run("score all data", comm, progress, read, |range, blocks| {
        let score = |ws: &mut Workspace, (batch, _): &(CrmBatch, _)| {
            let CrmScores { logits, early_logits, representations } =
                crms.score(ws, &batch.inputs());
            let half = |value: &f32| f16::from_f32(*value).to_bits();
            (logits, early_logits, representations.iter().map(half).collect::<Vec<u16>>())
        };
        let scored: Vec<_> = blocks.par_iter().map_init(Workspace::default, score).collect();
        let samples = blocks.iter().flat_map(|(_, samples)| samples);
        let labels = samples.map(|sample| u8::from(sample.label)).collect();
        let representations: Vec<u16> = scored.iter().flat_map(|s| &s.2).copied().collect();
        if representations.iter().any(|&bits| !f16::from_bits(bits).is_finite()) {
            return Err(TrainerError::NotFinite {
                what: format!("a CRM representation of samples {range:?}, in half precision"),
                hint: "train the CRM with weight decay or a lower learning rate".into(),
            });
        }
        let mut columns = vec![
            ("key", Values::U64(range.collect())),
            ("representation", Values::U16(representations)),
            ("logit", Values::F32(scored.iter().flat_map(|s| &s.0).copied().collect())),
            ("label", Values::U8(labels)),
        ];
        if crms.early.is_some() {
            let logits = scored.iter().flat_map(|s| &s.1).copied().collect();
            columns.push(("early_logit", Values::F32(logits)));
        }
        Ok(columns)
    })?;
    Ok([
        ("samples".to_owned(), dataset.num_samples()),
        ("representation_dim".to_owned(), crms.representation_dim() as u64),
    ]
    .into())
}
