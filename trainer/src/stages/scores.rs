//! Scores of few samples, spread over ranks and threads, known to every rank.

use std::ops::Range;

use reclora_comm::Communicator;

use crate::error::{Result, TrainerError};
use crate::metrics::{Scored, auc, log_loss};

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

/// AUC and log loss of samples of (user, label), scored over the ranks; `logits` are those of like.
pub fn valid_metrics(
    samples: &[(u32, bool)],
    comm: &mut dyn Communicator,
    logits: impl FnOnce(Range<usize>, &mut dyn Communicator) -> Result<Vec<f32>>,
) -> Result<(Option<f64>, Option<f64>)> {
    let logits = over_ranks("valid scores", samples.len(), comm, logits)?;
    let scored: Vec<Scored> = samples
        .iter()
        .zip(logits)
        .map(|(&(user, label), logit)| Scored { user, label, probability: sigmoid(logit) })
        .collect();
    Ok((auc(&scored), log_loss(&scored)))
}

/// 1 / (1 + e^−x).
pub fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32
}
