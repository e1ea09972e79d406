//! What is read of the final hidden states, and the way of its derivatives back into them.

use candle_core::{D, DType, Tensor};

use super::weights::DeviceBackbone;
use crate::error::Result;
use crate::losses::Readout;

/// Rows whose logits over the whole vocabulary exist at a time.
const ROWS: usize = 64;

/// One supervised token of a batch.
pub(super) struct RowTarget {
    /// Row of the final states.
    pub row: usize,
    /// The token that should follow.
    pub token: u32,
    /// Sample it belongs to.
    pub sample: usize,
    /// Its place among the sample's targets.
    pub index: usize,
    /// Where the sample's margin is read here: the tokens no and yes.
    pub deciding: Option<[u32; 2]>,
}

/// Logits `[rows, tokens]` (f32) of normed states: of some tokens, or of all.
pub(super) fn logits(
    backbone: &DeviceBackbone,
    norm: &Tensor,
    token_ids: Option<&[u32]>,
) -> Result<Tensor> {
    let head = match token_ids {
        None => backbone.head.clone(),
        Some(ids) => backbone.head.index_select(&Tensor::new(ids, &backbone.device)?, 0)?,
    };
    Ok(norm.matmul(&head.t()?)?.to_dtype(DType::F32)?)
}

/// The rows from `first` on, with the targets that are read of them.
struct Chunk<'t> {
    norm: Tensor,
    first: usize,
    targets: Vec<&'t RowTarget>,
}

fn chunks<'t>(norm: &Tensor, targets: &'t [RowTarget]) -> Result<Vec<Chunk<'t>>> {
    let rows = norm.dim(0)?;
    let firsts = (0..rows).step_by(ROWS);
    firsts
        .map(|first| {
            let end = rows.min(first + ROWS);
            let here = targets.iter().filter(|target| (first..end).contains(&target.row));
            let norm = norm.narrow(0, first, end - first)?;
            Ok(Chunk { norm, first, targets: here.collect() })
        })
        .collect()
}

impl Chunk<'_> {
    /// Place of a token's logit among those of the chunk.
    fn place(&self, vocab: usize, target: &RowTarget, token: u32) -> u32 {
        ((target.row - self.first) * vocab) as u32 + token
    }

    /// exp(logit − max) `[rows, vocab]`, its sums and the maxima `[rows, 1]`, and the logits.
    fn softmax(&self, backbone: &DeviceBackbone) -> Result<[Tensor; 4]> {
        let logits = logits(backbone, &self.norm, None)?;
        let max = logits.max_keepdim(D::Minus1)?;
        let exp = logits.broadcast_sub(&max)?.exp()?;
        let sum = exp.sum_keepdim(D::Minus1)?;
        Ok([exp, sum, max, logits])
    }
}

/// What is read of each sample: `counts` are the numbers of its targets.
pub(super) fn read(
    backbone: &DeviceBackbone,
    norm: &Tensor,
    counts: &[usize],
    targets: &[RowTarget],
) -> Result<Vec<Readout>> {
    let vocab = backbone.config.vocab_size;
    let empty = |count: &usize| Readout { log_likelihoods: vec![0.0; *count], margin: None };
    let mut readouts: Vec<Readout> = counts.iter().map(empty).collect();
    for chunk in chunks(norm, targets)? {
        let [_, sum, max, logits] = chunk.softmax(backbone)?;
        let places = chunk.targets.iter().map(|t| chunk.place(vocab, t, t.token));
        let choices = chunk.targets.iter().filter_map(|target| {
            let place = |token| chunk.place(vocab, target, token);
            Some((target.sample, target.deciding?.map(place)))
        });
        let (decided, choices): (Vec<usize>, Vec<[u32; 2]>) = choices.unzip();
        // Read together: each reading waits for the device.
        let all: Vec<u32> = places.chain(choices.as_flattened().iter().copied()).collect();
        let count = all.len();
        let all = Tensor::from_vec(all, count, &backbone.device)?;
        let log_sums: Vec<f32> = (sum.log()? + max)?.flatten_all()?.to_vec1()?;
        let picked: Vec<f32> = logits.flatten_all()?.index_select(&all, 0)?.to_vec1()?;
        let (picked, choices) = picked.split_at(chunk.targets.len());
        for (sample, choice) in decided.into_iter().zip(choices.as_chunks::<2>().0) {
            let [no, yes] = choice.map(f64::from);
            readouts[sample].margin = Some(yes - no);
        }
        for (target, picked) in chunk.targets.iter().zip(picked) {
            let likelihood = f64::from(picked - log_sums[target.row - chunk.first]);
            readouts[target.sample].log_likelihoods[target.index] = likelihood;
        }
    }
    Ok(readouts)
}

/// `weight` times the gradient of the normed states, from the derivatives of each sample. The logits are computed
/// again: they are those of few rows, and as large as the vocabulary.
pub(super) fn gradient(
    backbone: &DeviceBackbone,
    norm: &Tensor,
    targets: &[RowTarget],
    derivatives: &[Readout],
    weight: f32,
) -> Result<Tensor> {
    let (device, vocab) = (&backbone.device, backbone.config.vocab_size);
    let mut gradients = Vec::new();
    for chunk in chunks(norm, targets)? {
        let [exp, sum, ..] = chunk.softmax(backbone)?;
        let rows = chunk.norm.dim(0)?;
        let (mut row_shares, mut places, mut added) = (vec![0.0; rows], Vec::new(), Vec::new());
        for target in &chunk.targets {
            let derivative = &derivatives[target.sample];
            let d = weight * derivative.log_likelihoods[target.index] as f32;
            row_shares[target.row - chunk.first] -= d;
            places.push(chunk.place(vocab, target, target.token));
            added.push(d);
            if let (Some([no, yes]), Some(margin)) = (target.deciding, derivative.margin) {
                let d = weight * margin as f32;
                places.extend([yes, no].map(|token| chunk.place(vocab, target, token)));
                added.extend([d, -d]);
            }
        }
        let row_shares = Tensor::from_vec(row_shares, (rows, 1), device)?;
        let count = places.len();
        let places = Tensor::from_vec(places, count, device)?;
        let added = Tensor::from_vec(added, count, device)?;
        let shape = exp.shape().clone();
        let expected = exp.broadcast_mul(&row_shares.broadcast_div(&sum)?)?;
        let d_logits = expected.flatten_all()?.index_add(&places, &added, 0)?;
        let d_logits = d_logits.reshape(shape)?.to_dtype(chunk.norm.dtype())?;
        gradients.push(d_logits.matmul(&backbone.head)?);
    }
    Ok(Tensor::cat(&gradients, 0)?)
}
