//! Forward pass, block by block.

use super::lora::{self, Site};
use super::workspace::{BlockState, Keep, LoraPath, Plan, Scratch, Workspace, fit};
use crate::adapter::{Adapter, Mixture};
use crate::backbone::{Backbone, BlockWeights};
use crate::kernels::attention::{AttentionShape, attention};
use crate::kernels::heads::{HeadsView, RopeTable, split_heads};
use crate::kernels::pointwise::{rms_norm, swiglu};
use crate::kernels::{Mat, matmul};

/// One sequence through the model.
pub(super) struct Pass<'a> {
    pub backbone: &'a Backbone,
    /// Adapted projections of each block.
    pub sites: Vec<Vec<Site>>,
    pub path: LoraPath,
}

/// What every block of a pass reads.
pub(super) struct Context<'a> {
    pub rope: &'a RopeTable,
    /// Positions of all tokens: 0, 1, 2, …
    pub positions: &'a [u32],
    /// Positions the block is to produce.
    pub rows: &'a [u32],
}

impl Context<'_> {
    /// Whether only some positions are to be produced.
    pub fn selects(&self) -> bool {
        self.rows.len() != self.positions.len()
    }
}

impl<'a> Pass<'a> {
    pub fn new(backbone: &'a Backbone, adapter: Option<&Adapter>, plan: Plan) -> Self {
        let config = &backbone.config;
        let (q, kv) = (config.q_dim(), config.kv_dim());
        let sites = (0..config.num_layers)
            .map(|layer| match adapter {
                Some(adapter) => lora::sites(adapter.layout(), layer, q, kv).collect(),
                None => Vec::new(),
            })
            .collect();
        let path =
            plan.lora_path.unwrap_or_else(|| LoraPath::choose(plan.tokens, config.hidden_size, q));
        Self { backbone, sites, path }
    }

    /// How much the forward keeps for a backward within a budget in bytes.
    pub fn keep(&self, tokens: usize, budget: usize) -> Keep {
        let c = &self.backbone.config;
        let per_token =
            4 * c.hidden_size + 2 * c.q_dim() + 2 * c.kv_dim() + 2 * c.padded_intermediate();
        let merged = if self.path == LoraPath::Merged { c.hidden_size * c.qkv_dim() } else { 0 };
        let bytes = (per_token * tokens + merged) * c.num_layers * size_of::<f32>();
        if bytes <= budget { Keep::Everything } else { Keep::Inputs }
    }

    /// Runs all blocks and the final norm; `rows` (ascending positions) end up in `ws.top`.
    pub fn forward(&self, ws: &mut Workspace, tokens: &[u32], rows: &[u32], keep: Keep) {
        let config = &self.backbone.config;
        let (layers, hidden) = (config.num_layers, config.hidden_size);
        ws.rope.prepare(config.rope_theta, config.rope_scaling, config.head_dim, tokens.len());
        ws.positions.clear();
        ws.positions.extend(0..tokens.len() as u32);
        let states = if keep == Keep::Everything { layers } else { 1 };
        if ws.blocks.len() < states {
            ws.blocks.resize_with(states, BlockState::default);
        }
        if keep == Keep::Inputs {
            ws.inputs.resize_with(layers, Vec::new);
        }
        embed(&self.backbone.embedding, hidden, tokens, &mut ws.blocks[0].x);
        for layer in 0..layers {
            let at = if keep == Keep::Everything { layer } else { 0 };
            if keep == Keep::Inputs {
                ws.inputs[layer].clone_from(&ws.blocks[0].x);
            }
            let rows = if layer + 1 == layers { rows } else { &ws.positions };
            let context = Context { rope: &ws.rope, positions: &ws.positions, rows };
            self.block(layer, &context, &ws.mixture, &mut ws.blocks[at], &mut ws.scratch);
            let next = if layer + 1 == layers {
                &mut ws.top.x
            } else if keep == Keep::Everything {
                &mut ws.blocks[layer + 1].x
            } else {
                &mut ws.blocks[0].x
            };
            std::mem::swap(next, &mut ws.scratch.out);
        }
        let top = &mut ws.top;
        top.width = hidden;
        let norm = fit(&mut top.norm, rows.len() * hidden);
        let inv_rms = fit(&mut top.inv_rms, rows.len());
        rms_norm(&top.x, &self.backbone.norm, config.rms_norm_eps, norm, inv_rms);
    }

    /// One block: `state.x` to `scratch.out`.
    pub fn block(
        &self,
        layer: usize,
        context: &Context<'_>,
        mixture: &Mixture,
        state: &mut BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let weights = &self.backbone.blocks[layer];
        let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
        let tokens = context.positions.len();
        let x_norm = fit(&mut state.x_norm, tokens * hidden);
        let inv_rms = fit(&mut state.x_inv_rms, tokens);
        rms_norm(&state.x, &weights.input_norm, eps, x_norm, inv_rms);
        if context.selects() {
            gather(&state.x_norm, hidden, context.rows, &mut state.x_norm_rows);
        }
        self.project(layer, context, mixture, state, scratch);
        self.attend(context, state, scratch);
        let rows = context.rows.len();
        if context.selects() {
            gather(&state.x, hidden, context.rows, &mut state.mid);
        } else {
            state.mid.clone_from(&state.x);
        }
        let attention = Mat::new(&state.attention, rows, config.q_dim());
        let o = Mat::new(&weights.o, config.q_dim(), hidden);
        matmul(&mut state.mid, hidden, attention, o, 1.0, true);
        self.mlp(weights, rows, state, scratch);
    }

    /// Queries, keys and values with LoRA: `state.x_norm` to `scratch.qkv` (and `scratch.q_rows`).
    fn project(
        &self,
        layer: usize,
        context: &Context<'_>,
        mixture: &Mixture,
        state: &mut BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let (hidden, q, stride) = (config.hidden_size, config.q_dim(), config.qkv_dim());
        let sites = &self.sites[layer];
        let frozen = &self.backbone.blocks[layer].qkv;
        let merged = self.path == LoraPath::Merged && !sites.is_empty();
        if merged {
            lora::merge(frozen, stride, sites, mixture, state);
        }
        let weight = if merged { &state.qkv_weight } else { frozen };
        let x = Mat::new(&state.x_norm, context.positions.len(), hidden);
        let qkv = fit(&mut scratch.qkv, context.positions.len() * stride);
        if context.selects() {
            let kv = Mat::strided(&weight[q..], hidden, stride - q, stride);
            matmul(&mut qkv[q..], stride, x, kv, 1.0, false);
            let rows = context.rows.len();
            let x_rows = Mat::new(&state.x_norm_rows, rows, hidden);
            let q_rows = fit(&mut scratch.q_rows, rows * q);
            matmul(q_rows, q, x_rows, Mat::strided(weight, hidden, q, stride), 1.0, false);
        } else {
            matmul(qkv, stride, x, Mat::new(weight, hidden, stride), 1.0, false);
        }
        if !merged {
            for site in sites {
                let on_rows = context.selects() && site.is_query();
                let (x, y, stride) = if on_rows {
                    (&state.x_norm_rows, &mut scratch.q_rows[..], q)
                } else {
                    (&state.x_norm, &mut scratch.qkv[site.offset..], stride)
                };
                lora::apply(site, mixture, x, &mut scratch.lora_x, y, stride);
            }
        }
    }

    /// Rotary embedding and attention: `scratch.qkv` to `state.attention`.
    fn attend(&self, context: &Context<'_>, state: &mut BlockState, scratch: &mut Scratch) {
        let config = &self.backbone.config;
        let shape = self.shape(context);
        let (q_view, k_view, v_view) = self.views(context);
        let q = fit(&mut state.q, config.num_heads * shape.queries * shape.padded);
        let q_src = if context.selects() { &scratch.q_rows } else { &scratch.qkv };
        split_heads(
            q_view,
            q_src,
            Some((context.rope, context.rows)),
            query_scale(config.head_dim),
            q,
        );
        let k = fit(&mut state.k, config.num_kv_heads * shape.keys * shape.padded);
        split_heads(k_view, &scratch.qkv, Some((context.rope, context.positions)), 1.0, k);
        let v = fit(&mut state.v, config.num_kv_heads * shape.keys * shape.padded);
        split_heads(v_view, &scratch.qkv, None, 1.0, v);
        let out = fit(&mut state.attention, shape.queries * config.q_dim());
        let log_sum = fit(&mut state.log_sum, config.num_heads * shape.queries);
        attention(shape, q, k, v, context.rows, out, log_sum, &mut scratch.attention);
    }

    /// `scratch.out = mid + down(swiglu(gate_up(norm(mid))))`.
    fn mlp(
        &self,
        weights: &BlockWeights,
        rows: usize,
        state: &mut BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let (hidden, width) = (config.hidden_size, config.padded_intermediate());
        let norm = fit(&mut scratch.mid_norm, rows * hidden);
        let inv_rms = fit(&mut state.mid_inv_rms, rows);
        rms_norm(&state.mid, &weights.mlp_norm, config.rms_norm_eps, norm, inv_rms);
        let gate_up = fit(&mut state.gate_up, rows * 2 * width);
        let weight = Mat::new(&weights.gate_up, hidden, 2 * width);
        matmul(gate_up, 2 * width, Mat::new(norm, rows, hidden), weight, 1.0, false);
        let act = fit(&mut scratch.act, rows * width);
        swiglu(gate_up, width, act);
        scratch.out.clone_from(&state.mid);
        let down = Mat::new(&weights.down, width, hidden);
        matmul(&mut scratch.out, hidden, Mat::new(act, rows, width), down, 1.0, true);
    }

    pub fn shape(&self, context: &Context<'_>) -> AttentionShape {
        let config = &self.backbone.config;
        AttentionShape {
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            padded: config.padded_head_dim(),
            dim: config.head_dim,
            queries: context.rows.len(),
            keys: context.positions.len(),
        }
    }

    /// Where queries, keys and values lie in `scratch.qkv` (queries of selected rows: in
    /// `scratch.q_rows`).
    pub fn views(&self, context: &Context<'_>) -> (HeadsView, HeadsView, HeadsView) {
        let config = &self.backbone.config;
        let (q, kv, stride) = (config.q_dim(), config.kv_dim(), config.qkv_dim());
        let view = |heads, offset, stride| HeadsView {
            heads,
            dim: config.head_dim,
            padded: config.padded_head_dim(),
            offset,
            stride,
        };
        let q_stride = if context.selects() { q } else { stride };
        (
            view(config.num_heads, 0, q_stride),
            view(config.num_kv_heads, q, stride),
            view(config.num_kv_heads, q + kv, stride),
        )
    }
}

/// Factor of the queries: the usual 1/√dim, and log2(e) because the softmax works in base 2.
fn query_scale(dim: usize) -> f32 {
    (std::f64::consts::LOG2_E / (dim as f64).sqrt()) as f32
}

fn embed(table: &[f32], width: usize, tokens: &[u32], out: &mut Vec<f32>) {
    gather(table, width, tokens, out);
}

/// `out[i] = src[rows[i]]`.
fn gather(src: &[f32], width: usize, rows: &[u32], out: &mut Vec<f32>) {
    out.clear();
    for row in rows {
        out.extend_from_slice(&src[*row as usize * width..][..width]);
    }
}
