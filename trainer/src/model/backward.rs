//! Backward pass: gradients of the activations and of the mixed adapters, never of frozen weights.

use super::forward::{Context, Pass};
use super::lora;
use super::workspace::{BlockState, Keep, LoraPath, Scratch, Workspace, fit};
use crate::adapter::Mixture;
use crate::kernels::attention_grad::attention_grad;
use crate::kernels::heads::merge_heads_grad;
use crate::kernels::pointwise::{add, rms_norm_grad, swiglu_grad};
use crate::kernels::{Mat, matmul};

impl Pass<'_> {
    /// From `ws.top.d_norm` to the gradients of every module's mixed A and B. The pass ends at the
    /// lowest block's projections: nothing below is trained.
    pub fn backward(&self, ws: &mut Workspace, tokens: usize, rows: &[u32], keep: Keep) {
        let (layers, hidden) = (self.backbone.config.num_layers, self.backbone.config.hidden_size);
        let d_rows = fit(&mut ws.scratch.d_rows, rows.len() * hidden);
        d_rows.fill(0.0);
        rms_norm_grad(&ws.top.x, &self.backbone.norm, &ws.top.inv_rms, &ws.top.d_norm, d_rows);
        for layer in (0..layers).rev() {
            let rows = if layer + 1 == layers { rows } else { &ws.positions[..tokens] };
            let context = Context { rope: &ws.rope, positions: &ws.positions, rows };
            let state = if keep == Keep::Everything {
                &mut ws.blocks[layer]
            } else {
                let state = &mut ws.blocks[0];
                state.x.clone_from(&ws.inputs[layer]);
                self.block(layer, &context, &ws.mixture, state, &mut ws.scratch);
                state
            };
            self.block_grad(layer, &context, &mut ws.mixture, state, &mut ws.scratch);
            std::mem::swap(&mut ws.scratch.d_rows, &mut ws.scratch.d_x);
        }
    }

    /// One block: `scratch.d_rows` to `scratch.d_x`.
    fn block_grad(
        &self,
        layer: usize,
        context: &Context<'_>,
        mixture: &mut Mixture,
        state: &BlockState,
        scratch: &mut Scratch,
    ) {
        self.mlp_grad(layer, context.rows.len(), state, scratch);
        self.attend_grad(layer, context, state, scratch);
        self.project_grad(layer, context, mixture, state, scratch);
    }

    /// Adds to `scratch.d_rows` (gradient of the block's output) what reaches `mid` through the MLP.
    fn mlp_grad(&self, layer: usize, rows: usize, state: &BlockState, scratch: &mut Scratch) {
        let config = &self.backbone.config;
        let weights = &self.backbone.blocks[layer];
        let (hidden, width) = (config.hidden_size, config.padded_intermediate());
        let d_act = fit(&mut scratch.act, rows * width);
        let down = Mat::new(&weights.down, width, hidden);
        matmul(d_act, width, Mat::new(&scratch.d_rows, rows, hidden), down.t(), 1.0, false);
        let d_gate_up = fit(&mut scratch.d_gate_up, rows * 2 * width);
        swiglu_grad(&state.gate_up, width, d_act, d_gate_up);
        let d_norm = fit(&mut scratch.mid_norm, rows * hidden);
        let gate_up = Mat::new(&weights.gate_up, hidden, 2 * width);
        matmul(d_norm, hidden, Mat::new(d_gate_up, rows, 2 * width), gate_up.t(), 1.0, false);
        let d_rows = &mut scratch.d_rows;
        rms_norm_grad(&state.mid, &weights.mlp_norm, &state.mid_inv_rms, d_norm, d_rows);
    }

    /// From `scratch.d_rows` (gradient of `mid`) to that of the projections, in `scratch.qkv` (and
    /// `scratch.q_rows`).
    fn attend_grad(
        &self,
        layer: usize,
        context: &Context<'_>,
        state: &BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let shape = self.shape(context);
        let (rows, q_dim, hidden) = (shape.queries, config.q_dim(), config.hidden_size);
        let d_attention = fit(&mut scratch.d_attention, rows * q_dim);
        let o = Mat::new(&self.backbone.blocks[layer].o, q_dim, hidden);
        matmul(d_attention, q_dim, Mat::new(&scratch.d_rows, rows, hidden), o.t(), 1.0, false);
        let d_q = fit(&mut scratch.d_q, state.q.len());
        let d_k = fit(&mut scratch.d_k, state.k.len());
        let d_v = fit(&mut scratch.d_v, state.v.len());
        attention_grad(
            shape,
            &state.q,
            &state.k,
            &state.v,
            context.rows,
            &state.log_sum,
            &state.attention,
            d_attention,
            d_q,
            d_k,
            d_v,
            &mut scratch.attention,
        );
        let (q_view, k_view, v_view) = self.views(context);
        let q_scale = 1.0 / (config.head_dim as f32).sqrt();
        let tokens = context.positions.len();
        let q_rope = Some((context.rope, context.rows));
        let k_rope = Some((context.rope, context.positions));
        let d_qkv = fit(&mut scratch.qkv, tokens * config.qkv_dim());
        if context.selects() {
            let d_q_rows = fit(&mut scratch.q_rows, rows * q_dim);
            merge_heads_grad(q_view, d_q, q_rope, q_scale, d_q_rows);
        } else {
            merge_heads_grad(q_view, d_q, q_rope, q_scale, d_qkv);
        }
        // The kernel's dk is with respect to base-2 scores.
        merge_heads_grad(k_view, d_k, k_rope, std::f32::consts::LN_2, d_qkv);
        merge_heads_grad(v_view, d_v, None, 1.0, d_qkv);
    }

    /// Gradients of the adapters from those of the projections; and, above the lowest block, of the
    /// block's input: `scratch.d_x`.
    fn project_grad(
        &self,
        layer: usize,
        context: &Context<'_>,
        mixture: &mut Mixture,
        state: &BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let (hidden, q, stride) = (config.hidden_size, config.q_dim(), config.qkv_dim());
        let (tokens, rows) = (context.positions.len(), context.rows.len());
        let merged = self.path == LoraPath::Merged && !self.sites[layer].is_empty();
        let lowest = layer == 0;
        let selects = context.selects();
        let weight = if merged { &state.qkv_weight } else { &self.backbone.blocks[layer].qkv };
        // Gradient of the normed input: of all tokens, and of the selected rows (queries) apart.
        let mut d_norm_rows = Vec::new();
        if !lowest {
            let d_norm = fit(&mut scratch.out, tokens * hidden);
            let first = if selects { q } else { 0 };
            let dy = Mat::strided(&scratch.qkv[first..], tokens, stride - first, stride);
            let w = Mat::strided(&weight[first..], hidden, stride - first, stride);
            matmul(d_norm, hidden, dy, w.t(), 1.0, false);
            if selects {
                let w = Mat::strided(weight, hidden, q, stride);
                let dy = Mat::new(&scratch.q_rows, rows, q);
                matmul(fit(&mut d_norm_rows, rows * hidden), hidden, dy, w.t(), 1.0, false);
            }
        }
        for site in &self.sites[layer] {
            let on_rows = selects && site.is_query();
            let (x, dy, stride) = if on_rows {
                (&state.x_norm_rows, &scratch.q_rows[..], q)
            } else {
                (&state.x_norm, &scratch.qkv[site.offset..], stride)
            };
            let (lora_x, lora_dy) = (&mut scratch.lora_x, &mut scratch.lora_dy);
            lora::gradients(site, mixture, x, dy, stride, lora_x, lora_dy);
            if !lowest && !merged {
                let dx = if on_rows { &mut d_norm_rows } else { &mut scratch.out };
                lora::input_gradient(site, mixture, &scratch.lora_dy, dx);
            }
        }
        if !lowest {
            self.input_norm_grad(layer, context, &d_norm_rows, state, scratch);
        }
    }

    /// Residual and norm at the block's input, to `scratch.d_x`.
    fn input_norm_grad(
        &self,
        layer: usize,
        context: &Context<'_>,
        d_norm_rows: &[f32],
        state: &BlockState,
        scratch: &mut Scratch,
    ) {
        let hidden = self.backbone.config.hidden_size;
        let tokens = context.positions.len();
        let d_x = fit(&mut scratch.d_x, tokens * hidden);
        if context.selects() {
            d_x.fill(0.0);
            for (i, row) in context.rows.iter().enumerate() {
                let at = *row as usize * hidden;
                let here = i * hidden..(i + 1) * hidden;
                d_x[at..at + hidden].copy_from_slice(&scratch.d_rows[here.clone()]);
                add(&mut scratch.out[at..at + hidden], &d_norm_rows[here]);
            }
        } else {
            d_x.copy_from_slice(&scratch.d_rows);
        }
        let norm = &self.backbone.blocks[layer].input_norm;
        rms_norm_grad(&state.x, norm, &state.x_inv_rms, &scratch.out, d_x);
    }
}
