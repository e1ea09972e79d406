//! Logits and loss.

use super::TrainingSample;
use super::workspace::Workspace;
use crate::adapter::HeadLayout;
use crate::backbone::Backbone;
use crate::kernels::buffer::fit;
use crate::kernels::pointwise::{axpy, dot};
use crate::kernels::{Mat, project, project_grad};
use crate::parameters::Losses;

/// Logits of tokens (checked by the caller), from the first of the final hidden states.
pub(super) fn logits(backbone: &Backbone, ws: &Workspace, tokens: &[usize]) -> Vec<f32> {
    let head = backbone.head().mat();
    let hidden = ws.top.row(0);
    let mut row = vec![0.0; hidden.len()];
    let logit = |token: &usize| {
        head.widen(*token, &mut row);
        dot(&row, hidden)
    };
    tokens.iter().map(logit).collect()
}

/// Outputs of a trained head for the first of the final hidden states.
pub(super) fn answers(head: &HeadLayout, parameters: &[f32], ws: &Workspace) -> Vec<f32> {
    let hidden = ws.top.row(0);
    let rows = parameters[head.weight.clone()].chunks_exact(hidden.len());
    rows.zip(&parameters[head.bias.clone()]).map(|(row, bias)| dot(row, hidden) + bias).collect()
}

/// Loss of a trained head, and its gradient with respect to the outputs.
///
/// Both heads' loss is softplus(−m) of the margin m by which the right answer leads: yes − no, or the
/// one output, or the negative of that for no.
pub(super) fn answer_loss(
    head: &HeadLayout,
    parameters: &[f32],
    ws: &Workspace,
    like: bool,
) -> (f32, Vec<f32>) {
    let outputs = answers(head, parameters, ws);
    let sign = if like { 1.0 } else { -1.0 };
    let yes_over_no = match outputs[..] {
        [no, yes] => f64::from(yes) - f64::from(no),
        _ => outputs.iter().copied().map(f64::from).sum(),
    };
    let margin = sign * yes_over_no;
    let loss = softplus(-margin);
    // d loss / d yes; no, where it has an output, gets the opposite.
    let d_yes = (-sign / (1.0 + margin.exp())) as f32;
    let d_outputs = if outputs.len() == 2 { vec![-d_yes, d_yes] } else { vec![d_yes] };
    (loss as f32, d_outputs)
}

/// ln(1 + e^x): the loss of a choice in which the wrong answer leads by x.
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Adds a trained head's gradients, and leaves that of the final hidden state in `ws.top.d_norm`.
pub(super) fn answer_grad(
    head: &HeadLayout,
    parameters: &[f32],
    ws: &mut Workspace,
    d_outputs: &[f32],
    gradient: &mut [f32],
) {
    let width = ws.top.width;
    let d_norm = fit(&mut ws.top.d_norm, width);
    d_norm.fill(0.0);
    for (output, d) in d_outputs.iter().enumerate() {
        let row = head.weight.start + output * width..head.weight.start + (output + 1) * width;
        axpy(d_norm, *d, &parameters[row.clone()]);
        axpy(&mut gradient[row], *d, &ws.top.norm[..width]);
        gradient[head.bias.start + output] += d;
    }
}

/// Mean cross-entropy over the targets, and that of the choice between the deciding tokens; leaves
/// `weight` times the first one's gradient of the final hidden states in `ws.top.d_norm`. `rows` are the
/// targets' positions, sorted.
pub(super) fn losses(
    backbone: &Backbone,
    ws: &mut Workspace,
    rows: &[u32],
    sample: &TrainingSample<'_>,
    weight: f32,
) -> Losses {
    let targets = sample.targets;
    let head = backbone.head().mat();
    let (vocab, width) = (head.outputs(), ws.top.width);
    let share = f64::from(weight) / targets.len() as f64;
    let buffers = &mut ws.scratch.linear.frozen;
    let hidden = Mat::new(&ws.top.norm, rows.len(), width);
    let logits = fit(&mut ws.top.logits, rows.len() * vocab);
    project(logits, vocab, hidden, head, false, buffers);
    let deciding = deciding_loss(logits, vocab, rows, sample).unwrap_or_default();
    let mut total = 0.0f64;
    for (logits, position) in logits.chunks_exact_mut(vocab).zip(rows) {
        let here = targets.iter().filter(|t| t.position == *position as usize);
        total += cross_entropy(logits, here.map(|t| t.token as usize), share);
    }
    let d_norm = fit(&mut ws.top.d_norm, rows.len() * width);
    project_grad(d_norm, Mat::new(logits, rows.len(), vocab), head, false, buffers);
    Losses { training: (total / targets.len() as f64) as f32, deciding }
}

/// The cross-entropy of the sample's answer among no and yes, from the logits of `rows`.
fn deciding_loss(
    logits: &[f32],
    vocab: usize,
    rows: &[u32],
    sample: &TrainingSample<'_>,
) -> Option<f32> {
    let row = rows.binary_search(&(sample.targets.first()?.position as u32)).ok()?;
    let [no, yes] = sample.deciding?.map(|token| f64::from(logits[row * vocab + token as usize]));
    let lead = if sample.label { no - yes } else { yes - no };
    Some(softplus(lead) as f32)
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
