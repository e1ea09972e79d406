//! LoRA around the q/k/v projection of a block.

use super::workspace::{BlockState, LoraPath, fit};
use crate::adapter::{AdapterLayout, Mixture};
use crate::config::Projection;
use crate::kernels::{Mat, matmul};

/// One adapted projection of a block: its module, and its columns of the q/k/v projection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub module: usize,
    pub projection: Projection,
    pub offset: usize,
    pub d_in: usize,
    pub d_out: usize,
    pub rank: usize,
    pub scale: f32,
}

impl Site {
    /// Whether it is the query projection.
    pub fn is_query(&self) -> bool {
        self.projection == Projection::QProj
    }
}

/// The adapted projections of a block.
pub(super) fn sites(
    layout: &AdapterLayout,
    layer: usize,
    q_dim: usize,
    kv_dim: usize,
) -> impl Iterator<Item = Site> {
    let columns = [(Projection::QProj, 0), (Projection::VProj, q_dim + kv_dim)];
    columns.into_iter().filter_map(move |(projection, offset)| {
        let index = layout.module_index(layer, projection)?;
        let module = &layout.modules()[index];
        Some(Site {
            module: index,
            projection,
            offset,
            d_in: module.d_in,
            d_out: module.d_out,
            rank: layout.mixed_rank(),
            scale: layout.scale(),
        })
    })
}

impl LoraPath {
    /// The cheaper path for a sequence: merging costs `d_in * d_out` per rank once, the other path
    /// `d_in + d_out` per rank and token.
    pub(super) fn choose(tokens: usize, d_in: usize, d_out: usize) -> Self {
        if tokens * (d_in + d_out) > d_in * d_out { Self::Merged } else { Self::Beside }
    }
}

/// `state.qkv_weight` = frozen weight + every site's `scale * (B A)^T`.
pub(super) fn merge(
    frozen: &[f32],
    stride: usize,
    sites: &[Site],
    mixture: &Mixture,
    state: &mut BlockState,
) {
    state.qkv_weight.clear();
    state.qkv_weight.extend_from_slice(frozen);
    for site in sites {
        let mixed = &mixture.modules[site.module];
        let a = Mat::new(&mixed.a, site.rank, site.d_in);
        let b = Mat::new(&mixed.b, site.d_out, site.rank);
        let columns = &mut state.qkv_weight[site.offset..];
        matmul(columns, stride, a.t(), b.t(), site.scale, true);
    }
}

/// `y += scale * (x A^T) B^T` on a site's columns `y` (rows `stride` apart) of all rows of `x`.
pub(super) fn apply(
    site: &Site,
    mixture: &Mixture,
    x: &[f32],
    lora_x: &mut Vec<f32>,
    y: &mut [f32],
    stride: usize,
) {
    let mixed = &mixture.modules[site.module];
    let rows = x.len() / site.d_in;
    let a = Mat::new(&mixed.a, site.rank, site.d_in);
    let b = Mat::new(&mixed.b, site.d_out, site.rank);
    let lora_x = fit(lora_x, rows * site.rank);
    matmul(lora_x, site.rank, Mat::new(x, rows, site.d_in), a.t(), 1.0, false);
    matmul(y, stride, Mat::new(lora_x, rows, site.rank), b.t(), site.scale, true);
}

/// Sets the gradients of a site's mixed A and B, given its input `x` and `dy` (rows `stride` apart);
/// leaves `dy B` in `lora_dy`.
pub(super) fn gradients(
    site: &Site,
    mixture: &mut Mixture,
    x: &[f32],
    dy: &[f32],
    stride: usize,
    lora_x: &mut Vec<f32>,
    lora_dy: &mut Vec<f32>,
) {
    let mixed = &mut mixture.modules[site.module];
    let (rows, rank) = (x.len() / site.d_in, site.rank);
    let x = Mat::new(x, rows, site.d_in);
    let dy = Mat::strided(dy, rows, site.d_out, stride);
    let lora_x = fit(lora_x, rows * rank);
    matmul(lora_x, rank, x, Mat::new(&mixed.a, rank, site.d_in).t(), 1.0, false);
    let lora_dy = fit(lora_dy, rows * rank);
    matmul(lora_dy, rank, dy, Mat::new(&mixed.b, site.d_out, rank), 1.0, false);
    let d_a = fit(&mut mixed.d_a, rank * site.d_in);
    matmul(d_a, site.d_in, Mat::new(lora_dy, rows, rank).t(), x, site.scale, false);
    let d_b = fit(&mut mixed.d_b, site.d_out * rank);
    matmul(d_b, rank, dy.t(), Mat::new(lora_x, rows, rank), site.scale, false);
}

/// Adds what reaches a site's input through LoRA: `dx += scale * (dy B) A`, `dy B` from [`gradients`].
pub(super) fn input_gradient(site: &Site, mixture: &Mixture, scratch_dy: &[f32], dx: &mut [f32]) {
    let rows = dx.len() / site.d_in;
    let a = Mat::new(&mixture.modules[site.module].a, site.rank, site.d_in);
    matmul(dx, site.d_in, Mat::new(scratch_dy, rows, site.rank), a, site.scale, true);
}
