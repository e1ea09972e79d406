//! `few2many`: the frozen CRM over the full data; a representation and a logit per sample.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;
use reclora_comm::Communicator;

use super::folds::Crms;
use super::inputs::{Neighbours, crm_batch, dataset, lens_chunks};
use super::pretrain::BLOCK;
use super::{Counts, RunContext};
use crate::crm::Workspace;
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
    let crms = Crms::open(ctx, &dataset)?;
    let dim = crms.representation_dim();
    lens_chunks(ctx, &dataset).run("score all data", comm, progress, |range| {
        // Blocks are fixed too, so that no matrix product depends on ranks or threads.
        let blocks: Vec<Range<u64>> = range
            .clone()
            .step_by(BLOCK)
            .map(|start| start..(start + BLOCK as u64).min(range.end))
            .collect();
        let scored = blocks.into_par_iter().map_init(Workspace::default, |ws, block| {
            let count = (block.end - block.start) as usize;
            let (mut logits, mut representations) = (vec![0.0; count], vec![0.0; count * dim]);
            for (crm, own) in crms.shares(&block).filter(|(_, own)| !own.is_empty()) {
                let indices = own.iter().map(|(_, index)| *index);
                let (batch, _) = crm_batch(&dataset, &neighbours, indices)?;
                let (scores, rows) = crm.din().score(crm.parameters(), ws, &batch.inputs());
                let scored = scores.iter().zip(rows.chunks_exact(dim));
                for ((place, _), (score, row)) in own.iter().zip(scored) {
                    logits[*place] = *score;
                    representations[place * dim..(place + 1) * dim].copy_from_slice(row);
                }
            }
            Ok((block, logits, representations))
        });
        let (mut keys, mut labels) = (Vec::new(), Vec::new());
        let (mut logits, mut representations) = (Vec::new(), Vec::new());
        for (block, block_logits, rows) in scored.collect::<Result<Vec<_>>>()? {
            for index in block {
                keys.push(index);
                labels.push(u8::from(dataset.sample(index)?.label));
            }
            logits.extend(block_logits);
            representations.extend(rows.into_iter().map(|value| f16::from_f32(value).to_bits()));
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
        ("representation_dim".to_owned(), dim as u64),
    ]
    .into())
}
