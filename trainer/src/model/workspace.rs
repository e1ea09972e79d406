//! Reusable buffers: after the first call of a size, nothing large is allocated.

use crate::adapter::Mixture;
use crate::kernels::heads::RopeTable;

/// What a forward pass keeps for the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing: scoring.
    Nothing,
    /// Each block's input; the backward recomputes the block.
    Inputs,
    /// Everything the backward reads.
    Everything,
}

/// How a sample's LoRA is applied. Both are the same function up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraPath {
    /// Add `scale * B A` to a copy of the projection's weight once per sample: least work for long
    /// sequences through narrow projections.
    Merged,
    /// Multiply by A, then by B, next to the frozen weight.
    Beside,
}

/// Buffers of one thread. Any model and any sequence can use it; a call's result never depends on
/// what it held before.
#[derive(Debug)]
pub struct Workspace {
    pub(super) activation_budget: usize,
    pub(super) lora_path: Option<LoraPath>,
    pub(super) rope: RopeTable,
    /// 0, 1, 2, …
    pub(super) positions: Vec<u32>,
    pub(super) blocks: Vec<BlockState>,
    /// Block inputs where blocks are recomputed.
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
            lora_path: None,
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
    /// keeps block inputs only and recomputes each block in the backward. The bits are the same.
    pub fn set_activation_budget(&mut self, bytes: usize) {
        self.activation_budget = bytes;
    }

    /// Forces how LoRA is applied; `None` (the default) chooses by the amount of work, which depends
    /// on the sequence's length and the model's sizes only.
    pub fn set_lora_path(&mut self, path: Option<LoraPath>) {
        self.lora_path = path;
    }

    /// What a pass over this many tokens needs to know of the workspace's settings.
    pub(super) fn plan(&self, tokens: usize) -> Plan {
        Plan { tokens, lora_path: self.lora_path }
    }
}

/// See [`Workspace::plan`].
pub(super) struct Plan {
    pub tokens: usize,
    pub lora_path: Option<LoraPath>,
}

/// What one block's forward computes and its backward reads. T tokens, R rows (all tokens but in the
/// last block, where they are the positions asked for).
#[derive(Debug, Default)]
pub(super) struct BlockState {
    /// Input `[T, hidden]`.
    pub x: Vec<f32>,
    /// 1 / rms of each input row `[T]`.
    pub x_inv_rms: Vec<f32>,
    /// Normed input `[T, hidden]`.
    pub x_norm: Vec<f32>,
    /// Normed input of the rows, where these are not all tokens `[R, hidden]`.
    pub x_norm_rows: Vec<f32>,
    /// This sample's merged q/k/v weight `[hidden, q + 2 kv]`, where LoRA is merged.
    pub qkv_weight: Vec<f32>,
    /// Rotated, scaled queries `[heads, R, padded]`.
    pub q: Vec<f32>,
    /// Rotated keys `[kv_heads, T, padded]`.
    pub k: Vec<f32>,
    /// Values `[kv_heads, T, padded]`.
    pub v: Vec<f32>,
    /// Attention output `[R, heads * dim]`.
    pub attention: Vec<f32>,
    /// Base-2 log of the softmax denominators `[heads, R]`.
    pub log_sum: Vec<f32>,
    /// Residual stream after attention `[R, hidden]`.
    pub mid: Vec<f32>,
    /// 1 / rms of each row of `mid` `[R]`.
    pub mid_inv_rms: Vec<f32>,
    /// Gate and up projections `[R, 2 * intermediate]`.
    pub gate_up: Vec<f32>,
}

/// Buffers no one reads after the step that filled them.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Block output `[R, hidden]`.
    pub out: Vec<f32>,
    /// Projections `[T, q + 2 kv]`, and their gradient.
    pub qkv: Vec<f32>,
    /// Queries of the rows where these are not all tokens `[R, q]`, and their gradient.
    pub q_rows: Vec<f32>,
    /// Normed `mid`, and its gradient `[R, hidden]`.
    pub mid_norm: Vec<f32>,
    /// MLP activations, and their gradient `[R, intermediate]`.
    pub act: Vec<f32>,
    /// `x A^T` `[T, rank]`.
    pub lora_x: Vec<f32>,
    /// `dy B` `[T, rank]`.
    pub lora_dy: Vec<f32>,
    /// Tiles of the attention kernels.
    pub attention: Vec<f32>,
    /// Gradient of the residual stream above `[R, hidden]`.
    pub d_rows: Vec<f32>,
    /// Gradient of the block's input `[T, hidden]`.
    pub d_x: Vec<f32>,
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
}

impl Top {
    /// A row of the final hidden states.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.norm[row * self.width..(row + 1) * self.width]
    }
}

/// Makes a buffer exactly this long; what it holds is then overwritten by the caller.
pub(super) fn fit(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.resize(length, 0.0);
    buffer
}
