//! `retrieve`: for every sample, the history positions that the LLM and the CRM are shown.

use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::dataset::{Dataset, Sample};
use serde_json::json;

use super::inputs::{dataset, neighbour_chunks, samples};
use super::{Counts, Description, RunContext, Stage, artifacts};
use crate::config::RetrieveConfig;
use crate::error::Result;
use crate::retriever::{ItemEmbeddings, Shown, TARGETS, Target, Workspace, top_k};
use crate::scoring::chunks::Values;
use crate::telemetry::progress::Progress;

/// What is shown to the LLM, and to the CRM.
fn shown(config: &RetrieveConfig) -> [Shown; 2] {
    [
        Shown { k: config.text_k, order: config.text_order },
        Shown { k: config.crm_k, order: config.crm_order },
    ]
}

/// What a pair of user and item is shown with, before `position`: positions for the LLM, and for the CRM.
pub fn positions(
    config: &RetrieveConfig,
    embeddings: Option<&ItemEmbeddings>,
    dataset: &Dataset,
    user: u32,
    position: u32,
    item: u32,
) -> [Vec<u32>; 2] {
    let history = dataset.history(user, position).items;
    let target = Target { position: history.len() as u32, item };
    top_k(embeddings, history, &[target], shown(config), &mut Workspace::default())
}

/// The item vectors of a run; `None` where it needs none.
pub fn embeddings(ctx: &RunContext) -> Result<Option<ItemEmbeddings>> {
    let path = ctx.path(Stage::Embed).join(artifacts::EMBEDDINGS);
    Stage::Embed.is_needed(&ctx.config).then(|| ItemEmbeddings::load(&path)).transpose()
}

pub(super) const STAGE: Description = Description {
    name: "retrieve",
    directory: "neighbours",
    what: "choose the history each sample is shown with",
    reads: &[Stage::Prepare, Stage::Embed],
    settings: |config| Ok(json!([config.retrieve])),
    run,
    ..Description::BASE
};

fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let dataset = dataset(ctx)?;
    let embeddings = embeddings(ctx)?;
    let shown = shown(&ctx.config.retrieve);
    let read = |range| samples(&dataset, range);
    neighbour_chunks(ctx, &dataset).run("retrieve", comm, progress, read, |_, samples| {
        // A user's samples together: their histories are read once.
        let mut places: Vec<usize> = (0..samples.len()).collect();
        places.par_sort_unstable_by_key(|place| (samples[*place].user, samples[*place].position));
        let of_users = places.chunk_by(|a, b| samples[*a].user == samples[*b].user);
        let blocks: Vec<&[usize]> = of_users.flat_map(|places| places.chunks(TARGETS)).collect();
        let found = blocks.par_iter().map_init(Workspace::default, |ws, places| {
            let targets = places.iter().map(|place| {
                let Sample { position, item, .. } = samples[*place];
                Target { position, item }
            });
            let last = &samples[places[places.len() - 1]];
            let history = dataset.history(last.user, last.position).items;
            top_k(embeddings.as_ref(), history, &targets.collect::<Vec<_>>(), shown, ws)
        });
        let found: Vec<[Vec<u32>; 2]> = found.collect();
        let [text, crm] = [0, 1].map(|which| {
            let mut ragged = Ragged::new(samples.iter().map(|s| shown[which].len(s.position)));
            for (places, found) in blocks.iter().zip(&found) {
                let mut found = found[which].as_slice();
                for place in *places {
                    ragged.set(*place, &mut found);
                }
            }
            ragged
        });
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

impl Ragged {
    /// Rows of these lengths.
    fn new(lengths: impl Iterator<Item = usize>) -> Self {
        let mut offsets = vec![0];
        let mut end = 0;
        offsets.extend(lengths.map(|length| {
            end += length as u64;
            end
        }));
        Self { offsets, values: vec![0; end as usize] }
    }

    /// Takes a row's values off the front of `values`.
    fn set(&mut self, row: usize, values: &mut &[u32]) {
        let [start, end] = [row, row + 1].map(|row| self.offsets[row] as usize);
        let (own, rest) = values.split_at(end - start);
        self.values[start..end].copy_from_slice(own);
        *values = rest;
    }
}
