//! `export`: adapters for other programs. The bank of experts with its gates, and for single users and
//! items the mixed adapter as a Hugging Face PEFT directory.

use std::path::{Path, PathBuf};

use reclora_comm::Communicator;
use reclora_storage::atomic::create_dir_all;
use reclora_storage::dataset::Dataset;
use serde_json::json;

use super::pair::Pair;
use super::text::{Adapters, TextInputs, deciding_logits};
use super::{Counts, RunContext, Stage, require, tune, write_json};
use crate::adapter::Adapter;
use crate::error::{Result, TrainerError};
use crate::model::Prompt;
use crate::progress::{Event, Progress};

/// The bank of experts and its gates.
const BANK: &str = "bank.safetensors";
/// A trained head, which PEFT's format of a LoRA has no place for.
const HEAD: &str = "head.safetensors";
/// A prompt's tokens and the logits after it: what the adapter should give elsewhere.
const EXAMPLE: &str = "example.json";

pub fn run(
    ctx: &RunContext,
    _comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let exporter = Exporter::open(ctx)?;
    let dir = ctx.path(Stage::Export);
    let dataset = &exporter.text.dataset;
    let mut pairs = Vec::new();
    for pair in &ctx.config.export.pairs {
        let (user, item) = pair.split_once(':').unwrap_or((pair, ""));
        pairs.push(Pair::find(ctx, dataset, user, item)?);
    }
    let per_token = exporter.adapters.reclora.layout().is_per_token();
    if pairs.is_empty() {
        pairs.push(Pair::first_test_sample(ctx, dataset)?);
    }
    exporter.adapters.reclora.save(&dir.join(BANK))?;
    // No ordinary LoRA equals an adapter of tokens' mixtures.
    let personal = if per_token { &[] } else { &pairs[..] };
    for pair in personal {
        exporter.write(&exporter.adapters.reclora, pair, &dir.join(directory_of(dataset, pair)))?;
    }
    if let (Some(lora), Some(pair)) = (&exporter.adapters.lora, pairs.first()) {
        exporter.write(lora, pair, &dir.join(tune::PLAIN))?;
    }
    let why = if per_token { " (adapter.gate = \"token\" mixes per token)" } else { "" };
    let text = format!("{} mixed adapters in {}{why}", personal.len(), dir.display());
    progress.emit(Event::Message { text });
    Ok([("pairs".to_owned(), personal.len() as u64)].into())
}

/// Raw ids may hold characters that no directory should.
fn directory_of(dataset: &Dataset, pair: &Pair) -> String {
    let safe = |id: &str| {
        let keep = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        id.chars().map(|c| if keep(c) { c } else { '_' }).collect::<String>()
    };
    let (user, item) = (dataset.user_key(pair.user), dataset.item_key(pair.item));
    format!("user_{}_item_{}", safe(user), safe(item))
}

/// Writes the adapter mixed for raw ids `user` and `item` as a PEFT directory at `out`.
///
/// # Errors
/// The run has not been tuned, the user or item is not in its data, or `out` holds something else.
pub fn export_pair(ctx: &RunContext, user: &str, item: &str, out: &Path) -> Result<()> {
    require(ctx)?;
    refuse_foreign(out)?;
    let exporter = Exporter::open(ctx)?;
    let pair = Pair::find(ctx, &exporter.text.dataset, user, item)?;
    exporter.write(&exporter.adapters.reclora, &pair, out)
}

/// Nothing of the user's is overwritten: only an absent, empty or earlier exported directory is used.
fn refuse_foreign(out: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(out) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(TrainerError::file(out, format!("can't be used ({error})"))),
    };
    if entries.count() > 0 && !out.join(EXAMPLE).is_file() {
        let what = "holds files that are not an exported adapter; choose an empty directory";
        return Err(TrainerError::file(out, what));
    }
    Ok(())
}

struct Exporter {
    text: TextInputs,
    adapters: Adapters,
    backbone: PathBuf,
}

impl Exporter {
    fn open(ctx: &RunContext) -> Result<Self> {
        let text = TextInputs::open(ctx)?;
        let adapters = Adapters::open(ctx, text.llm.config())?;
        Ok(Self { text, adapters, backbone: ctx.config.backbone.path.clone() })
    }

    fn write(&self, adapter: &Adapter, pair: &Pair, dir: &Path) -> Result<()> {
        create_dir_all(dir)?;
        adapter.save_peft(&pair.representation, &self.backbone.to_string_lossy(), dir)?;
        let prompts = self.text.prompts()?;
        let encoded = prompts.build(pair.user, pair.item, &pair.text)?;
        let tokens = &encoded.tokens;
        let prompt = Prompt { tokens, representation: &pair.representation };
        let model = self.text.llm.adapted(adapter)?;
        let logits = model.logits(&[prompt], None)?.concat();
        let deciding = prompts.answers().deciding();
        let [no, yes] = deciding;
        let mut example = json!({
            "user": self.text.dataset.user_key(pair.user),
            "item": self.text.dataset.item_key(pair.item),
            "prompt": encoded.text,
            "tokens": tokens,
            "no_token": no,
            "yes_token": yes,
            "logits": logits,
        });
        if adapter.save_head(&dir.join(HEAD))? {
            let answers = deciding_logits(&model, &[prompt], deciding)?.concat();
            example["answer_logits"] = json!(answers);
        }
        write_json(&dir.join(EXAMPLE), &example)
    }
}
