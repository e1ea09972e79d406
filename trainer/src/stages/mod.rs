//! The stages of a run, each a function of (config sections, inputs, seed) to a directory.
//!
//! [`Stage`] has the graph, `fingerprint` what a stage is a function of, `artifacts` the names of the files that stages
//! leave to others.

mod artifacts;
mod baselines;
mod context;
mod count;
mod crms;
mod description;
mod draw;
mod embed;
mod evaluate;
mod export;
mod few2many;
mod few_shot;
mod fingerprint;
mod forecast;
mod inputs;
mod pair;
mod predict;
mod predictions;
pub mod preflight;
mod prepare;
mod pretrain;
mod retrieve;
mod stage;
#[cfg(test)]
mod tests;
mod text;
mod tune;
mod tuned;
mod without_llm;

pub use context::RunContext;
pub use draw::ScoredOrder;
pub use evaluate::{Leak, ScoredSamples};
pub use export::export_pair;
pub use fingerprint::{outdated, stage_dir};
pub use forecast::{Forecast, Training, forecast};
pub use predict::{Prediction, predict};
pub use predictions::{Predicted, predictions};
pub use stage::Stage;
pub use without_llm::{SplitMetrics, WithoutLlm, without_llm};

use std::path::Path;
use std::time::{Duration, Instant};

use reclora_comm::Communicator;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, TrainerError};
pub use crate::scoring::chunks::Part;
use crate::telemetry::progress::Progress;
use description::{Counts, Description, Inputs};
use fingerprint::{check_origin, directory, finished, inputs_of, require};

/// Directory in the run directory of the lock under which parts make a stage's directory ready.
const PREPARING: &str = ".preparing";
/// How long another part may take for it.
const PREPARE_WAIT: Duration = Duration::from_secs(60);

/// What each stage says of itself.
fn description(stage: Stage) -> &'static Description {
    match stage {
        Stage::Prepare => &prepare::STAGE,
        Stage::Embed => &embed::STAGE,
        Stage::Retrieve => &retrieve::STAGE,
        Stage::Count => &count::STAGE,
        Stage::Pretrain => &pretrain::STAGE,
        Stage::Few2many => &few2many::STAGE,
        Stage::Tune => &tune::STAGE,
        Stage::Evaluate => &evaluate::STAGE,
        Stage::Export => &export::STAGE,
    }
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
            finished(ctx, before).verify()?;
            check_origin(ctx, before)?;
        }
        match ctx.part {
            None => dir.prepare()?,
            Some(_) => dir.join(&ctx.run_dir.join(PREPARING), PREPARE_WAIT)?,
        }
    }
    comm.barrier("stage begins")?;
    let counts = (description(stage).run)(ctx, comm, progress)?;
    comm.barrier("stage is written")?;
    // A part does not know of the others: whoever does all of it finds what is there, and completes it.
    if comm.rank() == 0 && ctx.part.is_none() {
        dir.complete(counts, inputs, started.elapsed().as_secs_f64())?;
    }
    comm.barrier("stage ends")?;
    Ok(())
}

/// Reads JSON that a stage has written.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path)
        .map_err(|error| TrainerError::file(path, format!("can't be read ({error})")))?;
    serde_json::from_slice(&bytes).map_err(|error| TrainerError::file(path, error.to_string()))
}

/// Writes JSON, indented, atomically.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| TrainerError::file(path, error.to_string()))?;
    bytes.push(b'\n');
    Ok(reclora_storage::atomic::write_bytes_atomic(path, &bytes)?)
}
