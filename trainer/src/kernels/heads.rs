//! Rotary position embedding, and the way between token-major projections and head-major attention.
//!
//! Attention reads each head as a contiguous `[rows, padded_dim]` matrix, `padded_dim` being the head
//! dimension rounded up to a multiple of 8 (the rest is zero, which changes no product).

/// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]` each.
#[derive(Debug, Default)]
pub struct RopeTable {
    theta: f32,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Makes the table cover `positions` positions for these settings. Angles are formed in `f32`
    /// as the reference implementations do.
    pub fn prepare(&mut self, theta: f32, head_dim: usize, positions: usize) {
        let half = head_dim / 2;
        if self.theta != theta || self.half != half {
            *self = Self { theta, half, ..Self::default() };
        }
        let have = self.cos.len().checked_div(half).unwrap_or(positions);
        for position in have..positions {
            for i in 0..half {
                let exponent = 2.0 * i as f64 / head_dim as f64;
                let frequency = (1.0 / f64::from(theta).powf(exponent)) as f32;
                let angle = f64::from(position as f32 * frequency);
                self.cos.push(angle.cos() as f32);
                self.sin.push(angle.sin() as f32);
            }
        }
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Where the heads of one projection lie in a token-major row.
#[derive(Clone, Copy, Debug)]
pub struct HeadsView {
    /// Number of heads.
    pub heads: usize,
    /// Dimension of a head.
    pub dim: usize,
    /// Dimension of a head in the head-major form, a multiple of 8.
    pub padded: usize,
    /// First column of the projection in a token-major row.
    pub offset: usize,
    /// Width of a token-major row.
    pub stride: usize,
}

/// Copies token-major rows into head-major `out` `[heads, rows, padded]`, times `scale`, rotated by
/// the position of each row where a table is given (half-rotation: pairs are (i, i + dim / 2)).
pub fn split_heads(
    view: HeadsView,
    src: &[f32],
    rope: Option<(&RopeTable, &[u32])>,
    scale: f32,
    out: &mut [f32],
) {
    let HeadsView { heads, dim, padded, offset, stride } = view;
    let rows = src.len() / stride;
    for (head, out) in out[..heads * rows * padded].chunks_exact_mut(rows * padded).enumerate() {
        let start = offset + head * dim;
        let pairs = src.chunks_exact(stride).zip(out.chunks_exact_mut(padded));
        for (row, (src, out)) in pairs.enumerate() {
            let src = &src[start..start + dim];
            out[dim..].fill(0.0);
            if let Some((table, positions)) = rope {
                let (low, high) = src.split_at(dim / 2);
                let (out_low, out_high) = out[..dim].split_at_mut(dim / 2);
                let (cos, sin) = table.at(positions[row] as usize);
                for i in 0..dim / 2 {
                    out_low[i] = (low[i] * cos[i] - high[i] * sin[i]) * scale;
                    out_high[i] = (high[i] * cos[i] + low[i] * sin[i]) * scale;
                }
            } else {
                for (o, s) in out.iter_mut().zip(src) {
                    *o = s * scale;
                }
            }
        }
    }
}

/// Backward of [`split_heads`]: head-major gradients to token-major rows of `dst` (overwritten).
pub fn merge_heads_grad(
    view: HeadsView,
    grad: &[f32],
    rope: Option<(&RopeTable, &[u32])>,
    scale: f32,
    dst: &mut [f32],
) {
    let HeadsView { heads, dim, padded, offset, stride } = view;
    let rows = dst.len() / stride;
    for (head, grad) in grad[..heads * rows * padded].chunks_exact(rows * padded).enumerate() {
        let start = offset + head * dim;
        let pairs = dst.chunks_exact_mut(stride).zip(grad.chunks_exact(padded));
        for (row, (dst, grad)) in pairs.enumerate() {
            let dst = &mut dst[start..start + dim];
            if let Some((table, positions)) = rope {
                let (low, high) = grad[..dim].split_at(dim / 2);
                let (dst_low, dst_high) = dst.split_at_mut(dim / 2);
                let (cos, sin) = table.at(positions[row] as usize);
                for i in 0..dim / 2 {
                    dst_low[i] = (low[i] * cos[i] + high[i] * sin[i]) * scale;
                    dst_high[i] = (high[i] * cos[i] - low[i] * sin[i]) * scale;
                }
            } else {
                for (d, g) in dst.iter_mut().zip(grad) {
                    *d = g * scale;
                }
            }
        }
    }
}
