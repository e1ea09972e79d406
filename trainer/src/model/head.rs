//! Logits and loss.

use super::Target;
use super::workspace::{Workspace, fit};
use crate::backbone::Backbone;
use crate::kernels::pointwise::dot;
use crate::kernels::{Mat, project, project_grad};

/// Logits of the first of the final hidden states: of some tokens (checked by the caller), or of all.
pub(super) fn logits(
    backbone: &Backbone,
    ws: &mut Workspace,
    token_ids: Option<&[u32]>,
) -> Vec<f32> {
    let head = backbone.head().mat();
    let hidden = ws.top.row(0);
    let mut row = vec![0.0; hidden.len()];
    let mut logit = |token| {
        head.widen(token, &mut row);
        dot(&row, hidden)
    };
    match token_ids {
        None => (0..head.outputs()).map(logit).collect(),
        Some(ids) => ids.iter().map(|id| logit(*id as usize)).collect(),
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
    let head = backbone.head().mat();
    let (vocab, width) = (head.outputs(), ws.top.width);
    let share = f64::from(weight) / targets.len() as f64;
    let buffers = &mut ws.scratch.linear.frozen;
    let hidden = Mat::new(&ws.top.norm, rows.len(), width);
    let logits = fit(&mut ws.top.logits, rows.len() * vocab);
    project(logits, vocab, hidden, head, false, buffers);
    let mut total = 0.0f64;
    for (logits, position) in logits.chunks_exact_mut(vocab).zip(rows) {
        let here = targets.iter().filter(|t| t.position == *position as usize);
        total += cross_entropy(logits, here.map(|t| t.token as usize), share);
    }
    let d_norm = fit(&mut ws.top.d_norm, rows.len() * width);
    project_grad(d_norm, Mat::new(logits, rows.len(), vocab), head, false, buffers);
    (total / targets.len() as f64) as f32
}

/// Sum of the cross-entropies of some tokens under one row of logits; the row becomes `share` times
/// the gradient of that sum.
fn cross_entropy(row: &mut [f32], tokens: impl Iterator<Item = usize>, share: f64) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp = |logit: f32| f64::from(logit - max).exp();
    let sum: f64 = row.iter().map(|logit| exp(*logit)).sum();
    let tokens: Vec<usize> = tokens.collect();
    let loss: f64 = tokens.iter().map(|token| sum.ln() - f64::from(row[*token] - max)).sum();
    let scale = share * tokens.len() as f64 / sum;
    for logit in row.iter_mut() {
        *logit = (exp(*logit) * scale) as f32;
    }
    for token in tokens {
        row[token] -= share as f32;
    }
    loss
}
