//! Scores of few samples, spread over ranks and threads, known to every rank; and the file of those of the
//! valid samples.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use reclora_comm::Communicator;
use reclora_storage::shard::{Column, Shard, write_shard};

use crate::error::{Result, TrainerError};
use crate::metrics::{Scored, Validation, auc, log_loss};

/// File of the scores of the valid samples, beside an adapter.
const VALID: &str = "valid.shard";
/// Kind of that shard.
const KIND: &str = "valid-scores";

/// Scores of 0..count on every rank, each computed once: `score` gets a rank's share.
fn over_ranks(
    name: &str,
    count: usize,
    comm: &mut dyn Communicator,
    score: impl FnOnce(Range<usize>, &mut dyn Communicator) -> Result<Vec<f32>>,
) -> Result<Vec<f32>> {
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let block = count * rank / world_size..count * (rank + 1) / world_size;
    let bytes: Vec<u8> = score(block, comm)?.iter().flat_map(|value| value.to_le_bytes()).collect();
    let gathered = comm.all_gather(name, &bytes)?.concat();
    let (words, _) = gathered.as_chunks::<4>();
    if words.len() != count {
        let what = format!("{name}: {} scores came for {count} samples", words.len());
        return Err(TrainerError::Input(what));
    }
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

/// Samples of (user, label), scored over the ranks; `logits` are those of like.
pub fn valid_metrics(
    samples: &[(u32, bool)],
    comm: &mut dyn Communicator,
    logits: impl FnOnce(Range<usize>, &mut dyn Communicator) -> Result<Vec<f32>>,
) -> Result<Validation> {
    let logits = over_ranks("valid scores", samples.len(), comm, logits)?;
    let scored: Vec<Scored> = samples
        .iter()
        .zip(&logits)
        .map(|(&(user, label), &logit)| Scored { user, label, probability: sigmoid(logit) })
        .collect();
    Ok(Validation { auc: auc(&scored), log_loss: log_loss(&scored), logits })
}

/// Writes how an adapter scores the valid samples `keys`, beside it.
pub fn write_valid(dir: &Path, keys: &[u64], logits: &[f32]) -> Result<()> {
    if keys.len() != logits.len() {
        let (count, expected) = (logits.len(), keys.len());
        let what = format!("{}: {count} scores of {expected} valid samples", dir.display());
        return Err(TrainerError::afresh(what, "tune"));
    }
    let columns = [("key", Column::U64(keys)), ("logit", Column::F32(logits))];
    Ok(write_shard(&dir.join(VALID), KIND, &columns)?)
}

/// P(like) of the valid samples that were scored, by their keys.
pub fn read_valid(dir: &Path) -> Result<BTreeMap<u64, f32>> {
    let shard = Shard::open(&dir.join(VALID), KIND)?;
    shard.verify()?;
    let (keys, logits) = (shard.u64("key")?, shard.f32("logit")?);
    Ok(keys.iter().copied().zip(logits.iter().map(|logit| sigmoid(*logit))).collect())
}

/// 1 / (1 + e^−x).
pub fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32
}
