//! Stand-in for `reclora_trainer::stages`, with the same signatures.

use std::path::{Path, PathBuf};

use reclora_comm::Communicator;
use reclora_storage::manifest::StageDir;
use reclora_trainer::config::Config;
use reclora_trainer::error::{Result, TrainerError};
use reclora_trainer::progress::{Event, Progress};
use serde::{Deserialize, Serialize};

/// A stage of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Stage {
    Prepare,
    Embed,
    Retrieve,
    Pretrain,
    Few2many,
    Tune,
    Evaluate,
    Export,
}

impl Stage {
    /// All, in order.
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

    /// Name in commands and logs.
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

    /// Runs as one process.
    pub fn single_process(self) -> bool {
        matches!(self, Stage::Prepare | Stage::Export)
    }

    /// One phrase.
    pub fn describe(self) -> &'static str {
        self.name()
    }
}

/// What a stage needs to know.
#[derive(Clone, Debug)]
pub struct RunContext {
    /// The run directory.
    pub run_dir: PathBuf,
    /// The config, paths absolute.
    pub config: Config,
}

/// The directory of a stage.
pub fn stage_dir(ctx: &RunContext, stage: Stage) -> Result<StageDir> {
    let mut fingerprint = format!("{}", ctx.config.seed);
    if stage > Stage::Prepare {
        let before = Stage::ALL[stage as usize - 1];
        fingerprint = stage_dir(ctx, before)?.content_hash()?;
    }
    Ok(StageDir::new(ctx.run_dir.join(stage.directory()), stage.name(), &fingerprint))
}

/// Runs a stage on this rank.
pub fn run(
    stage: Stage,
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<()> {
    let dir = stage_dir(ctx, stage)?;
    if comm.rank() == 0 {
        dir.prepare()?;
    }
    let task = stage.describe().to_owned();
    let total = 100 * comm.world_size() as u64;
    progress.emit(Event::Start { task: task.clone(), total, unit: "samples".into() });
    for done in 1..=100 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        if done % 10 == 0 {
            comm.barrier("step")?;
        }
        progress.emit(Event::Update { task: task.clone(), done, note: "loss 0.6".into() });
    }
    progress.emit(Event::Finish { task });
    if comm.rank() == 0 {
        std::fs::write(dir.path().join("done.txt"), stage.name())
            .map_err(|e| TrainerError::file(dir.path(), e.to_string()))?;
        dir.complete(Default::default(), Default::default(), 0.5)?;
    }
    comm.barrier("end")?;
    Ok(())
}

/// A prediction.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Prediction {
    pub user: String,
    pub item: String,
    pub reclora: f32,
    pub prompt: String,
}

/// Predicts.
pub fn predict(ctx: &RunContext, user: &str, item: &str) -> Result<Prediction> {
    stage_dir(ctx, Stage::Evaluate)?;
    Ok(Prediction { user: user.into(), item: item.into(), reclora: 0.5, prompt: "p".into() })
}

/// Exports.
pub fn export_pair(ctx: &RunContext, _user: &str, _item: &str, _out: &Path) -> Result<()> {
    stage_dir(ctx, Stage::Evaluate).map(drop)
}

/// Checks the config.
pub fn validate(_config: &Config, _world_size: usize) -> Result<()> {
    Ok(())
}
