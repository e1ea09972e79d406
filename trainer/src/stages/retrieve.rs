//! `retrieve`: for every sample, the history positions that the LLM and the CRM are shown.

use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::dataset::Dataset;

use super::inputs::{dataset, neighbour_chunks};
use super::{Counts, RunContext, Stage, embed};
use crate::config::{Order, RetrieveConfig};
use crate::distributed::chunks::Values;
use crate::error::Result;
use crate::progress::Progress;
use crate::retriever::{ItemEmbeddings, select};

/// What a sample is shown with: positions for the LLM, and for the CRM.
pub fn positions(
    config: &RetrieveConfig,
    embeddings: &ItemEmbeddings,
    dataset: &Dataset,
    user: u32,
    position: u32,
    item: u32,
) -> [Vec<u32>; 2] {
    let history = dataset.history(user, position).items;
    let orders = [(config.text_k, config.text_order), (config.crm_k, config.crm_order)];
    let similarities = if orders.iter().all(|(_, order)| *order == Order::Recent) {
        Vec::new()
    } else {
        embeddings.similarities(history, item)
    };
    orders.map(|(k, order)| select(history.len() as u32, &similarities, k, order))
}

/// The item vectors of a run.
pub fn embeddings(ctx: &RunContext) -> Result<ItemEmbeddings> {
    ItemEmbeddings::load(&ctx.path(Stage::Embed).join(embed::FILE))
}

pub fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let dataset = dataset(ctx)?;
    let embeddings = embeddings(ctx)?;
    let config = &ctx.config.retrieve;
    neighbour_chunks(ctx, &dataset).run("retrieve", comm, progress, |range| {
        let rows: Vec<[Vec<u32>; 2]> = range
            .into_par_iter()
            .map(|index| {
                let sample = dataset.sample(index)?;
                let (user, position, item) = (sample.user, sample.position, sample.item);
                Ok(positions(config, &embeddings, &dataset, user, position, item))
            })
            .collect::<Result<_>>()?;
        let (mut text, mut crm) = (Ragged::default(), Ragged::default());
        for [for_text, for_crm] in &rows {
            text.push(for_text);
            crm.push(for_crm);
        }
        Ok(vec![
            ("text_offsets", Values::U64(text.offsets)),
            ("text_positions", Values::U32(text.values)),
            ("crm_offsets", Values::U64(crm.offsets)),
            ("crm_positions", Values::U32(crm.values)),
        ])
    })?;
    Ok([("samples".to_owned(), dataset.num_samples())].into())
}

/// Rows of different lengths: offsets and values.
struct Ragged {
    offsets: Vec<u64>,
    values: Vec<u32>,
}

impl Default for Ragged {
    fn default() -> Self {
        Self { offsets: vec![0], values: Vec::new() }
    }
}

impl Ragged {
    fn push(&mut self, row: &[u32]) {
        self.values.extend_from_slice(row);
        self.offsets.push(self.values.len() as u64);
    }
}
