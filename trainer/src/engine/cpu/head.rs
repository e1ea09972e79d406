//! What is read of the final hidden states, and the way of its derivatives back into them.

use super::workspace::{Softmax, Workspace};
use crate::adapter::{AdapterView, HeadLayout};
use crate::backbone::Backbone;
use crate::engine::TrainingSample;
use crate::kernels::buffer::fit;
use crate::kernels::pointwise::{axpy, dot};
use crate::kernels::{Mat, project, project_grad};
use crate::losses::Readout;

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

/// Of a trained head: yes less no, or the one output.
pub(super) fn read_answer(head: &HeadLayout, parameters: &[f32], ws: &Workspace) -> Readout {
    let outputs = answers(head, parameters, ws);
    let margin = match outputs[..] {
        [no, yes] => f64::from(yes) - f64::from(no),
        _ => outputs.iter().copied().map(f64::from).sum(),
    };
    Readout { log_likelihoods: Vec::new(), margin: Some(margin) }
}

/// Adds a trained head's gradients, `weight` times `d_margin` by its margin, and leaves that of the final hidden state
/// in `ws.top.d_norm`.
pub(super) fn answer_grad(
    head: &HeadLayout,
    adapter: AdapterView<'_>,
    ws: &mut Workspace,
    d_margin: f64,
    weight: f32,
    gradient: &mut [f32],
) {
    let width = ws.top.width;
    let d_norm = fit(&mut ws.top.d_norm, width);
    d_norm.fill(0.0);
    let d_yes = weight * d_margin as f32;
    // No, where it has an output, gets the opposite of yes.
    let d_outputs = if head.bias.len() == 2 { &[-d_yes, d_yes][..] } else { &[d_yes] };
    for (output, d) in d_outputs.iter().enumerate() {
        let row = head.weight.start + output * width..head.weight.start + (output + 1) * width;
        axpy(d_norm, *d, &adapter.parameters()[row.clone()]);
        axpy(&mut gradient[row], *d, &ws.top.norm[..width]);
        gradient[head.bias.start + output] += d;
    }
}

/// Of the LLM's own head: log-likelihoods of the targets, and the margin where the sample names its tokens. Leaves the
/// logits of `rows`, the targets' sorted positions, for [`tokens_grad`].
pub(super) fn read_tokens(
    backbone: &Backbone,
    ws: &mut Workspace,
    rows: &[u32],
    sample: &TrainingSample<'_>,
) -> Readout {
    let head = backbone.head().mat();
    let (vocab, width) = (head.outputs(), ws.top.width);
    let buffers = &mut ws.scratch.linear.frozen;
    let hidden = Mat::new(&ws.top.norm, rows.len(), width);
    let logits = fit(&mut ws.top.logits, rows.len() * vocab);
    project(logits, vocab, hidden, head, false, buffers);
    ws.top.softmax.clear();
    ws.top.softmax.extend(logits.chunks_exact(vocab).map(Softmax::of));
    let row = |position: usize| rows.partition_point(|row| (*row as usize) < position);
    let likelihood = |row: usize, token: u32| {
        let Softmax { max, sum } = ws.top.softmax[row];
        f64::from(logits[row * vocab + token as usize] - max) - sum.ln()
    };
    let targets = sample.targets.iter();
    let margin = sample.targets.first().zip(sample.deciding).map(|(first, deciding)| {
        let start = row(first.position) * vocab;
        let [no, yes] = deciding.map(|token| f64::from(logits[start + token as usize]));
        yes - no
    });
    Readout {
        log_likelihoods: targets.map(|t| likelihood(row(t.position), t.token)).collect(),
        margin,
    }
}

/// From the logits that [`read_tokens`] left to `weight` times the gradient of the final hidden states, in
/// `ws.top.d_norm`.
pub(super) fn tokens_grad(
    backbone: &Backbone,
    ws: &mut Workspace,
    rows: &[u32],
    sample: &TrainingSample<'_>,
    derivative: &Readout,
    weight: f32,
) {
    let head = backbone.head().mat();
    let (vocab, width) = (head.outputs(), ws.top.width);
    let logits = &mut ws.top.logits[..rows.len() * vocab];
    let targets = || sample.targets.iter().zip(&derivative.log_likelihoods);
    for ((row, softmax), position) in logits.chunks_exact_mut(vocab).zip(&ws.top.softmax).zip(rows)
    {
        let here = || targets().filter(|(target, _)| target.position == *position as usize);
        let share = |d: &f64| f64::from(weight) * -d;
        softmax.times(here().map(|(_, d)| share(d)).sum(), row);
        for (target, d) in here() {
            row[target.token as usize] -= share(d) as f32;
        }
    }
    if let (Some(first), Some([no, yes]), Some(d)) =
        (sample.targets.first(), sample.deciding, derivative.margin)
    {
        let start = rows.partition_point(|row| (*row as usize) < first.position) * vocab;
        let d = weight * d as f32;
        logits[start + yes as usize] += d;
        logits[start + no as usize] -= d;
    }
    let d_norm = fit(&mut ws.top.d_norm, rows.len() * width);
    let logits = Mat::new(logits, rows.len(), vocab);
    project_grad(d_norm, logits, head, false, &mut ws.scratch.linear.frozen);
}
