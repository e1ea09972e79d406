//! Every operation composed of stock candle operations against the fused kernel of the CPU, on every
//! device.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod devices;
mod tiny;

use candle_core::{Device, Tensor};
use devices::{assert_near, devices};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reclora_trainer::backbone::RopeScaling;
use reclora_trainer::engine::device::ops;
use reclora_trainer::kernels::attention::{
    AttentionBuffers, AttentionInputs, AttentionShape, attention, softmax_base_2,
};
use reclora_trainer::kernels::attention_grad::{HeadGradients, attention_grad};
use reclora_trainer::kernels::heads::{HeadsView, RopeTable, merge_heads_grad, split_heads};
use reclora_trainer::kernels::pointwise::{rms_norm, rms_norm_grad, swiglu, swiglu_grad};
use tiny::uniform;

fn assert_tensor(got: &Tensor, expected: &[f32], what: &str) {
    let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
    assert_near(&got, expected, 1e-5, what);
}

fn random(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn tensor(values: &[f32], shape: &[usize], device: &Device) -> Tensor {
    Tensor::from_slice(values, shape, device).unwrap()
}

#[test]
fn rms_norm_is_the_kernel() {
    let (rows, width, eps) = (7, 21, 1e-5);
    let mut random = random(1);
    let (x, dy) =
        (uniform(rows * width, 2.0, &mut random), uniform(rows * width, 1.0, &mut random));
    let weight = uniform(width, 1.0, &mut random);
    let (mut out, mut inv) = (vec![0.0; rows * width], vec![0.0; rows]);
    rms_norm(&x, &weight, eps, &mut out, &mut inv);
    let mut dx = vec![0.0; rows * width];
    rms_norm_grad(&x, &weight, &inv, &dy, &mut dx);
    for (name, device) in devices() {
        let [x, dy] = [&x, &dy].map(|values| tensor(values, &[rows, width], &device));
        let weight = tensor(&weight, &[width], &device);
        let (got, got_inv) = ops::rms_norm(&x, &weight, eps).unwrap();
        assert_tensor(&got, &out, name);
        assert_tensor(&got_inv, &inv, name);
        assert_tensor(&ops::rms_norm_grad(&x, &weight, &got_inv, &dy).unwrap(), &dx, name);
    }
}

#[test]
fn swiglu_is_the_kernel() {
    let (rows, width) = (5, 19);
    let mut random = random(2);
    let gate_up = uniform(rows * 2 * width, 6.0, &mut random);
    let d_out = uniform(rows * width, 1.0, &mut random);
    let (mut out, mut d_gate_up) = (vec![0.0; rows * width], vec![0.0; rows * 2 * width]);
    swiglu(&gate_up, width, &mut out);
    swiglu_grad(&gate_up, width, &d_out, &mut d_gate_up);
    for (name, device) in devices() {
        let joined = tensor(&gate_up, &[rows, 2 * width], &device);
        let half = |at| joined.narrow(1, at, width).unwrap().contiguous().unwrap();
        let (gate, up) = (half(0), half(width));
        assert_tensor(&ops::swiglu(&gate, &up).unwrap(), &out, name);
        let d_out = tensor(&d_out, &[rows, width], &device);
        let (d_gate, d_up) = ops::swiglu_grad(&gate, &up, &d_out).unwrap();
        assert_tensor(&Tensor::cat(&[d_gate, d_up], 1).unwrap(), &d_gate_up, name);
    }
}

#[test]
fn softmax_is_the_kernel() {
    let (rows, width) = (6, 37);
    let mut random = random(3);
    let x = uniform(rows * width, 9.0, &mut random);
    let dy = uniform(rows * width, 1.0, &mut random);
    let mut expected = x.clone();
    for row in expected.chunks_exact_mut(width) {
        row.iter_mut().for_each(|x| *x *= std::f32::consts::LOG2_E);
        softmax_base_2(row);
    }
    let rows_of = expected.chunks_exact(width).zip(dy.chunks_exact(width));
    let dx: Vec<f32> = rows_of
        .flat_map(|(p, dy)| {
            let mean: f32 = p.iter().zip(dy).map(|(p, dy)| p * dy).sum();
            p.iter().zip(dy).map(move |(p, dy)| p * (dy - mean)).collect::<Vec<_>>()
        })
        .collect();
    for (name, device) in devices() {
        let [x, dy] = [&x, &dy].map(|values| tensor(values, &[rows, width], &device));
        let got = ops::softmax(&x).unwrap();
        assert_tensor(&got, &expected, name);
        assert_tensor(&ops::softmax_grad(&got, &dy).unwrap(), &dx, name);
    }
}

fn rope_table(dim: usize, positions: usize) -> RopeTable {
    let mut table = RopeTable::default();
    table.prepare(100.0, RopeScaling::None, dim, positions);
    table
}

#[test]
fn rope_is_the_kernel() {
    let (rows, heads, dim) = (6, 3, 8);
    let positions: Vec<u32> = (2..8).collect();
    let table = rope_table(dim, 8);
    let mut random = random(4);
    let x = uniform(rows * heads * dim, 1.0, &mut random);
    let view = HeadsView { heads, dim, padded: dim, offset: 0, stride: heads * dim };
    let (mut out, mut back) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    split_heads(view, &x, Some((&table, &positions)), 1.0, &mut out);
    merge_heads_grad(view, &out, Some((&table, &positions)), 1.0, &mut back);
    for (name, device) in devices() {
        let half = dim / 2;
        let (cos, sin) = table.tables();
        let [cos, sin] =
            [cos, sin].map(|values| tensor(&values[2 * half..8 * half], &[rows, half], &device));
        let x = tensor(&x, &[rows, heads, dim], &device);
        let got = ops::rope(&x, &cos, &sin).unwrap();
        assert_tensor(&got.transpose(0, 1).unwrap(), &out, name);
        assert_tensor(&ops::rope(&got, &cos, &sin.neg().unwrap()).unwrap(), &back, name);
    }
}

/// Queries at `positions`, with groups of query heads sharing keys.
fn check_attention(positions: &[u32], keys: usize, window: Option<usize>, seed: u64) {
    let (heads, kv_heads, dim, queries) = (6, 2, 8, positions.len());
    let mut random = random(seed);
    let q = uniform(heads * queries * dim, 1.5, &mut random);
    let [k, v] = [(); 2].map(|()| uniform(kv_heads * keys * dim, 1.5, &mut random));
    let d_out = uniform(queries * heads * dim, 1.0, &mut random);
    let shape =
        AttentionShape { heads, kv_heads, padded: dim, dim, queries, keys, window, in_bf16: false };
    // The kernel takes queries scaled for base-2 scores; its dk is with respect to those.
    let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
    let scaled: Vec<f32> = q.iter().map(|q| q * scale).collect();
    let (mut out, mut log_sum) = (vec![0.0; d_out.len()], vec![0.0; heads * queries]);
    let buffers = &mut AttentionBuffers::default();
    let inputs = AttentionInputs { shape, q: &scaled, k: &k, v: &v, positions };
    attention(inputs, &mut out, &mut log_sum, buffers);
    let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
    let wanted = &mut HeadGradients { q: Some(&mut dq), k: Some(&mut dk), v: Some(&mut dv) };
    attention_grad(inputs, &log_sum, &out, &d_out, wanted, buffers);
    dq.iter_mut().for_each(|dq| *dq /= (dim as f32).sqrt());
    dk.iter_mut().for_each(|dk| *dk *= std::f32::consts::LN_2);
    for (name, device) in devices() {
        let q = tensor(&q, &[heads, queries, dim], &device);
        let [k, v] = [&k, &v].map(|x| tensor(x, &[kv_heads, keys, dim], &device));
        let at: Vec<f32> = positions.iter().map(|position| *position as f32).collect();
        let mask = ops::causal_mask(&tensor(&at, &[queries], &device), keys, window).unwrap();
        let got = ops::attention(&q, &k, &v, &mask).unwrap();
        assert_tensor(&got.transpose(0, 1).unwrap(), &out, name);
        let d_out = tensor(&d_out, &[queries, heads, dim], &device);
        let d_out = d_out.transpose(0, 1).unwrap().contiguous().unwrap();
        let (got_q, got_k, got_v) = ops::attention_grad(&q, &k, &v, &mask, &d_out).unwrap();
        assert_tensor(&got_q, &dq, name);
        assert_tensor(&got_k, &dk, name);
        assert_tensor(&got_v, &dv, name);
    }
}

#[test]
fn attention_is_the_kernel() {
    check_attention(&(0..40).collect::<Vec<_>>(), 40, None, 5);
    check_attention(&(0..40).collect::<Vec<_>>(), 40, Some(9), 8);
    check_attention(&[1], 3, None, 6);
    check_attention(&[3, 4, 11], 13, None, 7);
    check_attention(&[3, 4, 11], 13, Some(2), 9);
}

#[test]
fn a_window_hides_what_is_further_back() {
    for (name, device) in devices() {
        let mask = ops::causal_mask(&tensor(&[0.0, 2.0, 3.0], &[3], &device), 5, Some(2)).unwrap();
        let (hidden, seen) = (f32::NEG_INFINITY, 0.0);
        let expected = [
            vec![seen, hidden, hidden, hidden, hidden],
            vec![hidden, seen, seen, hidden, hidden],
            vec![hidden, hidden, seen, seen, hidden],
        ];
        assert_eq!(mask.to_vec2::<f32>().unwrap(), expected, "{name}");
    }
}
