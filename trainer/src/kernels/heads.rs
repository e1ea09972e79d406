//! Rotary position embedding, and the way between token-major projections and head-major attention.
//!
//! Attention reads each head as a contiguous `[rows, padded_dim]` matrix, `padded_dim` being the head
//! dimension rounded up to a multiple of 8 (the rest is zero, which changes no product).

use std::f64::consts::TAU;

/// How the rotary frequencies are changed for sequences longer than those of pretraining.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// All divided by a factor.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Low ones divided by a factor, high ones kept, those between interpolated (LLaMA 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f32,
        /// Frequencies with fewer turns than this in the original length are low.
        low_freq_factor: f32,
        /// Frequencies with more turns than this in the original length are high.
        high_freq_factor: f32,
        /// Length of the sequences of pretraining.
        original_max_position_embeddings: usize,
    },
}

/// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]` each.
#[derive(Debug, Default)]
pub struct RopeTable {
    /// Base, scaling and head dimension it is for.
    made_for: Option<(f32, RopeScaling, usize)>,
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Makes the table cover `positions` positions for these settings. Angles are formed in `f32`
    /// as the reference implementations do.
    pub fn prepare(&mut self, theta: f32, scaling: RopeScaling, head_dim: usize, positions: usize) {
        let made_for = Some((theta, scaling, head_dim));
        if self.made_for != made_for {
            let frequencies = rope_frequencies(theta, scaling, head_dim);
            *self = Self { made_for, frequencies, ..Self::default() };
        }
        let have = self.cos.len().checked_div(self.frequencies.len()).unwrap_or(positions);
        for position in have..positions {
            for frequency in &self.frequencies {
                let angle = f64::from(position as f32 * frequency);
                self.cos.push(angle.cos() as f32);
                self.sin.push(angle.sin() as f32);
            }
        }
    }

    /// Cosines and sines of all positions, `[positions, head_dim / 2]` each.
    pub fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        let range = position * half..(position + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Radians per position of each pair, `[head_dim / 2]`: step by step in `f32`, as transformers (its
/// division by a tensor is a product with the reciprocal), so that they agree at distant positions.
fn rope_frequencies(theta: f32, scaling: RopeScaling, head_dim: usize) -> Vec<f32> {
    let frequency = |i: usize| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        let frequency = 1.0 / f64::from(theta).powf(f64::from(exponent)) as f32;
        match scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let original = original_max_position_embeddings as f32;
                let wavelength = 1.0 / frequency * TAU as f32;
                if wavelength < original / high_freq_factor {
                    frequency
                } else if wavelength > original / low_freq_factor {
                    frequency / factor
                } else {
                    let turns = 1.0 / wavelength * original;
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - kept) * frequency / factor + kept * frequency
                }
            }
        }
    };
    (0..head_dim / 2).map(frequency).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn llama3(factor: f32) -> RopeScaling {
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        }
    }

    /// Bits of every fourth frequency as transformers 5.23.0 computes them.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let cases: [(f32, RopeScaling, usize, &[u32]); 5] = [
            (
                10_000.0,
                RopeScaling::None,
                128,
                &[
                    0x3f800000, 0x3f0ff59a, 0x3ea1e89b, 0x3e361887, 0x3dcccccd, 0x3d6655c2,
                    0x3d0186e3, 0x3c91ad39, 0x3c23d70a, 0x3bb8449c, 0x3b4f3e38, 0x3ae91528,
                    0x3a83126f, 0x3a136a16, 0x39a5cb60, 0x393a7753,
                ],
            ),
            (
                1_000_000.0,
                RopeScaling::None,
                128,
                &[
                    0x3f800000, 0x3ed7e89b, 0x3e361887, 0x3d99940d, 0x3d0186e3, 0x3c5a7bf2,
                    0x3bb8449c, 0x3b1b690d, 0x3a83126f, 0x39dd1725, 0x393a7753, 0x389d43a4,
                    0x3804a2b2, 0x375fba4f, 0x36bcb0c1, 0x361f23e4,
                ],
            ),
            (
                10_000.0,
                RopeScaling::Linear { factor: 3.0 },
                128,
                &[
                    0x3eaaaaab, 0x3e3ff223, 0x3dd7e0cf, 0x3d72cb5f, 0x3d088889, 0x3c998e81,
                    0x3c2cb3d9, 0x3bc23c4c, 0x3b5a740d, 0x3af5b0d0, 0x3a8a297b, 0x3a1b6370,
                    0x39aec33f, 0x39448d73, 0x38dd0f2b, 0x38789f19,
                ],
            ),
            (
                500_000.0,
                llama3(8.0),
                128,
                &[
                    0x3f800000, 0x3ee177bc, 0x3e4693b0, 0x3daee4ad, 0x3d1a08c8, 0x3c87a9c3,
                    0x3beef74f, 0x3b527720, 0x3a0995d2, 0x38a3418d, 0x380fc8f8, 0x377d45c3,
                    0x36df10c4, 0x36447610, 0x35ad07a7, 0x351864a7,
                ],
            ),
            (
                500_000.0,
                llama3(32.0),
                64,
                &[
                    0x3f800000, 0x3e4693b0, 0x3d1a08c8, 0x3beef74f, 0x39e13620, 0x370fc8f8,
                    0x35df10c4, 0x34ad07a7,
                ],
            ),
        ];
        for (theta, scaling, head_dim, expected) in cases {
            let frequencies = rope_frequencies(theta, scaling, head_dim);
            let bits: Vec<u32> = frequencies.iter().step_by(4).map(|f| f.to_bits()).collect();
            assert_eq!(bits, expected, "{scaling:?}");
        }
    }
}
