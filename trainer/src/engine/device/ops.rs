//! The model's elementwise operations and attention, composed of stock candle operations, each with
//! its backward. They compute what the fused kernels of [`crate::kernels`] compute.
//!
//! Norms, softmax and rotations of reduced-precision tensors are computed in f32; results have the
//! type of the input.

use candle_core::{D, DType, Result, Tensor};

/// RMSNorm of each row of `x`: the result, and each row's `1 / sqrt(mean(x²) + eps)` as f32, which
/// the backward needs. `weight` is f32.
///
/// # Errors
/// Those of the device.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let wide = x.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let inv_rms = (mean_square + f64::from(eps))?.sqrt()?.recip()?;
    let out = wide.broadcast_mul(&inv_rms)?.broadcast_mul(weight)?;
    Ok((out.to_dtype(x.dtype())?, inv_rms))
}

/// Backward of [`rms_norm`]: the gradient of `x`, given that of the result.
///
/// # Errors
/// Those of the device.
pub fn rms_norm_grad(
    x: &Tensor,
    weight: &Tensor,
    inv_rms: &Tensor,
    d_out: &Tensor,
) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let d_scaled = d_out.to_dtype(DType::F32)?.broadcast_mul(weight)?;
    let shrink = (&wide * &d_scaled)?.mean_keepdim(D::Minus1)?;
    let shrink = (shrink * (inv_rms.sqr()? * inv_rms)?)?;
    let dx = (d_scaled.broadcast_mul(inv_rms)? - wide.broadcast_mul(&shrink)?)?;
    dx.to_dtype(x.dtype())
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// SwiGLU: `silu(gate) * up`.
///
/// # Errors
/// Those of the device.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    (gate * sigmoid(gate)?)? * up
}

/// Backward of [`swiglu`]: gradients of gate and up.
///
/// # Errors
/// Those of the device.
pub fn swiglu_grad(gate: &Tensor, up: &Tensor, d_out: &Tensor) -> Result<(Tensor, Tensor)> {
    let sigmoid = sigmoid(gate)?;
    let silu = (gate * &sigmoid)?;
    let slope = (&sigmoid + (&silu * (1.0 - &sigmoid)?)?)?;
    let d_gate = ((d_out * up)? * slope)?;
    Ok((d_gate, (d_out * silu)?))
}

/// Rotary embedding of `x` `[rows, heads, dim]`; `cos` and `sin` `[rows, dim / 2]` (pairs are
/// (i, i + dim / 2)). With `-sin` it is its own backward.
///
/// # Errors
/// Those of the device.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let half = x.dim(D::Minus1)? / 2;
    let (low, high) = (wide.narrow(2, 0, half)?, wide.narrow(2, half, half)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let out_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let out_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[out_low, out_high], 2)?.to_dtype(x.dtype())
}

/// Softmax over the last dimension.
///
/// # Errors
/// Those of the device.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// Backward of [`softmax`], from its result.
///
/// # Errors
/// Those of the device.
pub fn softmax_grad(probability: &Tensor, d_out: &Tensor) -> Result<Tensor> {
    let weighted = (probability * d_out)?;
    let total = weighted.sum_keepdim(D::Minus1)?;
    weighted - probability.broadcast_mul(&total)?
}

/// What queries at `positions` `[queries]` add to their scores of keys 0, 1, …: 0 for those they see,
/// minus infinity for later ones and for those `window` or more positions back. Both f32.
///
/// # Errors
/// Those of the device.
pub fn causal_mask(positions: &Tensor, keys: usize, window: Option<usize>) -> Result<Tensor> {
    let queries = positions.dim(0)?;
    let keys = Tensor::arange(0u32, keys as u32, positions.device())?.to_dtype(DType::F32)?;
    let back = positions.unsqueeze(1)?.broadcast_sub(&keys.unsqueeze(0)?)?;
    let mut seen = back.ge(0f32)?;
    if let Some(window) = window {
        seen = (seen * back.lt(window as f32)?)?;
    }
    let shape = (queries, keys.dim(0)?);
    let zero = Tensor::zeros(shape, DType::F32, positions.device())?;
    let hidden = Tensor::full(f32::NEG_INFINITY, shape, positions.device())?;
    seen.where_cond(&zero, &hidden)
}

/// Probabilities of each query over the keys `[kv_heads, group * queries, keys]`, in the type of `q`.
fn probabilities(q: &Tensor, k: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (heads, queries, dim) = q.dims3()?;
    let (kv_heads, keys, _) = k.dims3()?;
    let grouped = q.reshape((kv_heads, heads / kv_heads * queries, dim))?;
    let scores = (grouped.matmul(&k.t()?)?.to_dtype(DType::F32)? * scale(dim))?;
    let scores = scores.reshape((heads, queries, keys))?.broadcast_add(mask)?;
    softmax(&scores)?.reshape((kv_heads, heads / kv_heads * queries, keys))
}

fn scale(dim: usize) -> f64 {
    1.0 / (dim as f64).sqrt()
}

/// Attention of one sequence: `q` `[heads, queries, dim]`, `k` and `v` `[kv_heads, keys, dim]`, `mask`
/// of [`causal_mask`]. The result is `[heads, queries, dim]`.
///
/// # Errors
/// Those of the device.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let probability = probabilities(q, k, mask)?.to_dtype(v.dtype())?;
    probability.matmul(v)?.reshape(q.shape())
}

/// Backward of [`attention`]: gradients of `q`, `k` and `v`. Probabilities are computed again.
///
/// # Errors
/// Those of the device.
pub fn attention_grad(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
    d_out: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (heads, queries, dim) = q.dims3()?;
    let kv_heads = k.dim(0)?;
    let grouped = (kv_heads, heads / kv_heads * queries, dim);
    let (q_grouped, d_out) = (q.reshape(grouped)?, d_out.reshape(grouped)?);
    let probability = probabilities(q, k, mask)?;
    let d_probability = d_out.matmul(&v.t()?)?.to_dtype(DType::F32)?;
    let d_scores = (softmax_grad(&probability, &d_probability)? * scale(dim))?;
    let (probability, d_scores) = (probability.to_dtype(v.dtype())?, d_scores.to_dtype(q.dtype())?);
    let dq = d_scores.matmul(k)?.reshape(q.shape())?;
    let dk = d_scores.t()?.matmul(&q_grouped)?;
    let dv = probability.t()?.matmul(&d_out)?;
    Ok((dq, dk, dv))
}
