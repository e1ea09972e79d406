//! Forward pass of a packed batch, block by block.

use candle_core::Tensor;

use super::adapter::{DeviceAdapter, Mixtures, Site};
use super::batch::{Batch, Rows};
use super::ops::{attention, causal_mask, rms_norm, rope, swiglu};
use super::weights::{Block, DeviceBackbone};
use crate::backbone::{LayerShape, Projection};
use crate::error::Result;

/// One batch through the model.
pub(super) struct Pass<'a> {
    pub backbone: &'a DeviceBackbone,
    /// The adapter and its mixtures for the batch.
    pub adapter: Option<(&'a DeviceAdapter, &'a Mixtures)>,
    pub batch: &'a Batch,
}

/// One block of a pass.
pub(super) struct Layer<'a> {
    pub backbone: &'a DeviceBackbone,
    pub block: &'a Block,
    /// The adapted projections, in the order of [`Projection::ALL`].
    pub sites: Vec<Option<Site<'a>>>,
    /// All tokens: what keys and values are of.
    pub all: &'a Rows,
    /// What the block is to produce: in the last one only what is asked for.
    pub rows: &'a Rows,
    shape: LayerShape,
}

/// Queries or keys, `[rows, heads, dim]`.
pub(super) struct Heads {
    /// Before the head norm, and the norm's scales, where the family has one.
    pub raw: Option<(Tensor, Tensor)>,
    /// Normed and rotated.
    pub rotated: Tensor,
}

/// What a block's forward computed and its backward reads.
pub(super) struct BlockState {
    /// Normed input of all tokens, and the norm's scales.
    pub x_norm: Tensor,
    pub x_inv_rms: Tensor,
    /// Normed input of the block's rows.
    pub x_norm_rows: Tensor,
    pub q: Heads,
    pub k: Heads,
    /// `[tokens, kv_heads, dim]`.
    pub v: Tensor,
    /// Output of attention `[rows, heads * dim]`.
    pub attention: Tensor,
    /// Between attention and MLP.
    pub mid: Tensor,
    pub mid_norm: Tensor,
    pub mid_inv_rms: Tensor,
    pub gate: Tensor,
    pub up: Tensor,
}

/// What a forward keeps for a backward: each block's input, and its state unless it is to be computed
/// again.
#[derive(Default)]
pub(super) struct Kept {
    pub inputs: Vec<Tensor>,
    pub states: Vec<Option<BlockState>>,
}

/// The final states of the wanted rows.
pub(super) struct Top {
    pub x: Tensor,
    pub norm: Tensor,
    pub inv_rms: Tensor,
}

impl<'a> Pass<'a> {
    /// Runs all blocks and the final norm; `kept` gets what a backward needs, if there is to be one.
    pub fn forward(&self, mut kept: Option<&mut Kept>) -> Result<Top> {
        let backbone = self.backbone;
        let mut x = backbone.embedding.index_select(&self.batch.tokens, 0)?;
        for layer in 0..backbone.blocks.len() {
            let (next, state) = self.layer(layer)?.forward(&x)?;
            if let Some(kept) = kept.as_deref_mut() {
                kept.inputs.push(x);
                kept.states.push((!backbone.options.recompute).then_some(state));
            }
            x = next;
        }
        let (norm, inv_rms) = rms_norm(&x, &backbone.norm, backbone.config.rms_norm_eps)?;
        Ok(Top { x, norm, inv_rms })
    }

    /// A block, its adapted projections mixed for the batch.
    pub fn layer(&self, layer: usize) -> Result<Layer<'a>> {
        let sites = Projection::ALL.map(|projection| match self.adapter {
            Some((adapter, mixtures)) => adapter.site(layer, projection, mixtures),
            None => Ok(None),
        });
        let last = layer + 1 == self.backbone.blocks.len();
        Ok(Layer {
            backbone: self.backbone,
            block: &self.backbone.blocks[layer],
            sites: sites.into_iter().collect::<Result<_>>()?,
            all: &self.batch.all,
            rows: if last { self.batch.wanted() } else { &self.batch.all },
            shape: self.backbone.config.layers[layer],
        })
    }
}

impl Layer<'_> {
    /// The block's output, and the state for its backward.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, BlockState)> {
        let (block, all, rows) = (self.block, self.all, self.rows);
        let config = &self.backbone.config;
        let (x_norm, x_inv_rms) = rms_norm(x, &block.input_norm, config.rms_norm_eps)?;
        let x_norm_rows = rows.select(&x_norm)?;
        let q = self.project(Projection::QProj, &x_norm_rows, rows)?;
        let k = self.project(Projection::KProj, &x_norm, all)?;
        let v = self.project(Projection::VProj, &x_norm, all)?;
        let [q_norm, k_norm] = &block.qk_norm;
        let q = self.heads(&q, q_norm.as_ref(), rows)?;
        let k = self.heads(&k, k_norm.as_ref(), all)?;
        let v = v.reshape(((), self.shape.num_kv_heads, config.head_dim))?;
        let attention = self.attend(&q.rotated, &k.rotated, &v)?;
        let mid = (rows.select(x)? + self.project(Projection::OProj, &attention, rows)?)?;
        let (mid_norm, mid_inv_rms) = rms_norm(&mid, &block.mlp_norm, config.rms_norm_eps)?;
        let gate = self.project(Projection::GateProj, &mid_norm, rows)?;
        let up = self.project(Projection::UpProj, &mid_norm, rows)?;
        let down = self.project(Projection::DownProj, &swiglu(&gate, &up)?, rows)?;
        let out = (&mid + down)?;
        let state = BlockState {
            x_norm,
            x_inv_rms,
            x_norm_rows,
            q,
            k,
            v,
            attention,
            mid,
            mid_norm,
            mid_inv_rms,
            gate,
            up,
        };
        Ok((out, state))
    }

    /// `x weight^T + bias`, and what LoRA adds where the projection is adapted.
    fn project(&self, projection: Projection, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let linear = self.block.projection(projection);
        let mut y = x.matmul(&linear.weight.t()?)?;
        if let Some(bias) = &linear.bias {
            y = y.broadcast_add(bias)?;
        }
        match &self.sites[projection as usize] {
            Some(site) => Ok((y + site.forward(x, rows)?)?),
            None => Ok(y),
        }
    }

    /// Head norm and rotary embedding of a projection's output.
    fn heads(&self, y: &Tensor, norm: Option<&Tensor>, rows: &Rows) -> Result<Heads> {
        let config = &self.backbone.config;
        let raw = y.reshape(((), y.dim(1)? / config.head_dim, config.head_dim))?;
        let Some(norm) = norm else {
            return Ok(Heads { raw: None, rotated: rope(&raw, &rows.cos, &rows.sin)? });
        };
        let (normed, inv_rms) = rms_norm(&raw, norm, config.rms_norm_eps)?;
        let rotated = rope(&normed, &rows.cos, &rows.sin)?;
        Ok(Heads { raw: Some((raw, inv_rms)), rotated })
    }

    /// Attention, sequence by sequence: `[rows, heads * dim]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let parts = (0..self.rows.ranges.len()).map(|sequence| {
            let [q, k, v] = self.sequence(sequence, q, k, v)?;
            Ok(heads_first(&attention(&q, &k, &v, &self.mask(sequence)?)?)?)
        });
        let parts: Vec<Tensor> = parts.collect::<Result<_>>()?;
        Ok(Tensor::cat(&parts, 0)?.flatten_from(1)?)
    }

    /// One sequence's queries, keys and values, head-major.
    pub fn sequence(
        &self,
        sequence: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<[Tensor; 3]> {
        Ok([
            heads_first(&self.rows.of(q, sequence)?)?,
            heads_first(&self.all.of(k, sequence)?)?,
            heads_first(&self.all.of(v, sequence)?)?,
        ])
    }

    /// Which keys each row of a sequence sees.
    pub fn mask(&self, sequence: usize) -> Result<Tensor> {
        let positions = self.rows.of(&self.rows.positions, sequence)?;
        Ok(causal_mask(&positions, self.all.ranges[sequence].len(), self.shape.sliding_window)?)
    }
}

/// Token-major `[rows, heads, dim]` as head-major `[heads, rows, dim]`, or back.
pub(super) fn heads_first(x: &Tensor) -> candle_core::Result<Tensor> {
    x.transpose(0, 1)?.contiguous()
}
