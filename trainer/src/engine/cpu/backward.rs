//! Backward pass: gradients of the activations and of the mixed adapters, never of frozen weights.

use super::forward::{Context, Pass, copy};
use super::linear::Rows;
use super::workspace::{BlockState, Keep, NormedHeads, SEGMENT, Scratch, Workspace};
use crate::adapter::Mixture;
use crate::backbone::Projection::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
use crate::kernels::attention::AttentionInputs;
use crate::kernels::attention_grad::{HeadGradients, attention_grad};
use crate::kernels::buffer::{Buffer, fit};
use crate::kernels::heads::{HeadsView, merge_heads_grad};
use crate::kernels::pointwise::{add, rms_norm_grad, swiglu, swiglu_grad};

impl Pass<'_> {
    /// From `ws.top.d_norm` to the gradients of every module's mixed A and B; `after` is called with
    /// each block's, from the last to the first. The pass ends at the lowest adapted projection:
    /// nothing below is trained.
    pub fn backward(
        &self,
        ws: &mut Workspace,
        tokens: &[u32],
        rows: &[u32],
        keep: Keep,
        after: &mut dyn FnMut(usize, &mut Mixture),
    ) {
        let (layers, hidden) =
            (self.backbone.config.num_layers(), self.backbone.config.hidden_size);
        let d_rows = fit(&mut ws.scratch.d_rows, rows.len() * hidden);
        d_rows.fill(0.0);
        rms_norm_grad(&ws.top.x, &self.backbone.norm, &ws.top.inv_rms, &ws.top.d_norm, d_rows);
        for layer in (0..layers).rev() {
            if keep == Keep::Inputs && (layer + 1 == layers || (layer + 1) % SEGMENT == 0) {
                self.recompute(ws, tokens, layer, rows);
            }
            let rows = if layer + 1 == layers { rows } else { &ws.positions[..] };
            let (rope, positions) = (&ws.rope, &ws.positions[..]);
            let ends = &[tokens.len()];
            let context = Context { rope, tokens, ends, positions, rows, keeps: true };
            let at = if keep == Keep::Everything { layer } else { layer % SEGMENT };
            let state = &mut ws.blocks[at];
            self.block_grad(layer, &context, &mut ws.mixture, state, &mut ws.scratch);
            after(layer, &mut ws.mixture);
            std::mem::swap(&mut ws.scratch.d_rows, &mut ws.scratch.d_x);
        }
    }

    /// Runs the blocks of a segment again, up to its last one, so that `ws.blocks` has their states.
    fn recompute(&self, ws: &mut Workspace, tokens: &[u32], last: usize, rows: &[u32]) {
        let (segment, layers) = (last / SEGMENT, self.backbone.config.num_layers());
        let (first, count) = (segment * SEGMENT, last % SEGMENT + 1);
        if ws.blocks.len() < count {
            ws.blocks.resize_with(count, BlockState::default);
        }
        copy(&ws.inputs[segment], &mut ws.blocks[0].x);
        for at in 0..count {
            let layer = first + at;
            let rows = if layer + 1 == layers { rows } else { &ws.positions };
            let (rope, positions) = (&ws.rope, &ws.positions[..]);
            let ends = &[tokens.len()];
            let context = Context { rope, tokens, ends, positions, rows, keeps: true };
            self.block(layer, &context, &ws.mixture, &mut ws.blocks[at], &mut ws.scratch);
            if at + 1 < count {
                std::mem::swap(&mut ws.blocks[at + 1].x, &mut ws.scratch.out);
            }
        }
    }

    /// One block: `scratch.d_rows` to `scratch.d_x`.
    fn block_grad(
        &self,
        layer: usize,
        context: &Context<'_>,
        mixture: &mut Mixture,
        state: &mut BlockState,
        scratch: &mut Scratch,
    ) {
        let below = layer > 0;
        let sites = &self.sites[layer];
        self.mlp_grad(layer, context.rows.len(), mixture, state, scratch);
        if below || sites.any(&[QProj, KProj, VProj, OProj]) {
            self.output_grad(layer, mixture, state, scratch);
        }
        if below || sites.any(&[QProj, KProj, VProj]) {
            self.attend_grad(layer, context, state, scratch);
            self.project_grad(layer, context, mixture, state, scratch);
        }
        if below {
            self.input_norm_grad(layer, context, state, scratch);
        }
    }

    /// Adds to `scratch.d_rows` (gradient of the block's output) what reaches `mid` through the MLP.
    fn mlp_grad(
        &self,
        layer: usize,
        rows: usize,
        mixture: &mut Mixture,
        state: &mut BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let (hidden, width) = (config.hidden_size, config.layers[layer].intermediate_size);
        let sites = &self.sites[layer];
        if sites.any(&[GateProj, UpProj]) {
            self.mid_norm(layer, state, scratch);
        }
        let Scratch { d_rows, act, gate_up, d_gate_up, d_norm, mid_norm, linear: buffers, .. } =
            scratch;
        state.gate_up.restore(gate_up, self.backbone.weight_type);
        let d_act = fit(act, rows * width);
        let d_gate_up = fit(d_gate_up, rows * 2 * width);
        // The input of the down projection lies where the gradient of gate and up will be.
        let act = &mut d_gate_up[..rows * width];
        if sites.any(&[DownProj]) {
            swiglu(gate_up, width, act);
        }
        let dy = Rows { data: d_rows, count: rows, stride: hidden };
        self.linear(layer, DownProj).grad(act, dy, Some((&mut *d_act, false)), mixture, buffers);
        swiglu_grad(gate_up, width, d_act, d_gate_up);
        let d_norm = fit(d_norm, rows * hidden);
        for (projection, offset) in [(GateProj, 0), (UpProj, width)] {
            let dy = Rows { data: &d_gate_up[offset..], count: rows, stride: 2 * width };
            let dx = Some((&mut *d_norm, offset > 0));
            self.linear(layer, projection).grad(mid_norm, dy, dx, mixture, buffers);
        }
        let weight = &self.backbone.blocks[layer].mlp_norm;
        rms_norm_grad(&state.mid, weight, &state.mid_inv_rms, d_norm, d_rows);
    }

    /// From `scratch.d_rows` (gradient of `mid`) to that of the attention's output.
    fn output_grad(
        &self,
        layer: usize,
        mixture: &mut Mixture,
        state: &BlockState,
        scratch: &mut Scratch,
    ) {
        let Scratch { d_rows, d_attention, linear: buffers, .. } = scratch;
        let stride = self.backbone.config.hidden_size;
        let dy = Rows { data: d_rows, count: d_rows.len() / stride, stride };
        let dx = Some((fit(d_attention, state.attention.len()), false));
        self.linear(layer, OProj).grad(&state.attention, dy, dx, mixture, buffers);
    }

    /// From `scratch.d_attention` to the gradient of the projections, in `scratch.qkv` (and
    /// `scratch.q_rows`).
    fn attend_grad(
        &self,
        layer: usize,
        context: &Context<'_>,
        state: &BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let shape = self.shape(layer, context);
        let Scratch { d_attention, d_q, d_k, d_v, qkv, q_rows, heads_row, .. } = scratch;
        // Below the lowest block nothing is trained: there, only what an adapted projection needs.
        let wanted = |projection| layer > 0 || self.sites[layer].any(&[projection]);
        let mut gradients = HeadGradients {
            q: wanted(QProj).then(|| fit(d_q, state.q.len())),
            k: wanted(KProj).then(|| fit(d_k, state.k.len())),
            v: wanted(VProj).then(|| fit(d_v, state.v.len())),
        };
        let BlockState { q, k, v, log_sum, attention, .. } = state;
        let inputs = AttentionInputs { shape, q, k, v, positions: context.rows };
        let buffers = &mut scratch.attention;
        attention_grad(inputs, log_sum, attention, d_attention, &mut gradients, buffers);
        let HeadGradients { q: d_q, k: d_k, v: d_v } = gradients;
        let [q_view, k_view, v_view] = self.views(layer, context);
        let q_scale = 1.0 / (config.head_dim as f32).sqrt();
        let d_qkv = fit(qkv, context.positions.len() * config.qkv_dim(layer));
        let qk_norm = &self.backbone.blocks[layer].qk_norm;
        // The kernel's dk is with respect to base-2 scores.
        let k_scale = std::f32::consts::LN_2;
        if let Some(d_k) = d_k {
            let rope = Some((context.rope, context.positions));
            merge_heads_grad(k_view, d_k, rope, k_scale, d_qkv);
            if let Some([_, norm]) = qk_norm {
                norm_heads_grad(k_view, norm, &state.k_normed, d_qkv, heads_row);
            }
        }
        if let Some(d_v) = d_v {
            merge_heads_grad(v_view, d_v, None, 1.0, d_qkv);
        }
        if let Some(d_q) = d_q {
            let d_queries = if context.selects() {
                fit(q_rows, context.rows.len() * config.q_dim(layer))
            } else {
                d_qkv
            };
            merge_heads_grad(q_view, d_q, Some((context.rope, context.rows)), q_scale, d_queries);
            if let Some([norm, _]) = qk_norm {
                norm_heads_grad(q_view, norm, &state.q_normed, d_queries, heads_row);
            }
        }
    }

    /// Gradients of the adapters from those of the projections; and, above the lowest block, of the
    /// normed input: `scratch.d_norm` (and `scratch.d_norm_rows`).
    fn project_grad(
        &self,
        layer: usize,
        context: &Context<'_>,
        mixture: &mut Mixture,
        state: &mut BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let (hidden, q, kv) = (config.hidden_size, config.q_dim(layer), config.kv_dim(layer));
        let (below, selects) = (layer > 0, context.selects());
        if self.sites[layer].any(&[QProj, KProj, VProj]) {
            self.input_norm(layer, context, state, scratch);
        }
        let Scratch { x_norm, x_norm_rows, qkv, q_rows, d_norm, d_norm_rows, linear, .. } = scratch;
        let d_norm = fit(d_norm, context.positions.len() * hidden);
        let d_norm_rows = fit(d_norm_rows, if selects { context.rows.len() * hidden } else { 0 });
        let (count, stride) = (context.positions.len(), config.qkv_dim(layer));
        let mut grad = |projection, x: &[f32], dy: Rows<'_>, dx: &mut [f32], accumulate| {
            let dx = below.then_some((dx, accumulate));
            self.linear(layer, projection).grad(x, dy, dx, mixture, linear);
        };
        let columns = |offset: usize| Rows { data: &qkv[offset..], count, stride };
        grad(KProj, x_norm, columns(q), d_norm, false);
        grad(VProj, x_norm, columns(q + kv), d_norm, true);
        if selects {
            let dy = Rows { data: q_rows, count: context.rows.len(), stride: q };
            grad(QProj, x_norm_rows, dy, d_norm_rows, false);
        } else {
            grad(QProj, x_norm, columns(0), d_norm, true);
        }
    }

    /// Residual and norm at the block's input, to `scratch.d_x`.
    fn input_norm_grad(
        &self,
        layer: usize,
        context: &Context<'_>,
        state: &BlockState,
        scratch: &mut Scratch,
    ) {
        let hidden = self.backbone.config.hidden_size;
        let Scratch { d_x, d_rows, d_norm, d_norm_rows, .. } = scratch;
        let d_x = fit(d_x, context.positions.len() * hidden);
        if context.selects() {
            d_x.fill(0.0);
            for (i, row) in context.rows.iter().enumerate() {
                let at = *row as usize * hidden;
                let here = i * hidden..(i + 1) * hidden;
                d_x[at..at + hidden].copy_from_slice(&d_rows[here.clone()]);
                add(&mut d_norm[at..at + hidden], &d_norm_rows[here]);
            }
        } else {
            d_x.copy_from_slice(d_rows);
        }
        let weight = &self.backbone.blocks[layer].input_norm;
        rms_norm_grad(&state.x, weight, &state.x_inv_rms, d_norm, d_x);
    }
}

/// Backward of the heads' RMSNorm, in place: the gradient of its output becomes that of its input.
fn norm_heads_grad(
    view: HeadsView,
    weight: &[f32],
    state: &NormedHeads,
    rows: &mut [f32],
    scratch: &mut Buffer,
) {
    let width = view.heads * view.dim;
    let d_heads = fit(scratch, width);
    let saved = state.raw.chunks_exact(width).zip(state.inv_rms.chunks_exact(view.heads));
    for (row, (raw, inv_rms)) in rows.chunks_exact_mut(view.stride).zip(saved) {
        let heads = &mut row[view.offset..view.offset + width];
        d_heads.copy_from_slice(heads);
        heads.fill(0.0);
        rms_norm_grad(raw, weight, inv_rms, d_heads, heads);
    }
}
