//! Logits and loss.

use candle_core::{D, DType, Tensor};

use super::weights::DeviceBackbone;
use crate::error::Result;
use crate::model::softplus;

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
    /// Its share of the sample's loss: 1 / targets of the sample.
    pub share: f32,
    /// Where the sample is decided here: the tokens of the wrong and the right answer.
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

/// Each sample's mean cross-entropy over its targets, and that of its answer among the deciding tokens
/// (0 without them); and `weight` times the gradient of the sum of the first with respect to the normed
/// states. `targets` are in the order of their rows.
pub(super) fn losses(
    backbone: &DeviceBackbone,
    norm: &Tensor,
    samples: usize,
    targets: &[RowTarget],
    weight: f32,
) -> Result<(Vec<[f64; 2]>, Tensor)> {
    let mut losses = vec![[0.0; 2]; samples];
    let mut gradients = Vec::new();
    let rows = norm.dim(0)?;
    for first in (0..rows).step_by(ROWS) {
        let end = rows.min(first + ROWS);
        let here = targets.iter().filter(|target| (first..end).contains(&target.row));
        let here: Vec<&RowTarget> = here.collect();
        let norm = norm.narrow(0, first, end - first)?;
        gradients.push(chunk(backbone, &norm, first, &here, weight, &mut losses)?);
    }
    Ok((losses, Tensor::cat(&gradients, 0)?))
}

/// [`losses`] of the rows from `first` on.
fn chunk(
    backbone: &DeviceBackbone,
    norm: &Tensor,
    first: usize,
    targets: &[&RowTarget],
    weight: f32,
    losses: &mut [[f64; 2]],
) -> Result<Tensor> {
    let (device, vocab) = (&backbone.device, backbone.config.vocab_size);
    let logits = logits(backbone, norm, None)?;
    let max = logits.max_keepdim(D::Minus1)?;
    let exp = logits.broadcast_sub(&max)?.exp()?;
    let sum = exp.sum_keepdim(D::Minus1)?;
    let place = |target: &RowTarget, token: u32| ((target.row - first) * vocab) as u32 + token;
    let places: Vec<u32> = targets.iter().map(|target| place(target, target.token)).collect();
    let choices = targets.iter().filter_map(|target| {
        Some((target.sample, target.deciding?.map(|token| place(target, token))))
    });
    let (decided, choices): (Vec<usize>, Vec<[u32; 2]>) = choices.unzip();
    // Read together: each reading waits for the device.
    let all: Vec<u32> = places.iter().chain(choices.as_flattened()).copied().collect();
    let all = Tensor::from_vec(all, places.len() + 2 * choices.len(), device)?;
    let log_sums: Vec<f32> = (sum.log()? + max)?.flatten_all()?.to_vec1()?;
    let picked: Vec<f32> = logits.flatten_all()?.index_select(&all, 0)?.to_vec1()?;
    let (picked, choices) = picked.split_at(places.len());
    for (sample, choice) in decided.into_iter().zip(choices.as_chunks::<2>().0) {
        let [wrong, right] = choice.map(f64::from);
        losses[sample][1] = softplus(wrong - right);
    }
    let mut row_shares = vec![0.0; norm.dim(0)?];
    for (target, picked) in targets.iter().zip(picked) {
        let row = target.row - first;
        losses[target.sample][0] += f64::from(target.share) * f64::from(log_sums[row] - picked);
        row_shares[row] += weight * target.share;
    }
    let row_shares = Tensor::new(row_shares.as_slice(), device)?.unsqueeze(1)?;
    let places = Tensor::from_vec(places, targets.len(), device)?;
    let expected = exp.broadcast_mul(&row_shares.broadcast_div(&sum)?)?;
    let minus = Tensor::from_iter(targets.iter().map(|t| -weight * t.share), device)?;
    let d_logits = expected.flatten_all()?.index_add(&places, &minus, 0)?;
    let d_logits = d_logits.reshape(logits.shape())?.to_dtype(norm.dtype())?;
    Ok(d_logits.matmul(&backbone.head)?)
}
