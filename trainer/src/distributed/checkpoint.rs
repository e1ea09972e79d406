//! Where a training run stands: everything the next step depends on, in one file.
//!
//! Rank 0 writes and reads; the others get its bytes, so that all ranks continue from one state even
//! if their file systems disagree.

use std::path::{Path, PathBuf};

use reclora_comm::Communicator;
use reclora_storage::atomic::{create_dir_all, write_bytes_atomic};
use reclora_storage::codec::{decode, encode};
use reclora_storage::hash::xxh3_hex;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainerError};

/// One optimizer step, as shown in curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epoch the step belongs to, from 1.
    pub epoch: u64,
    /// Mean loss over the global batch.
    pub loss: f32,
    /// Learning rate of the step.
    pub learning_rate: f32,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
}

/// One epoch, as shown in curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Number of the epoch, from 1.
    pub epoch: u64,
    /// Mean of the steps' losses.
    pub train_loss: f64,
    /// AUC on the valid samples, where there are any of both classes.
    pub valid_auc: Option<f64>,
    /// Log loss on the valid samples.
    pub valid_log_loss: Option<f64>,
}

/// The curves of a training run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Every optimizer step.
    pub steps: Vec<StepRecord>,
    /// Every finished epoch.
    pub epochs: Vec<EpochRecord>,
}

/// Everything the next step depends on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Epochs finished.
    pub epoch: u64,
    /// Global batches of the current epoch that are done.
    pub batch: u64,
    /// Optimizer steps taken.
    pub step: u64,
    /// Trained parameters.
    pub parameters: Vec<f32>,
    /// AdamW's first moment.
    pub first_moment: Vec<f32>,
    /// AdamW's second moment.
    pub second_moment: Vec<f32>,
    /// The curves so far.
    pub history: History,
    /// The best epoch so far and its parameters, where epochs are selected.
    pub best: Option<(u64, Vec<f32>)>,
}

/// Checkpoints kept: the newest, and one before it in case the newest can't be read.
const KEEP: usize = 2;
/// Largest checkpoint that is read.
const LIMIT: usize = 1 << 36;

fn path_of(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("step-{step:010}.checkpoint"))
}

/// The checkpoints in `dir`, oldest first.
fn list(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "checkpoint"))
        .collect();
    paths.sort();
    paths
}

/// Writes `state` and drops all but the newest checkpoints. Only rank 0 calls this.
pub fn save(dir: &Path, state: &TrainState) -> Result<()> {
    create_dir_all(dir)?;
    let mut bytes = encode(state)?;
    bytes.extend_from_slice(xxh3_hex(&bytes).as_bytes());
    write_bytes_atomic(&path_of(dir, state.step), &bytes)?;
    let paths = list(dir);
    for old in &paths[..paths.len().saturating_sub(KEEP)] {
        std::fs::remove_file(old).map_err(|error| TrainerError::file(old, error.to_string()))?;
    }
    Ok(())
}

/// The newest state in `dir` that is whole, the same on every rank; `None` if there is none.
pub fn load(dir: &Path, comm: &mut dyn Communicator) -> Result<Option<TrainState>> {
    let mut bytes = Vec::new();
    if comm.rank() == 0 {
        bytes = list(dir).iter().rev().find_map(|path| read(path)).unwrap_or_default();
    }
    comm.broadcast("checkpoint", 0, &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(decode(&bytes, LIMIT)?))
}

/// Whether the file at `path` is a whole checkpoint; `None` if by its name it is none.
pub fn is_whole(path: &Path) -> Option<bool> {
    let named_so = path.extension().is_some_and(|extension| extension == "checkpoint");
    named_so.then(|| read(path).is_some())
}

/// The bytes of a whole checkpoint, without its hash.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let hash = bytes.split_off(bytes.len().checked_sub(16)?);
    let whole = xxh3_hex(&bytes).as_bytes() == hash && decode::<TrainState>(&bytes, LIMIT).is_ok();
    whole.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reclora_comm::Solo;

    fn state(step: u64) -> TrainState {
        let parameters = vec![step as f32, -0.0];
        TrainState { step, parameters, best: Some((1, vec![2.0])), ..TrainState::default() }
    }

    #[test]
    fn the_newest_whole_checkpoint_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path(), &mut Solo).unwrap(), None);
        for step in [9, 10, 11] {
            save(dir.path(), &state(step)).unwrap();
        }
        assert_eq!(list(dir.path()).len(), KEEP);
        assert_eq!(load(dir.path(), &mut Solo).unwrap(), Some(state(11)));
        let newest = path_of(dir.path(), 11);
        let mut bytes = std::fs::read(&newest).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&newest, &bytes).unwrap();
        assert_eq!(load(dir.path(), &mut Solo).unwrap(), Some(state(10)));
        std::fs::write(path_of(dir.path(), 12), b"").unwrap();
        let is_whole = [10, 11, 12].map(|step| is_whole(&path_of(dir.path(), step)));
        assert_eq!(is_whole, [Some(true), Some(false), Some(false)]);
        assert_eq!(load(dir.path(), &mut Solo).unwrap(), Some(state(10)));
    }
}
