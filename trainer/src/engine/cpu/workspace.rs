//! Reusable buffers: after the first call of a size, nothing large is allocated.

use half::bf16;

use crate::adapter::{Mixture, TokenBuffers};
use crate::backbone::WeightType;
use crate::kernels::FrozenBuffers;
use crate::kernels::attention::AttentionBuffers;
use crate::kernels::buffer::{Buffer, fit};
use crate::kernels::heads::RopeTable;
use crate::kernels::pointwise::{narrow, widen};

/// What a forward pass keeps for the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing: scoring.
    Nothing,
    /// The input of every [`SEGMENT`]th block; the backward recomputes a segment at a time.
    Inputs,
    /// Everything the backward reads.
    Everything,
}

/// Blocks that are recomputed together. Each kept input is a small part of a block's activations
/// (about 1/10), so memory is least for segments of a few blocks; with three a further layer adds
/// about 1/30 of a block's activations.
pub(super) const SEGMENT: usize = 3;

/// Buffers of one thread. Any model and any sequence can use it; a call's result never depends on
/// what it held before.
#[derive(Debug)]
pub struct Workspace {
    pub(super) activation_budget: usize,
    pub(super) rope: RopeTable,
    /// 0, 1, 2, …
    pub(super) positions: Vec<u32>,
    pub(super) blocks: Vec<BlockState>,
    /// Inputs of segments where blocks are recomputed.
    pub(super) inputs: Vec<Buffer>,
    pub(super) mixture: Mixture,
    pub(super) scratch: Scratch,
    pub(super) top: Top,
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self {
            activation_budget: 1 << 30,
            rope: RopeTable::default(),
            positions: Vec::new(),
            blocks: Vec::new(),
            inputs: Vec::new(),
            mixture: Mixture::default(),
            scratch: Scratch::default(),
            top: Top::default(),
        }
    }

    /// Bytes of activations a gradient may keep (default 1 GiB); a sequence that would need more
    /// keeps a few blocks' inputs only and recomputes the blocks in the backward. The bits are the
    /// same.
    pub fn set_activation_budget(&mut self, bytes: usize) {
        self.activation_budget = bytes;
    }

    /// Bytes of the activations that are kept from the forward pass to the backward, as of the last
    /// gradient: block states and kept inputs.
    pub fn activation_bytes(&self) -> usize {
        let states: usize = self.blocks.iter().map(BlockState::bytes).sum();
        let inputs: usize = self.inputs.iter().map(Buffer::bytes).sum();
        states + inputs
    }
}

/// What one block's forward computes and its backward reads. T tokens, R rows (all tokens but in the
/// last block, where they are the positions asked for). What is quickly computed again is not here.
#[derive(Debug, Default)]
pub(super) struct BlockState {
    /// Input `[T, hidden]`.
    pub x: Buffer,
    /// 1 / rms of each input row `[T]`.
    pub x_inv_rms: Buffer,
    /// Rotated, scaled queries `[heads, R, padded]`.
    pub q: Buffer,
    /// Rotated keys `[kv_heads, T, padded]`.
    pub k: Buffer,
    /// Values `[kv_heads, T, padded]`.
    pub v: Buffer,
    /// Queries and keys before their norms, where the family has these.
    pub q_normed: NormedHeads,
    /// See `q_normed`.
    pub k_normed: NormedHeads,
    /// Attention output `[R, heads * dim]`.
    pub attention: Buffer,
    /// Base-2 log of the softmax denominators `[heads, R]`.
    pub log_sum: Buffer,
    /// Residual stream after attention `[R, hidden]`.
    pub mid: Buffer,
    /// 1 / rms of each row of `mid` `[R]`.
    pub mid_inv_rms: Buffer,
    /// Gate and up projections `[R, 2 * intermediate]`, the largest of all.
    pub gate_up: KeptGateUp,
}

impl BlockState {
    fn bytes(&self) -> usize {
        let Self { x, x_inv_rms, q, k, v, q_normed, k_normed, .. } = self;
        let Self { attention, log_sum, mid, mid_inv_rms, gate_up, .. } = self;
        let (qn, kn) = (q_normed, k_normed);
        let normed = [&qn.raw, &qn.inv_rms, &kn.raw, &kn.inv_rms];
        let buffers = [x, x_inv_rms, q, k, v, attention, log_sum, mid, mid_inv_rms];
        let values: usize =
            buffers.into_iter().chain(normed).chain([&gate_up.wide]).map(Buffer::bytes).sum();
        values + gate_up.narrow.capacity() * size_of::<bf16>()
    }
}

/// Gate and up projections from the forward pass to the backward: as they are, or, where the weights
/// are bf16 and so what they are computed from, in bf16 too.
#[derive(Debug, Default)]
pub(super) struct KeptGateUp {
    wide: Buffer,
    narrow: Vec<bf16>,
}

impl KeptGateUp {
    /// Takes what `gate_up` holds (which then holds anything).
    pub fn keep(&mut self, gate_up: &mut Buffer, weight_type: WeightType) {
        if weight_type == WeightType::Bf16 {
            self.narrow.reserve_exact(gate_up.len().saturating_sub(self.narrow.len()));
            self.narrow.resize(gate_up.len(), bf16::ZERO);
            narrow(gate_up, &mut self.narrow);
        } else {
            std::mem::swap(&mut self.wide, gate_up);
        }
    }

    /// Gives back what was kept.
    pub fn restore(&mut self, gate_up: &mut Buffer, weight_type: WeightType) {
        if weight_type == WeightType::Bf16 {
            widen(&self.narrow, fit(gate_up, self.narrow.len()));
        } else {
            std::mem::swap(&mut self.wide, gate_up);
        }
    }
}

/// Heads before their RMSNorm.
#[derive(Debug, Default)]
pub(super) struct NormedHeads {
    /// `[rows, heads * dim]`.
    pub raw: Buffer,
    /// `[rows, heads]`.
    pub inv_rms: Buffer,
}

/// Buffers of one projection's products.
#[derive(Debug, Default)]
pub(super) struct LinearBuffers {
    pub frozen: FrozenBuffers,
    /// `x A^T` `[rows, rank]`.
    pub lora_x: Buffer,
    /// `dy B` `[rows, rank]`.
    pub lora_dy: Buffer,
    /// Mixtures of tokens, where the adapter has these.
    pub between: TokenBuffers,
}

/// Buffers no one reads after the step that filled them.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub linear: LinearBuffers,
    /// Block output `[R, hidden]`.
    pub out: Buffer,
    /// Normed input of the attention `[T, hidden]`.
    pub x_norm: Buffer,
    /// Normed input of the rows, where these are not all tokens `[R, hidden]`.
    pub x_norm_rows: Buffer,
    /// Projections `[T, q + 2 kv]`, and their gradient.
    pub qkv: Buffer,
    /// Queries of the rows where these are not all tokens `[R, q]`, and their gradient.
    pub q_rows: Buffer,
    /// Normed `mid` `[R, hidden]`.
    pub mid_norm: Buffer,
    /// Gate and up projections `[R, 2 * intermediate]`.
    pub gate_up: Buffer,
    /// MLP activations, and their gradient `[R, intermediate]`.
    pub act: Buffer,
    /// Those of the attention kernels.
    pub attention: AttentionBuffers,
    /// Gradient of the residual stream above `[R, hidden]`.
    pub d_rows: Buffer,
    /// Gradient of the block's input `[T, hidden]`.
    pub d_x: Buffer,
    /// Gradient of a normed input `[T, hidden]`.
    pub d_norm: Buffer,
    /// Gradient of the normed input of the rows, where these are not all tokens `[R, hidden]`.
    pub d_norm_rows: Buffer,
    /// Gradient of the attention output `[R, q]`.
    pub d_attention: Buffer,
    /// Gradient of gate and up `[R, 2 * intermediate]`.
    pub d_gate_up: Buffer,
    /// Head-major gradients.
    pub d_q: Buffer,
    /// See `d_q`.
    pub d_k: Buffer,
    /// See `d_q`.
    pub d_v: Buffer,
    /// One row of heads.
    pub heads_row: Buffer,
}

/// The last block's output rows and their final norm.
#[derive(Debug, Default)]
pub(super) struct Top {
    pub width: usize,
    /// `[R, hidden]`.
    pub x: Buffer,
    /// `[R]`.
    pub inv_rms: Buffer,
    /// `[R, hidden]`.
    pub norm: Buffer,
    /// Gradient of `norm` `[R, hidden]`.
    pub d_norm: Buffer,
    /// Logits `[R, vocab]`, and their gradient.
    pub logits: Buffer,
    /// Of each row of logits.
    pub softmax: Vec<Softmax>,
}

impl Top {
    /// A row of the final hidden states.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.norm[row * self.width..(row + 1) * self.width]
    }
}

/// What a softmax over one row of logits needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Softmax {
    pub max: f32,
    /// Σ exp(logit − max).
    pub sum: f64,
}

impl Softmax {
    pub fn of(row: &[f32]) -> Self {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Self { max, sum: row.iter().map(|logit| f64::from(logit - max).exp()).sum() }
    }

    /// Turns the logits into `factor` times their probabilities.
    pub fn times(self, factor: f64, row: &mut [f32]) {
        let scale = factor / self.sum;
        for logit in row.iter_mut() {
            *logit = (f64::from(*logit - self.max).exp() * scale) as f32;
        }
    }
}
