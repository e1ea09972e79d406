//! The stages of a run, each a function of (config sections, inputs, seed) to a directory.

mod draw;
mod embed;
mod evaluate;
mod export;
mod few2many;
mod few_shot;
mod folds;
mod forecast;
mod inputs;
mod pair;
mod predict;
mod predictions;
pub mod preflight;
mod prepare;
mod pretrain;
mod retrieve;
mod settings;
#[cfg(test)]
mod tests;
mod text;
mod tune;
mod without_llm;

pub use evaluate::{ScoredOrder, ScoredSamples};
pub use export::export_pair;
pub use forecast::{Forecast, Training, forecast};
pub use predict::{Prediction, predict};
pub use predictions::{Predicted, predictions};
pub use settings::outdated;
pub use without_llm::{SplitMetrics, WithoutLlm, without_llm};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reclora_comm::{Communicator, Reduction, Wire};
use reclora_storage::hash::{xxh3_file, xxh3_hex};
use reclora_storage::manifest::StageDir;
use reclora_storage::raw;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::{Config, Order};
use crate::error::{Result, TrainerError};
pub use crate::scoring::chunks::Part;
use crate::telemetry::progress::Progress;
use inputs::check_scale_of;
use settings::settings_of;

/// Directory in the run directory of the lock under which parts make a stage's directory ready.
const PREPARING: &str = ".preparing";
/// How long another part may take for it.
const PREPARE_WAIT: Duration = Duration::from_secs(60);
/// Raised when a stage writes something else for the same inputs.
const VERSION: u32 = 10;

/// A stage of the pipeline, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Raw files to samples.
    Prepare,
    /// Items to vectors.
    Embed,
    /// Samples to the history they are shown with.
    Retrieve,
    /// The CRM on all training data.
    Pretrain,
    /// The CRM's view of every sample.
    Few2many,
    /// The adapters on the few-shot set.
    Tune,
    /// All models on the test set.
    Evaluate,
    /// Adapters for other programs.
    Export,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 8] = [
        Stage::Prepare,
        Stage::Embed,
        Stage::Retrieve,
        Stage::Pretrain,
        Stage::Few2many,
        Stage::Tune,
        Stage::Evaluate,
        Stage::Export,
    ];

    /// Name in commands, manifests and logs.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Prepare => "prepare",
            Stage::Embed => "embed",
            Stage::Retrieve => "retrieve",
            Stage::Pretrain => "pretrain",
            Stage::Few2many => "few2many",
            Stage::Tune => "tune",
            Stage::Evaluate => "evaluate",
            Stage::Export => "export",
        }
    }

    /// Directory in the run directory.
    pub fn directory(self) -> &'static str {
        match self {
            Stage::Prepare => "dataset",
            Stage::Embed => "items",
            Stage::Retrieve => "neighbours",
            Stage::Pretrain => "crm",
            Stage::Few2many => "lens",
            Stage::Tune => "adapter",
            Stage::Evaluate => "predictions",
            Stage::Export => "export",
        }
    }

    /// Whether it runs as one process.
    pub fn single_process(self) -> bool {
        matches!(self, Stage::Prepare | Stage::Export)
    }

    /// What it does, in a phrase.
    pub fn describe(self) -> &'static str {
        match self {
            Stage::Prepare => "read raw ratings, make samples and splits",
            Stage::Embed => "embed item texts with the frozen backbone",
            Stage::Retrieve => "choose the history each sample is shown with",
            Stage::Pretrain => "train the recommendation model on all data",
            Stage::Few2many => "score all data with the recommendation model",
            Stage::Tune => "tune the adapters on the few-shot set",
            Stage::Evaluate => "score the test set with every model",
            Stage::Export => "write adapters for other programs",
        }
    }

    /// Whether a run of this config has it: nothing reads the vectors of items where only the last ones are
    /// shown.
    pub fn is_needed(self, config: &Config) -> bool {
        let shown = [config.retrieve.text_order, config.retrieve.crm_order];
        self != Stage::Embed || shown.iter().any(|order| *order != Order::Recent)
    }

    /// The stages whose output it reads in a run of this config.
    fn reads(self, config: &Config) -> impl Iterator<Item = Stage> {
        let all: &'static [Stage] = match self {
            Stage::Prepare => &[],
            Stage::Embed => &[Stage::Prepare],
            Stage::Retrieve => &[Stage::Prepare, Stage::Embed],
            Stage::Pretrain => &[Stage::Prepare, Stage::Retrieve],
            Stage::Few2many => &[Stage::Prepare, Stage::Retrieve, Stage::Pretrain],
            Stage::Tune => &[Stage::Prepare, Stage::Retrieve, Stage::Few2many],
            Stage::Evaluate => &[Stage::Prepare, Stage::Retrieve, Stage::Few2many, Stage::Tune],
            // A pair that is no sample is embedded, scored and retrieved for afresh.
            Stage::Export => &[
                Stage::Prepare,
                Stage::Embed,
                Stage::Retrieve,
                Stage::Pretrain,
                Stage::Few2many,
                Stage::Tune,
            ],
        };
        all.iter().copied().filter(|stage| stage.is_needed(config))
    }

    /// Whether it reads the backbone.
    pub fn reads_backbone(self) -> bool {
        matches!(self, Stage::Embed | Stage::Tune | Stage::Evaluate | Stage::Export)
    }
}

/// One run: its directory and its config, paths absolute.
#[derive(Clone, Debug)]
pub struct RunContext {
    /// The run directory.
    pub run_dir: PathBuf,
    /// The experiment.
    pub config: Config,
    /// The part of a stage's chunks that is to be done, where several launchers share them.
    pub part: Option<Part>,
}

impl RunContext {
    /// A run of which all is to be done.
    pub fn new(run_dir: PathBuf, config: Config) -> Self {
        Self { run_dir, config, part: None }
    }

    /// The directory a stage writes.
    pub fn path(&self, stage: Stage) -> PathBuf {
        self.run_dir.join(stage.directory())
    }
}

/// A stage's directory, with the fingerprint of what the stage is a function of.
///
/// # Errors
/// An earlier stage has not finished, or an input file is missing.
pub fn stage_dir(ctx: &RunContext, stage: Stage) -> Result<StageDir> {
    Ok(directory(ctx, stage, &inputs_of(ctx, stage)?))
}

fn directory(ctx: &RunContext, stage: Stage, inputs: &BTreeMap<String, String>) -> StageDir {
    let fingerprint = xxh3_hex(json!([stage.name(), VERSION, inputs]).to_string().as_bytes());
    StageDir::new(ctx.path(stage), stage.name(), &fingerprint)
}

/// Everything a stage is a function of, by name. Of `[runtime]` only the device and the order of sums,
/// and no path.
fn inputs_of(ctx: &RunContext, stage: Stage) -> Result<BTreeMap<String, String>> {
    let config = &ctx.config;
    let mut inputs = BTreeMap::new();
    for before in stage.reads(config) {
        let hash = StageDir::new(ctx.path(before), before.name(), "").content_hash()?;
        inputs.insert(before.name().to_owned(), hash);
    }
    if stage.reads_backbone() {
        inputs.insert("runtime.device".into(), json!(config.runtime.device).to_string());
        for path in inputs::backbone_files(&config.backbone.path)? {
            inputs.insert(file_key("backbone", &path), xxh3_file(&path)?);
        }
    }
    if matches!(stage, Stage::Pretrain | Stage::Tune) {
        let reduction = config.runtime.reduction;
        inputs.insert("runtime.reduction".into(), json!(reduction).to_string());
        if config.runtime.gradient_wire != Wire::F32 {
            inputs.insert(
                "runtime.gradient_wire".into(),
                json!(config.runtime.gradient_wire).to_string(),
            );
        }
        if reduction == Reduction::Fastest {
            // NCCL's own order depends on the length of what it sums.
            inputs.insert("runtime.bucket_mib".into(), config.runtime.bucket_mib.to_string());
        }
    }
    if stage == Stage::Prepare {
        let data = &config.data;
        for path in raw::files(data.format, &data.path, &data.columns)? {
            // Parts of a table in several directories may have one name.
            let name = path.strip_prefix(&data.path).unwrap_or(&path);
            inputs.insert(format!("data/{}", name.to_string_lossy()), xxh3_file(&path)?);
        }
    }
    if let (Stage::Tune, Some(path)) = (stage, config.adapter.frozen_lora()) {
        check_scale_of(ctx)?;
        inputs.insert("adapter.scale_of".into(), xxh3_file(path)?);
    }
    inputs.extend(settings_of(config, stage)?);
    Ok(inputs)
}

fn file_key(kind: &str, path: &Path) -> String {
    format!("{kind}/{}", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Runs a stage on this rank.
///
/// # Errors
/// Whatever the stage can't do, with what to do about it.
pub fn run(
    stage: Stage,
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<()> {
    ctx.config.validate(comm.world_size())?;
    if ctx.part.is_some() && stage != Stage::Few2many {
        let text = format!("stage {} can't be done in parts", stage.name());
        return Err(TrainerError::Input(text));
    }
    let started = Instant::now();
    let inputs = inputs_of(ctx, stage)?;
    let dir = directory(ctx, stage, &inputs);
    if comm.rank() == 0 {
        for before in stage.reads(&ctx.config) {
            StageDir::new(ctx.path(before), before.name(), "").verify()?;
            check_origin(ctx, before)?;
        }
        match ctx.part {
            None => dir.prepare()?,
            Some(_) => dir.join(&ctx.run_dir.join(PREPARING), PREPARE_WAIT)?,
        }
    }
    comm.barrier("stage begins")?;
    let work = match stage {
        Stage::Prepare => prepare::run,
        Stage::Embed => embed::run,
        Stage::Retrieve => retrieve::run,
        Stage::Pretrain => pretrain::run,
        Stage::Few2many => few2many::run,
        Stage::Tune => tune::run,
        Stage::Evaluate => evaluate::run,
        Stage::Export => export::run,
    };
    let counts = work(ctx, comm, progress)?;
    comm.barrier("stage is written")?;
    // A part does not know of the others: whoever does all of it finds what is there, and completes it.
    if comm.rank() == 0 && ctx.part.is_none() {
        dir.complete(counts, inputs, started.elapsed().as_secs_f64())?;
    }
    comm.barrier("stage ends")?;
    Ok(())
}

/// Says which stage a run still lacks before its models can be used, and which is not of its config.
fn require(ctx: &RunContext) -> Result<()> {
    let needed = |stage: &Stage| *stage <= Stage::Tune && stage.is_needed(&ctx.config);
    let needed: Vec<Stage> = Stage::ALL.into_iter().filter(needed).collect();
    for stage in &needed {
        StageDir::new(ctx.path(*stage), stage.name(), "").content_hash()?;
    }
    if let Some(error) = outdated(ctx, Stage::Tune)? {
        return Err(error);
    }
    needed.into_iter().try_for_each(|stage| check_origin(ctx, stage))
}

/// Refuses what a stage made from other files than are there now: a lens of another CRM, say. Directories
/// that were removed since are no contradiction.
fn check_origin(ctx: &RunContext, stage: Stage) -> Result<()> {
    let made = StageDir::new(ctx.path(stage), stage.name(), "").manifest()?;
    let inputs = made.map(|manifest| manifest.inputs).unwrap_or_default();
    for before in stage.reads(&ctx.config).filter(|before| ctx.path(*before).exists()) {
        let now = StageDir::new(ctx.path(before), before.name(), "").content_hash()?;
        if inputs.get(before.name()).is_some_and(|then| *then != now) {
            let what = format!(
                "was made from another {} than {} holds now; make it again: reclora-launch run CONFIG \
                 --from {}",
                before.directory(),
                ctx.path(before).display(),
                stage.name()
            );
            return Err(TrainerError::file(ctx.path(stage), what));
        }
    }
    Ok(())
}

/// What a stage counted, for its manifest.
type Counts = BTreeMap<String, u64>;

/// Writes JSON, indented, atomically.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| TrainerError::file(path, error.to_string()))?;
    bytes.push(b'\n');
    Ok(reclora_storage::atomic::write_bytes_atomic(path, &bytes)?)
}
