//! Logits and loss.

use super::Target;
use super::workspace::{Workspace, fit};
use crate::backbone::Backbone;
use crate::kernels::pointwise::{axpy, dot};

/// Logits of a final hidden state: of some tokens (checked by the caller), or of all.
pub(super) fn logits(backbone: &Backbone, hidden: &[f32], token_ids: Option<&[u32]>) -> Vec<f32> {
    let width = hidden.len();
    let head = backbone.head();
    match token_ids {
        None => head.chunks_exact(width).map(|row| dot(row, hidden)).collect(),
        Some(ids) => {
            ids.iter().map(|id| dot(&head[*id as usize * width..][..width], hidden)).collect()
        }
    }
}

/// Mean cross-entropy over the targets; leaves `weight` times the gradient of the final hidden states
/// in `ws.top.d_norm`. `rows` are the targets' positions, sorted.
pub(super) fn loss(
    backbone: &Backbone,
    ws: &mut Workspace,
    rows: &[u32],
    targets: &[Target],
    weight: f32,
) -> f32 {
    let width = ws.top.width;
    let share = weight / targets.len() as f32;
    let mut total = 0.0f64;
    fit(&mut ws.top.d_norm, rows.len() * width).fill(0.0);
    for (row, position) in rows.iter().enumerate() {
        let logits = logits(backbone, ws.top.row(row), None);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp: Vec<f64> = logits.iter().map(|x| f64::from(x - max).exp()).collect();
        let sum: f64 = exp.iter().sum();
        let here = targets.iter().filter(|t| t.position == *position as usize);
        let mut probability_share = 0.0f64;
        let d_norm = &mut ws.top.d_norm[row * width..(row + 1) * width];
        let head = backbone.head();
        for target in here {
            let token = target.token as usize;
            total += sum.ln() - f64::from(logits[token] - max);
            probability_share += f64::from(share);
            axpy(d_norm, -share, &head[token * width..][..width]);
        }
        for (p, row) in exp.iter().zip(head.chunks_exact(width)) {
            axpy(d_norm, (p / sum * probability_share) as f32, row);
        }
    }
    (total / targets.len() as f64) as f32
}
