//! `embed`: every item's text through the frozen backbone, mean-pooled, then PCA.

use std::ops::Range;

use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::dataset::Dataset;
use serde_json::json;

use super::inputs::dataset;
use super::{Counts, Description, RunContext, Stage, artifacts};
use crate::config::Order;
use crate::engine::{self, Prompt, Read};
use crate::error::{Result, TrainerError};
use crate::prompt::PromptTemplate;
use crate::retriever::ItemEmbeddings;
use crate::scoring::chunks::{Chunks, PARTS, Values};
use crate::telemetry::progress::{Event, Progress};
use crate::tokenizer::Tokenizer;

const CHUNK: u64 = 256;

pub(super) const STAGE: Description = Description {
    name: "embed",
    directory: "items",
    what: "embed item texts with the frozen backbone",
    reads: &[Stage::Prepare],
    reads_backbone: true,
    // Nothing reads the vectors of items where only the last ones are shown, but a CRM that is told to.
    is_needed: |config| {
        let shown = [config.retrieve.text_order, config.retrieve.crm_order];
        shown.iter().any(|order| *order != Order::Recent) || !config.crm.item_vectors.is_empty()
    },
    settings: |config| {
        let template = PromptTemplate::open(&config.prompt.template)?;
        Ok(json!([config.retrieve.pca_dimensions, template.item_source()?]))
    },
    run,
    ..Description::BASE
};

fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let dataset = dataset(ctx)?;
    require_texts(dataset.item_text_columns())?;
    let template = PromptTemplate::load(&ctx.config.prompt.template, &dataset)?;
    let (llm, notes) = engine::load_with_notes(&ctx.config)?;
    let tokenizer = Tokenizer::load(&ctx.config.backbone.path)?;
    if comm.rank() == 0 {
        for text in notes {
            progress.emit(Event::Message { text });
        }
    }
    let model = llm.adapted(None)?;
    let limit = llm.config().max_position_embeddings;
    let dir = ctx.path(Stage::Embed);
    let items = dataset.num_items() as u64;
    let chunks = Chunks::new(&dir.join(PARTS), "states", 0..items, CHUNK);
    let read = |range: Range<u64>| -> Result<Vec<Vec<u32>>> {
        let tokens = range.into_par_iter().map(|item| {
            let mut tokens = tokenizer.encode(&text_of(&dataset, item as u32, &template)?)?;
            tokens.truncate(limit);
            Ok(tokens)
        });
        tokens.collect()
    };
    chunks.run_telling("embed items", 1, comm, progress, read, |_, tokens, within| {
        let prompts = tokens.iter().map(|tokens| Prompt { tokens, representation: &[] });
        let told = |count| within.passed(count);
        let states = model.score(&prompts.collect::<Vec<_>>(), Read::HiddenMean, &told)?;
        Ok(vec![("states", Values::F32(states.concat()))])
    })?;
    if comm.rank() == 0 {
        let mut rows = Vec::new();
        for shard in chunks.open()?.shards() {
            rows.extend_from_slice(shard.f32("states")?);
        }
        let hidden = llm.config().hidden_size;
        ItemEmbeddings::from_states(&rows, hidden, ctx.config.retrieve.pca_dimensions)?
            .save(&dir.join(artifacts::EMBEDDINGS))?;
    }
    Ok([("items".to_owned(), items)].into())
}

/// Without words there is nothing to embed.
pub fn require_texts(columns: &[String]) -> Result<()> {
    if columns.is_empty() {
        let what =
            "no text says anything of an item, so there is nothing to embed; name its columns";
        return Err(TrainerError::config("data.columns.item_texts", what));
    }
    Ok(())
}

/// What an item is embedded as.
fn text_of(dataset: &Dataset, item: u32, template: &PromptTemplate) -> Result<String> {
    let columns = dataset.item_text_columns().iter();
    let text = |name| dataset.item_text(item, name).unwrap_or_default();
    let columns: Vec<(&str, &str)> = columns.map(|name| (name.as_str(), text(name))).collect();
    template.item(&columns)
}
