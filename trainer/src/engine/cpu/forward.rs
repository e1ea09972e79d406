//! Forward pass, block by block.

use super::linear::{Linear, Sites};
use super::workspace::{BlockState, Keep, NormedHeads, SEGMENT, Scratch, Workspace};
use crate::adapter::{AdapterView, Mixture};
use crate::backbone::{Backbone, LayerShape, LowestProjections, Projection, Weight, WeightType};
use crate::kernels::FrozenBuffers;
use crate::kernels::attention::{AttentionInputs, AttentionShape, attention};
use crate::kernels::buffer::{Buffer, fit};
use crate::kernels::heads::{HeadsView, RopeTable, split_heads};
use crate::kernels::pointwise::{rms_norm, swiglu};

/// One sequence through the model, or several that need nothing kept.
pub(super) struct Pass<'a> {
    pub backbone: &'a Backbone,
    /// Adapted projections of each block.
    pub sites: Vec<Sites>,
}

/// What every block of a pass reads.
pub(super) struct Context<'a> {
    pub rope: &'a RopeTable,
    /// The sequence, or several one after the other.
    pub tokens: &'a [u32],
    /// Where each sequence ends.
    pub ends: &'a [usize],
    /// Positions of all tokens in their sequence: 0, 1, 2, …
    pub positions: &'a [u32],
    /// Positions the block is to produce: all, or some of one sequence.
    pub rows: &'a [u32],
    /// Whether the block's state is to be kept for its backward.
    pub keeps: bool,
}

impl Context<'_> {
    /// Whether only some positions are to be produced.
    pub fn selects(&self) -> bool {
        self.rows.len() != self.positions.len()
    }
}

impl<'a> Pass<'a> {
    pub fn new(backbone: &'a Backbone, adapter: Option<AdapterView<'_>>) -> Self {
        let sites = |layer| adapter.map_or(Sites::default(), |a| Sites::of(a.layout(), layer));
        Self { backbone, sites: (0..backbone.config.num_layers()).map(sites).collect() }
    }

    pub fn linear(&self, layer: usize, projection: Projection) -> Linear<'a> {
        Linear::new(&self.backbone.blocks[layer], &self.sites[layer], projection)
    }

    /// How much the forward keeps for a backward within a budget in bytes.
    pub fn keep(&self, tokens: usize, budget: usize) -> Keep {
        let c = &self.backbone.config;
        let gate_up_size =
            if self.backbone.weight_type == WeightType::Bf16 { 2 } else { size_of::<f32>() };
        let in_block = |layer: usize| {
            let projected = c.q_dim(layer) + c.kv_dim(layer);
            let normed = if c.qk_norm { projected } else { 0 };
            (2 * c.hidden_size + 2 * projected + normed) * size_of::<f32>()
                + 2 * c.layers[layer].intermediate_size * gate_up_size
        };
        let bytes = tokens * (0..c.num_layers()).map(in_block).sum::<usize>();
        if bytes <= budget { Keep::Everything } else { Keep::Inputs }
    }

    /// Runs all blocks and the final norm; `rows` (ascending positions) end up in `ws.top`.
    pub fn forward(&self, ws: &mut Workspace, tokens: &[u32], rows: &[u32], keep: Keep) {
        self.run(ws, tokens, &[tokens.len()], Some(rows), keep);
    }

    /// The same of several sequences that share an adapter: `tokens` one after the other, and where each ends. All of
    /// their positions end up in `ws.top`.
    pub fn forward_all(&self, ws: &mut Workspace, tokens: &[u32], ends: &[usize]) {
        self.run(ws, tokens, ends, None, Keep::Nothing);
    }

    fn run(
        &self,
        ws: &mut Workspace,
        tokens: &[u32],
        ends: &[usize],
        rows: Option<&[u32]>,
        keep: Keep,
    ) {
        let config = &self.backbone.config;
        let (layers, hidden) = (config.num_layers(), config.hidden_size);
        ws.rope.prepare(config.rope_theta, config.rope_scaling, config.head_dim, tokens.len());
        ws.positions.clear();
        let starts = std::iter::once(&0).chain(ends);
        starts.zip(ends).for_each(|(start, end)| ws.positions.extend(0..(end - start) as u32));
        let count = rows.map_or(tokens.len(), <[u32]>::len);
        ws.blocks
            .resize_with(if keep == Keep::Everything { layers } else { 1 }, BlockState::default);
        ws.inputs.resize_with(
            if keep == Keep::Inputs { layers.div_ceil(SEGMENT) } else { 0 },
            Buffer::default,
        );
        embed(&self.backbone.embedding, tokens, &mut ws.blocks[0].x);
        for layer in 0..layers {
            let at = if keep == Keep::Everything { layer } else { 0 };
            if keep == Keep::Inputs && layer % SEGMENT == 0 {
                copy(&ws.blocks[0].x, &mut ws.inputs[layer / SEGMENT]);
            }
            let rows = rows.filter(|_| layer + 1 == layers).unwrap_or(&ws.positions);
            let keeps = keep == Keep::Everything;
            let (rope, positions) = (&ws.rope, &ws.positions[..]);
            let context = Context { rope, tokens, ends, positions, rows, keeps };
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
        let norm = fit(&mut top.norm, count * hidden);
        let inv_rms = fit(&mut top.inv_rms, count);
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
        let hidden = self.backbone.config.hidden_size;
        self.input_norm(layer, context, state, scratch);
        self.project(layer, context, mixture, scratch);
        self.attend(layer, context, state, scratch);
        if context.selects() {
            let mid = fit(&mut state.mid, context.rows.len() * hidden);
            gather(&state.x, hidden, context.rows, mid);
        } else {
            copy(&state.x, &mut state.mid);
        }
        let o = self.linear(layer, Projection::OProj);
        o.forward(&state.attention, &mut state.mid, hidden, true, mixture, &mut scratch.linear);
        self.mlp(layer, context, mixture, state, scratch);
    }

    /// `scratch.x_norm` (and `scratch.x_norm_rows`) of `state.x`.
    pub fn input_norm(
        &self,
        layer: usize,
        context: &Context<'_>,
        state: &mut BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let x_norm = fit(&mut scratch.x_norm, state.x.len());
        let inv_rms = fit(&mut state.x_inv_rms, context.positions.len());
        let weight = &self.backbone.blocks[layer].input_norm;
        rms_norm(&state.x, weight, config.rms_norm_eps, x_norm, inv_rms);
        if context.selects() {
            let (hidden, rows) = (config.hidden_size, context.rows);
            gather(x_norm, hidden, rows, fit(&mut scratch.x_norm_rows, rows.len() * hidden));
        }
    }

    /// `scratch.mid_norm` of `state.mid`.
    pub fn mid_norm(&self, layer: usize, state: &mut BlockState, scratch: &mut Scratch) {
        let config = &self.backbone.config;
        let norm = fit(&mut scratch.mid_norm, state.mid.len());
        let inv_rms = fit(&mut state.mid_inv_rms, state.mid.len() / config.hidden_size);
        let weight = &self.backbone.blocks[layer].mlp_norm;
        rms_norm(&state.mid, weight, config.rms_norm_eps, norm, inv_rms);
    }

    /// Queries, keys and values: `scratch.x_norm` to `scratch.qkv` (and `scratch.q_rows`).
    fn project(
        &self,
        layer: usize,
        context: &Context<'_>,
        mixture: &Mixture,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let (q, kv) = (config.q_dim(layer), config.kv_dim(layer));
        let stride = config.qkv_dim(layer);
        let lowest = self.backbone.lowest.as_ref().filter(|_| layer == 0);
        let lowest = lowest.map(|cell| &cell.get_or_init(|| self.lowest()).0);
        let Scratch { x_norm, x_norm_rows, qkv, q_rows, linear: buffers, .. } = scratch;
        let qkv = fit(qkv, context.positions.len() * stride);
        let mut run = |projection, x: &[f32], y: &mut [f32], stride| {
            let linear = self.linear(layer, projection);
            if lowest.is_none() {
                linear.forward_frozen(x, y, stride, false, &mut buffers.frozen);
            }
            linear.add_adapted(x, y, stride, mixture, buffers);
        };
        if let Some(rows) = lowest {
            gather(rows, stride, context.tokens, qkv);
        }
        if context.selects() {
            let q_rows = fit(q_rows, context.rows.len() * q);
            run(Projection::QProj, x_norm_rows, q_rows, q);
        } else {
            run(Projection::QProj, x_norm, qkv, stride);
        }
        run(Projection::KProj, x_norm, &mut qkv[q..], stride);
        run(Projection::VProj, x_norm, &mut qkv[q + kv..], stride);
    }

    /// Frozen queries, keys and values of the lowest block, of every token of the vocabulary.
    fn lowest(&self) -> LowestProjections {
        /// Tokens at a time.
        const TOKENS: usize = 256;
        let config = &self.backbone.config;
        let (hidden, stride) = (config.hidden_size, config.qkv_dim(0));
        let mut all = vec![0.0; config.vocab_size * stride];
        let (mut x, mut x_norm) = (vec![0.0; TOKENS * hidden], vec![0.0; TOKENS * hidden]);
        let (mut inv_rms, mut buffers) = ([0.0; TOKENS], FrozenBuffers::default());
        for (chunk, rows) in all.chunks_mut(TOKENS * stride).enumerate() {
            let count = rows.len() / stride;
            let (x, x_norm) = (&mut x[..count * hidden], &mut x_norm[..count * hidden]);
            self.backbone.embedding.mat().widen(chunk * TOKENS, x);
            let weight = &self.backbone.blocks[0].input_norm;
            rms_norm(x, weight, config.rms_norm_eps, x_norm, &mut inv_rms[..count]);
            let mut offset = 0;
            for projection in [Projection::QProj, Projection::KProj, Projection::VProj] {
                let linear = self.linear(0, projection);
                let y = &mut rows[offset..];
                linear.forward_frozen(x_norm, y, stride, false, &mut buffers);
                offset += config.projection(0, projection)[0];
            }
        }
        LowestProjections(all)
    }

    /// Head norms, rotary embedding and attention: `scratch.qkv` to `state.attention`.
    fn attend(
        &self,
        layer: usize,
        context: &Context<'_>,
        state: &mut BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let whole = self.shape(layer, context);
        let (q_dim, stride) = (config.q_dim(layer), config.qkv_dim(layer));
        let [q_view, k_view, v_view] = self.views(layer, context);
        let selects = context.selects();
        if let Some([q_norm, k_norm]) = &self.backbone.blocks[layer].qk_norm {
            let eps = config.rms_norm_eps;
            let queries = if selects { &mut scratch.q_rows } else { &mut scratch.qkv };
            norm_heads(q_view, q_norm, eps, queries, &mut state.q_normed);
            norm_heads(k_view, k_norm, eps, &mut scratch.qkv, &mut state.k_normed);
        }
        let out = fit(&mut state.attention, whole.queries * q_dim);
        let mut start = 0;
        for &end in context.ends {
            let keys = std::mem::replace(&mut start, end)..end;
            // What is selected is of the only sequence.
            let queries = if selects { 0..whole.queries } else { keys.clone() };
            let shape = AttentionShape { queries: queries.len(), keys: keys.len(), ..whole };
            let (rows, positions) =
                (&context.rows[queries.clone()], &context.positions[keys.clone()]);
            let qkv = &scratch.qkv[keys.start * stride..keys.end * stride];
            let q_src = if selects { &scratch.q_rows } else { qkv };
            let q = fit(&mut state.q, shape.heads * shape.queries * shape.padded);
            split_heads(q_view, q_src, Some((context.rope, rows)), query_scale(config.head_dim), q);
            let k = fit(&mut state.k, shape.kv_heads * shape.keys * shape.padded);
            split_heads(k_view, qkv, Some((context.rope, positions)), 1.0, k);
            let v = fit(&mut state.v, shape.kv_heads * shape.keys * shape.padded);
            split_heads(v_view, qkv, None, 1.0, v);
            let log_sum = fit(&mut state.log_sum, shape.heads * shape.queries);
            let inputs = AttentionInputs { shape, q, k, v, positions: rows };
            let out = &mut out[queries.start * q_dim..queries.end * q_dim];
            attention(inputs, out, log_sum, &mut scratch.attention);
        }
    }

    /// `scratch.out = mid + down(swiglu(gate, up))`, gate and up of the normed `mid`.
    fn mlp(
        &self,
        layer: usize,
        context: &Context<'_>,
        mixture: &Mixture,
        state: &mut BlockState,
        scratch: &mut Scratch,
    ) {
        let config = &self.backbone.config;
        let (hidden, width, rows) =
            (config.hidden_size, config.layers[layer].intermediate_size, context.rows.len());
        self.mid_norm(layer, state, scratch);
        let Scratch { mid_norm, gate_up, act, out, linear: buffers, .. } = scratch;
        fit(gate_up, rows * 2 * width);
        for (projection, offset) in [(Projection::GateProj, 0), (Projection::UpProj, width)] {
            let y = &mut gate_up[offset..];
            self.linear(layer, projection).forward(mid_norm, y, 2 * width, false, mixture, buffers);
        }
        let act = fit(act, rows * width);
        swiglu(gate_up, width, act);
        if context.keeps {
            state.gate_up.keep(gate_up, self.backbone.weight_type);
        }
        copy(&state.mid, out);
        let down = self.linear(layer, Projection::DownProj);
        down.forward(act, out, hidden, true, mixture, buffers);
    }

    pub fn shape(&self, layer: usize, context: &Context<'_>) -> AttentionShape {
        let config = &self.backbone.config;
        let LayerShape { num_heads, num_kv_heads, sliding_window, .. } = config.layers[layer];
        AttentionShape {
            heads: num_heads,
            kv_heads: num_kv_heads,
            padded: config.padded_head_dim(),
            dim: config.head_dim,
            queries: context.rows.len(),
            keys: context.positions.len(),
            window: sliding_window,
            in_bf16: self.backbone.multiplies_in_bf16(),
        }
    }

    /// Where queries, keys and values lie in `scratch.qkv` (queries of selected rows: in
    /// `scratch.q_rows`).
    pub fn views(&self, layer: usize, context: &Context<'_>) -> [HeadsView; 3] {
        let config = &self.backbone.config;
        let LayerShape { num_heads, num_kv_heads, .. } = config.layers[layer];
        let (q, kv) = (config.q_dim(layer), config.kv_dim(layer));
        let stride = config.qkv_dim(layer);
        let view = |heads, offset, stride| HeadsView {
            heads,
            dim: config.head_dim,
            padded: config.padded_head_dim(),
            offset,
            stride,
        };
        let q_stride = if context.selects() { q } else { stride };
        [
            view(num_heads, 0, q_stride),
            view(num_kv_heads, q, stride),
            view(num_kv_heads, q + kv, stride),
        ]
    }
}

/// Factor of the queries: the usual 1/√dim, and log2(e) because the softmax works in base 2.
fn query_scale(dim: usize) -> f32 {
    (std::f64::consts::LOG2_E / (dim as f64).sqrt()) as f32
}

/// RMSNorm of every head in place; what the backward needs goes to `state`.
fn norm_heads(
    view: HeadsView,
    weight: &[f32],
    eps: f32,
    rows: &mut [f32],
    state: &mut NormedHeads,
) {
    let width = view.heads * view.dim;
    let count = rows.len() / view.stride;
    let raw = fit(&mut state.raw, count * width).chunks_exact_mut(width);
    let inv_rms = fit(&mut state.inv_rms, count * view.heads).chunks_exact_mut(view.heads);
    for ((row, raw), inv_rms) in rows.chunks_exact_mut(view.stride).zip(raw).zip(inv_rms) {
        let heads = &mut row[view.offset..view.offset + width];
        raw.copy_from_slice(heads);
        rms_norm(raw, weight, eps, heads, inv_rms);
    }
}

fn embed(table: &Weight, tokens: &[u32], out: &mut Buffer) {
    let table = table.mat();
    let width = table.inputs();
    let rows = fit(out, tokens.len() * width).chunks_exact_mut(width);
    for (token, row) in tokens.iter().zip(rows) {
        table.widen(*token as usize, row);
    }
}

/// `out[i] = src[rows[i]]`.
fn gather(src: &[f32], width: usize, rows: &[u32], out: &mut [f32]) {
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
        out.copy_from_slice(&src[*row as usize * width..][..width]);
    }
}

/// Makes `out` a copy of `src`.
pub(super) fn copy(src: &[f32], out: &mut Buffer) {
    fit(out, src.len()).copy_from_slice(src);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kept projections of all tokens are those that a sequence would compute: the same bits, with
    /// f32 and with bf16 weights.
    #[test]
    fn what_is_kept_of_the_lowest_block_changes_no_bit() {
        let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let shipped = shipped.join("../configs/models/stories260k");
        let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 512).collect();
        for weight_type in [WeightType::F32, WeightType::Bf16] {
            let hidden = |keeps: bool| {
                let mut backbone = Backbone::load_as(&shipped, weight_type).unwrap();
                assert!(backbone.lowest.is_some(), "a vocabulary of 512 is small");
                if !keeps {
                    backbone.lowest = None;
                }
                let mut ws = Workspace::new();
                Pass::new(&backbone, None).forward(&mut ws, &tokens, &[39], Keep::Nothing);
                ws.top.norm.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(hidden(true), hidden(false), "{weight_type:?}");
        }
    }
}
