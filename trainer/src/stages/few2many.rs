//! `few2many`: the frozen CRM over the full data; a representation and a logit per sample.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;
use reclora_comm::Communicator;

use super::inputs::{Neighbours, crm_batch, dataset, lens_chunks};
use super::pretrain::{BLOCK, FILE};
use super::{Counts, RunContext, Stage};
use crate::crm::{Din, Workspace};
use crate::distributed::chunks::Values;
use crate::error::{Result, TrainerError};
use crate::progress::Progress;

pub fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let dataset = dataset(ctx)?;
    let neighbours = Neighbours::open(ctx, &dataset)?;
    let (din, parameters) = Din::load(&ctx.path(Stage::Pretrain).join(FILE))?;
    lens_chunks(ctx, &dataset).run("score all data", comm, progress, |range| {
        // Blocks are fixed too, so that no matrix product depends on ranks or threads.
        let blocks: Vec<Range<u64>> = range
            .clone()
            .step_by(BLOCK)
            .map(|start| start..(start + BLOCK as u64).min(range.end))
            .collect();
        let scored = blocks.into_par_iter().map_init(Workspace::default, |ws, block| {
            let (batch, samples) = crm_batch(&dataset, &neighbours, block)?;
            let (logits, representations) = din.score(&parameters, ws, &batch.inputs());
            Ok((samples, logits, representations))
        });
        let (mut keys, mut labels) = (Vec::new(), Vec::new());
        let (mut logits, mut representations) = (Vec::new(), Vec::new());
        for (samples, block_logits, block) in scored.collect::<Result<Vec<_>>>()? {
            keys.extend(samples.iter().map(|sample| sample.index));
            labels.extend(samples.iter().map(|sample| u8::from(sample.label)));
            logits.extend(block_logits);
            representations.extend(block.into_iter().map(|value| f16::from_f32(value).to_bits()));
        }
        if representations.iter().any(|&bits| !f16::from_bits(bits).is_finite()) {
            return Err(TrainerError::NotFinite {
                what: format!("a CRM representation of samples {range:?}, in half precision"),
                hint: "train the CRM with weight decay or a lower learning rate".into(),
            });
        }
        Ok(vec![
            ("key", Values::U64(keys)),
            ("representation", Values::U16(representations)),
            ("logit", Values::F32(logits)),
            ("label", Values::U8(labels)),
        ])
    })?;
    Ok([
        ("samples".to_owned(), dataset.num_samples()),
        ("representation_dim".to_owned(), din.representation_dim() as u64),
    ]
    .into())
}
