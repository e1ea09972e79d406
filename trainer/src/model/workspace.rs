//! Reusable buffers: after the first call of a size, nothing large is allocated.

use half::bf16;

use crate::adapter::{Mixture, TokenGateBuffers};
use crate::config::WeightType;
use crate::kernels::FrozenBuffers;
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
    pub(super) inputs: Vec<Vec<f32>>,
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
        let inputs: usize = self.inputs.iter().map(Vec::capacity).sum();
        states + inputs * size_of::<f32>()
    }
}

/// What one block's forward computes and its backward reads. T tokens, R rows (all tokens but in the
/// last block, where they are the positions asked for). What is quickly computed again is not here.
#[derive(Debug, Default)]
pub(super) struct BlockState {
    /// Input `[T, hidden]`.
    pub x: Vec<f32>,
    /// 1 / rms of each input row `[T]`.
    pub x_inv_rms: Vec<f32>,
    /// Rotated, scaled queries `[heads, R, padded]`.
    pub q: Vec<f32>,
    /// Rotated keys `[kv_heads, T, padded]`.
    pub k: Vec<f32>,
    /// Values `[kv_heads, T, padded]`.
    pub v: Vec<f32>,
    /// Queries and keys before their norms, where the family has these.
    pub q_normed: NormedHeads,
    /// See `q_normed`.
    pub k_normed: NormedHeads,
    /// Attention output `[R, heads * dim]`.
    pub attention: Vec<f32>,
    /// Base-2 log of the softmax denominators `[heads, R]`.
    pub log_sum: Vec<f32>,
    /// Residual stream after attention `[R, hidden]`.
    pub mid: Vec<f32>,
    /// 1 / rms of each row of `mid` `[R]`.
    pub mid_inv_rms: Vec<f32>,
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
            buffers.into_iter().chain(normed).chain([&gate_up.wide]).map(Vec::capacity).sum();
        values * size_of::<f32>() + gate_up.narrow.capacity() * size_of::<bf16>()
    }
}

/// Gate and up projections from the forward pass to the backward: as they are, or, where the weights
/// are bf16 and so what they are computed from, in bf16 too.
#[derive(Debug, Default)]
pub(super) struct KeptGateUp {
    wide: Vec<f32>,
    narrow: Vec<bf16>,
}

impl KeptGateUp {
    /// Takes what `gate_up` holds (which then holds anything).
    pub fn keep(&mut self, gate_up: &mut Vec<f32>, weight_type: WeightType) {
        if weight_type == WeightType::Bf16 {
            self.narrow.reserve_exact(gate_up.len().saturating_sub(self.narrow.len()));
            self.narrow.resize(gate_up.len(), bf16::ZERO);
            narrow(gate_up, &mut self.narrow);
        } else {
            std::mem::swap(&mut self.wide, gate_up);
        }
    }

    /// Gives back what was kept.
    pub fn restore(&mut self, gate_up: &mut Vec<f32>, weight_type: WeightType) {
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
    pub raw: Vec<f32>,
    /// `[rows, heads]`.
    pub inv_rms: Vec<f32>,
}

/// Buffers of one projection's products.
#[derive(Debug, Default)]
pub(super) struct LinearBuffers {
    pub frozen: FrozenBuffers,
    /// `x A^T` `[rows, rank]`.
    pub lora_x: Vec<f32>,
    /// `dy B` `[rows, rank]`.
    pub lora_dy: Vec<f32>,
    /// Mixtures of tokens, where the adapter has these.
    pub token_gate: TokenGateBuffers,
}

/// Buffers no one reads after the step that filled them.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub linear: LinearBuffers,
    /// Block output `[R, hidden]`.
    pub out: Vec<f32>,
    /// Normed input of the attention `[T, hidden]`.
    pub x_norm: Vec<f32>,
    /// Normed input of the rows, where these are not all tokens `[R, hidden]`.
    pub x_norm_rows: Vec<f32>,
    /// Projections `[T, q + 2 kv]`, and their gradient.
    pub qkv: Vec<f32>,
    /// Queries of the rows where these are not all tokens `[R, q]`, and their gradient.
    pub q_rows: Vec<f32>,
    /// Normed `mid` `[R, hidden]`.
    pub mid_norm: Vec<f32>,
    /// Gate and up projections `[R, 2 * intermediate]`.
    pub gate_up: Vec<f32>,
    /// MLP activations, and their gradient `[R, intermediate]`.
    pub act: Vec<f32>,
    /// Tiles of the attention kernels.
    pub attention: Vec<f32>,
    /// Gradient of the residual stream above `[R, hidden]`.
    pub d_rows: Vec<f32>,
    /// Gradient of the block's input `[T, hidden]`.
    pub d_x: Vec<f32>,
    /// Gradient of a normed input `[T, hidden]`.
    pub d_norm: Vec<f32>,
    /// Gradient of the normed input of the rows, where these are not all tokens `[R, hidden]`.
    pub d_norm_rows: Vec<f32>,
    /// Gradient of the attention output `[R, q]`.
    pub d_attention: Vec<f32>,
    /// Gradient of gate and up `[R, 2 * intermediate]`.
    pub d_gate_up: Vec<f32>,
    /// Head-major gradients.
    pub d_q: Vec<f32>,
    /// See `d_q`.
    pub d_k: Vec<f32>,
    /// See `d_q`.
    pub d_v: Vec<f32>,
    /// One row of heads.
    pub heads_row: Vec<f32>,
}

/// The last block's output rows and their final norm.
#[derive(Debug, Default)]
pub(super) struct Top {
    pub width: usize,
    /// `[R, hidden]`.
    pub x: Vec<f32>,
    /// `[R]`.
    pub inv_rms: Vec<f32>,
    /// `[R, hidden]`.
    pub norm: Vec<f32>,
    /// Gradient of `norm` `[R, hidden]`.
    pub d_norm: Vec<f32>,
    /// Logits `[R, vocab]`, and their gradient.
    pub logits: Vec<f32>,
}

impl Top {
    /// A row of the final hidden states.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.norm[row * self.width..(row + 1) * self.width]
    }
}

/// Makes a buffer exactly this long; what it holds is then overwritten by the caller.
pub(super) fn fit(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    // Not more than is needed: these are the large allocations of the process.
    buffer.reserve_exact(length.saturating_sub(buffer.len()));
    buffer.resize(length, 0.0);
    buffer
}
