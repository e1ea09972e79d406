//! RMSNorm, SwiGLU, dot products and sums.

use half::bf16;

use super::simd::{LANES, fma, kernel, sigmoid};

kernel! {
    /// `sum(a * b)` over the common length, in a fixed order (16 partial sums, then a tree).
    pub fn dot = dot_body(a: &[f32], b: &[f32]) -> f32
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a16, a_rest) = a[..n].as_chunks::<LANES>();
    let (b16, b_rest) = b[..n].as_chunks::<LANES>();
    let mut acc = [0.0; LANES];
    for (x, y) in a16.iter().zip(b16) {
        for l in 0..LANES {
            acc[l] = fma::<FMA>(x[l], y[l], acc[l]);
        }
    }
    for (l, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        acc[l] = fma::<FMA>(*x, *y, acc[l]);
    }
    sum_lanes(&acc)
}

/// Sum of the lanes, as a tree.
#[inline(always)]
pub(super) fn sum_lanes(acc: &[f32; LANES]) -> f32 {
    let mut acc = *acc;
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            acc[l] += acc[l + half];
        }
        half /= 2;
    }
    acc[0]
}

kernel! {
    /// `y += scale * x`.
    pub fn axpy = axpy_body(y: &mut [f32], scale: f32, x: &[f32])
}

#[inline(always)]
fn axpy_body<const FMA: bool>(y: &mut [f32], scale: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma::<FMA>(scale, *x, *y);
    }
}

kernel! {
    /// RMSNorm of each row of `x` (width = `weight.len()`) into `out`; `inv_rms` gets each row's
    /// `1 / sqrt(mean(x²) + eps)`, which the backward needs.
    pub fn rms_norm = rms_norm_body(
        x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], inv_rms: &mut [f32],
    )
}

#[inline(always)]
fn rms_norm_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
    inv_rms: &mut [f32],
) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
    for ((x, out), inv) in rows.zip(inv_rms) {
        let r = 1.0 / (dot_body::<FMA>(x, x) / width as f32 + eps).sqrt();
        for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
            *o = x * r * w;
        }
        *inv = r;
    }
}

kernel! {
    /// Backward of [`rms_norm`]: adds to `dx` the gradient that reaches each row of `x`, given `dy`.
    pub fn rms_norm_grad = rms_norm_grad_body(
        x: &[f32], weight: &[f32], inv_rms: &[f32], dy: &[f32], dx: &mut [f32],
    )
}

#[inline(always)]
fn rms_norm_grad_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    inv_rms: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for (((x, dy), dx), r) in rows.zip(inv_rms) {
        let (x16, x_rest) = x.as_chunks::<LANES>();
        let (dy16, dy_rest) = dy.as_chunks::<LANES>();
        let (w16, w_rest) = weight.as_chunks::<LANES>();
        let mut acc = [0.0; LANES];
        for ((x, dy), w) in x16.iter().zip(dy16).zip(w16) {
            for l in 0..LANES {
                acc[l] = fma::<FMA>(x[l] * w[l], dy[l], acc[l]);
            }
        }
        for (l, ((x, dy), w)) in x_rest.iter().zip(dy_rest).zip(w_rest).enumerate() {
            acc[l] = fma::<FMA>(x * w, *dy, acc[l]);
        }
        let shrink = sum_lanes(&acc) * r * r * r / width as f32;
        for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
            *dx += fma::<FMA>(dy * w, *r, -(x * shrink));
        }
    }
}

kernel! {
    /// SwiGLU: `gate_up` holds per row `width` gate values and `width` up values; `out` gets
    /// `silu(gate) * up`.
    pub fn swiglu = swiglu_body(gate_up: &[f32], width: usize, out: &mut [f32])
}

#[inline(always)]
fn swiglu_body<const FMA: bool>(gate_up: &[f32], width: usize, out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at(width);
        for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
            *o = g * sigmoid::<FMA>(*g) * u;
        }
    }
}

kernel! {
    /// Backward of [`swiglu`]: `d_out` `[rows, width]` to `d_gate_up` `[rows, 2 * width]`.
    pub fn swiglu_grad = swiglu_grad_body(
        gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32],
    )
}

#[inline(always)]
fn swiglu_grad_body<const FMA: bool>(
    gate_up: &[f32],
    width: usize,
    d_out: &[f32],
    d_gate_up: &mut [f32],
) {
    let rows = gate_up.chunks_exact(2 * width).zip(d_out.chunks_exact(width));
    for ((row, d_out), d_row) in rows.zip(d_gate_up.chunks_exact_mut(2 * width)) {
        let (gate, up) = row.split_at(width);
        let (d_gate, d_up) = d_row.split_at_mut(width);
        let inputs = gate.iter().zip(up).zip(d_out);
        for (((g, u), d), (dg, du)) in inputs.zip(d_gate.iter_mut().zip(d_up)) {
            let s = sigmoid::<FMA>(*g);
            let silu = g * s;
            *du = d * silu;
            *dg = d * u * fma::<FMA>(silu, 1.0 - s, s);
        }
    }
}

kernel! {
    /// `y += x`.
    pub fn add = add_body(y: &mut [f32], x: &[f32])
}

#[inline(always)]
fn add_body<const FMA: bool>(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

kernel! {
    /// Adds `x` to every row of `y`; rows are `stride` elements apart, the last one may be cut short.
    pub fn add_to_rows = add_to_rows_body(y: &mut [f32], stride: usize, x: &[f32])
}

#[inline(always)]
fn add_to_rows_body<const FMA: bool>(y: &mut [f32], stride: usize, x: &[f32]) {
    for row in y.chunks_mut(stride) {
        add_body::<FMA>(row, x);
    }
}

kernel! {
    /// Rounds to bf16 (nearest, ties to even); a NaN may become an infinity.
    pub fn narrow = narrow_body(src: &[f32], dst: &mut [bf16])
}

#[inline(always)]
fn narrow_body<const FMA: bool>(src: &[f32], dst: &mut [bf16]) {
    for (d, s) in dst.iter_mut().zip(src) {
        let bits = s.to_bits();
        let half = 0x7fff + ((bits >> 16) & 1);
        *d = bf16::from_bits((bits.wrapping_add(half) >> 16) as u16);
    }
}

kernel! {
    /// bf16 as f32, exactly.
    pub fn widen = widen_body(src: &[bf16], dst: &mut [f32])
}

#[inline(always)]
fn widen_body<const FMA: bool>(src: &[bf16], dst: &mut [f32]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = f32::from_bits(u32::from(s.to_bits()) << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_rounds_to_nearest_even_and_widening_is_exact() {
        let bits = (0..=u32::MAX).step_by(9973).filter(|bits| !f32::from_bits(*bits).is_nan());
        let values: Vec<f32> = bits.map(f32::from_bits).chain([f32::MAX, 1.0, -0.0]).collect();
        let expected: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
        let mut narrowed = vec![bf16::ZERO; values.len()];
        narrow(&values, &mut narrowed);
        assert_eq!(narrowed, expected);
        let mut wide = vec![0.0; values.len()];
        widen(&narrowed, &mut wide);
        assert!(wide.iter().zip(&expected).all(|(x, y)| *x == y.to_f32()));
    }
}
