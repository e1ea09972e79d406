//! `export`: adapters for other programs. The bank of experts with its gates, and for single users and
//! items the mixed adapter as a Hugging Face PEFT directory.

use std::path::{Path, PathBuf};

use reclora_comm::Communicator;
use reclora_storage::atomic::{create_dir_all, is_tmp_name, remove_file};
use reclora_storage::dataset::Dataset;
use serde_json::{Value, json};

use super::artifacts::{BANK, EXAMPLE, HEAD};
use super::pair::{Pair, ids};
use super::text::{TextInputs, deciding_logits};
use super::tuned::{Adapters, Tuned};
use super::{Counts, Description, RunContext, Stage, require, write_json};
use crate::adapter::{PEFT_CONFIG, PEFT_MODEL};
use crate::engine::{Prompt, Read};
use crate::error::{Result, TrainerError};
use crate::scoring::sigmoid;
use crate::telemetry::progress::{Event, Progress};

/// All that an export of one user and item may hold.
const FILES: [&str; 4] = [EXAMPLE, HEAD, PEFT_MODEL, PEFT_CONFIG];

pub(super) const STAGE: Description = Description {
    name: "export",
    directory: "export",
    what: "write adapters for other programs",
    // A pair that is no sample is embedded, scored and retrieved for afresh.
    reads: &[
        Stage::Prepare,
        Stage::Embed,
        Stage::Retrieve,
        Stage::Count,
        Stage::Pretrain,
        Stage::Few2many,
        Stage::Tune,
    ],
    reads_backbone: true,
    reads_template: true,
    single_process: true,
    settings: |config| Ok(json!([config.export, config.prompt.max_tokens])),
    run,
    ..Description::BASE
};

fn run(
    ctx: &RunContext,
    _comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let exporter = Exporter::open(ctx)?;
    let dir = ctx.path(Stage::Export);
    let dataset = &exporter.text.dataset;
    let mut pairs = Vec::new();
    for pair in &ctx.config.export.pairs {
        let (user, item) = ids(pair);
        pairs.push(Pair::find(ctx, dataset, user, item)?);
    }
    let per_token = exporter.adapters.reclora.adapter.layout().is_per_token();
    if pairs.is_empty() {
        pairs.push(Pair::first_test_sample(ctx, dataset)?);
    }
    exporter.adapters.reclora.adapter.save(&dir.join(BANK))?;
    // No ordinary LoRA equals an adapter of tokens' mixtures.
    let personal = if per_token { &[] } else { &pairs[..] };
    for pair in personal {
        exporter.write(&exporter.adapters.reclora, pair, &dir.join(directory_of(dataset, pair)))?;
    }
    if let Some(pair) = pairs.first() {
        let write = |lora: &Tuned| exporter.write(lora, pair, &lora.model.directory(&dir));
        exporter.adapters.others.iter().try_for_each(write)?;
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

/// Writes the adapter mixed for raw ids `user` and `item` as a PEFT directory at `out`, in place of one
/// that was exported there before.
///
/// # Errors
/// The run has not been tuned, no ordinary LoRA equals its adapter, the user or item is not in its data,
/// or `out` holds something else.
pub fn export_pair(ctx: &RunContext, user: &str, item: &str, out: &Path) -> Result<()> {
    require(ctx)?;
    refuse_foreign(out)?;
    let exporter = Exporter::open(ctx)?;
    exporter.adapters.reclora.adapter.refuse_per_token()?;
    let pair = Pair::find(ctx, &exporter.text.dataset, user, item)?;
    exporter.write(&exporter.adapters.reclora, &pair, out)
}

/// Nothing of the user's is overwritten: only an absent, empty or earlier exported directory is used.
fn refuse_foreign(out: &Path) -> Result<()> {
    let names = match names(out) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(TrainerError::file(out, format!("can't be used ({error})"))),
    };
    if !names.iter().all(|name| is_leftover(name)) && !out.join(EXAMPLE).is_file() {
        let what = "holds files that are not an exported adapter; choose an empty directory";
        return Err(TrainerError::file(out, what));
    }
    Ok(())
}

fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    std::fs::read_dir(dir)?.map(|entry| entry.map(name)).collect()
}

/// Whether a name is that of a temporary file, left by an export that was killed.
fn is_leftover(name: &str) -> bool {
    is_tmp_name(name) && FILES.iter().any(|file| name.starts_with(file))
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

    /// Everything is computed before a file changes. PEFT's settings are removed first and written last:
    /// a killed export leaves a directory that PEFT refuses, and never the parts of two adapters.
    fn write(&self, tuned: &Tuned, pair: &Pair, dir: &Path) -> Result<()> {
        let (adapter, example) = (&tuned.adapter, self.example(tuned, pair)?);
        create_dir_all(dir)?;
        let unreadable = |error| TrainerError::file(dir, format!("can't be read ({error})"));
        for name in names(dir).map_err(unreadable)?.iter().filter(|name| is_leftover(name)) {
            remove_file(&dir.join(name))?;
        }
        remove_file(&dir.join(PEFT_CONFIG))?;
        write_json(&dir.join(EXAMPLE), &example)?;
        let head = dir.join(HEAD);
        if !adapter.save_head(&head)? {
            remove_file(&head)?;
        }
        adapter.save_peft(&pair.representation, &self.backbone.to_string_lossy(), dir)
    }

    fn example(&self, tuned: &Tuned, pair: &Pair) -> Result<Value> {
        let adapter = &tuned.adapter;
        let prompts = self.text.prompts()?;
        let encoded = prompts.build(pair.user, pair.item, &pair.text, &pair.known)?;
        let tokens = &encoded.tokens;
        let prompt = Prompt { tokens, representation: &pair.representation };
        let model = tuned.adapted(&self.text)?;
        let logits = model.score(&[prompt], Read::Logits(None), &|_| ())?.concat();
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
        if adapter.layout().head().is_some() {
            let answers = deciding_logits(&*model, &[prompt], deciding)?;
            example["answer_logits"] = json!(answers.concat());
            // What scores elsewhere: sigmoid(offset + gain * (r - line[0] - line[1] * offset)), r = yes - no.
            if let (Some(gain), Some(answers)) = (&tuned.gain, answers.first()) {
                example["offset"] = json!(pair.crm_logit);
                example["gain"] = json!(gain.gain);
                example["line"] = json!(gain.line);
                example["probability"] = json!(sigmoid(tuned.logit(pair.crm_logit, *answers)));
            }
        }
        Ok(example)
    }
}
