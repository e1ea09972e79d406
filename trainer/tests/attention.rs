//! The attention kernels against the definition, in f64 and without tiles.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::kernels::attention::{AttentionShape, attention};
use reclora_trainer::kernels::attention_grad::attention_grad;
use reclora_trainer::kernels::buffer::{Buffer, fit};

/// Inputs of a call: all heads, head-major, zero beyond `dim`.
struct Case {
    shape: AttentionShape,
    positions: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
}

/// Outputs and gradients, laid out like the kernels'.
struct Answer {
    out: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

impl Case {
    fn new(shape: AttentionShape, positions: Vec<u32>, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let AttentionShape { heads, kv_heads, padded, dim, queries, keys, .. } = shape;
        let mut rows = |rows: usize| {
            let value = |i| if i % padded < dim { random.random_range(-1.5..1.5) } else { 0.0 };
            (0..rows * padded).map(value).collect::<Vec<f32>>()
        };
        let (q, k, v) = (rows(heads * queries), rows(kv_heads * keys), rows(kv_heads * keys));
        let d_out = (0..queries * heads * dim).map(|_| random.random_range(-1.0..1.0)).collect();
        Self { shape, positions, q, k, v, d_out }
    }

    /// Softmax (base 2) of the visible scores, weighted sum, and their derivatives, one query at a time.
    fn definition(&self) -> Answer {
        let AttentionShape { heads, kv_heads, padded, dim, queries, .. } = self.shape;
        let mut answer = Answer {
            out: vec![0.0; self.d_out.len()],
            dq: vec![0.0; self.q.len()],
            dk: vec![0.0; self.k.len()],
            dv: vec![0.0; self.v.len()],
        };
        for (head, query) in (0..heads).flat_map(|h| (0..queries).map(move |i| (h, i))) {
            let q_at = (head * queries + query) * padded;
            let o_at = (query * heads + head) * dim;
            let kv_at = |key: usize| (head * kv_heads / heads * self.shape.keys + key) * padded;
            let end = self.positions[query] as usize + 1;
            let seen = end - self.shape.window.unwrap_or(end).min(end)..end;
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let q = &self.q[q_at..q_at + dim];
            let d_out = &self.d_out[o_at..o_at + dim];
            let exp: Vec<f64> =
                seen.clone().map(|key| dot(q, &self.k[kv_at(key)..][..dim]).exp2()).collect();
            let sum: f64 = exp.iter().sum();
            let p: Vec<f64> = exp.iter().map(|e| e / sum).collect();
            let dp: Vec<f64> =
                seen.clone().map(|key| dot(d_out, &self.v[kv_at(key)..][..dim])).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for (key, (p, dp)) in seen.zip(p.iter().zip(&dp)) {
                let ds = p * (dp - mean);
                for d in 0..dim {
                    answer.out[o_at + d] += p * f64::from(self.v[kv_at(key) + d]);
                    answer.dq[q_at + d] += ds * f64::from(self.k[kv_at(key) + d]);
                    answer.dk[kv_at(key) + d] += ds * f64::from(q[d]);
                    answer.dv[kv_at(key) + d] += p * f64::from(d_out[d]);
                }
            }
        }
        answer
    }

    /// The scratch and all outputs are full of garbage before: what they held must not matter.
    fn check(&self) {
        let Self { shape, positions, q, k, v, d_out } = self;
        let garbage = |length: usize| vec![f32::NAN; length];
        let (mut out, mut scratch) = (garbage(d_out.len()), Buffer::default());
        fit(&mut scratch, 1 << 18).fill(f32::NAN);
        let mut log_sum = garbage(shape.heads * shape.queries);
        attention(*shape, q, k, v, positions, &mut out, &mut log_sum, &mut scratch);
        let (mut dq, mut dk, mut dv) = (garbage(q.len()), garbage(k.len()), garbage(v.len()));
        attention_grad(
            *shape,
            q,
            k,
            v,
            positions,
            &log_sum,
            &out,
            d_out,
            &mut dq,
            &mut dk,
            &mut dv,
            &mut scratch,
        );
        let expected = self.definition();
        assert_close("out", &out, &expected.out);
        assert_close("dq", &dq, &expected.dq);
        assert_close("dk", &dk, &expected.dk);
        assert_close("dv", &dv, &expected.dv);
    }
}

fn assert_close(name: &str, got: &[f32], expected: &[f64]) {
    // Where each query sees one key, dq and dk are exactly 0 and the kernel's a difference of numbers
    // of size 1: hence the least scale.
    let largest = expected.iter().fold(1.0_f64, |max, x| max.max(x.abs()));
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let wrong = (f64::from(*got) - expected).abs();
        assert!(wrong <= 1e-5 * largest, "{name}[{index}]: {got}, expected {expected}");
    }
}

fn shape(
    (heads, kv_heads, padded, dim): (usize, usize, usize, usize),
    queries: usize,
    keys: usize,
    window: Option<usize>,
) -> AttentionShape {
    AttentionShape { heads, kv_heads, padded, dim, queries, keys, window }
}

#[test]
fn sequences_around_the_edges_of_tiles() {
    for length in [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100] {
        for window in [None, Some(1), Some(16), Some(40), Some(1000)] {
            let sizes = (4, 2, 8, 6);
            let shape = shape(sizes, length, length, window);
            Case::new(shape, (0..length as u32).collect(), length as u64).check();
        }
    }
}

#[test]
fn a_few_queries_of_a_long_sequence() {
    for window in [None, Some(100)] {
        let shape = shape((3, 1, 64, 64), 3, 300, window);
        Case::new(shape, vec![0, 150, 299], 5).check();
    }
}

proptest! {
    #[test]
    fn any_shape_and_any_positions(
        (kv_heads, group) in (1..3_usize, 1..4_usize),
        half in 1..13_usize,
        keys in 1..120_usize,
        picks in prop::collection::btree_set(0..120_u32, 1..80),
        window in prop::option::of(1..130_usize),
        seed: u64,
    ) {
        let positions: Vec<u32> =
            picks.into_iter().map(|p| p % keys as u32).collect::<std::collections::BTreeSet<_>>()
                .into_iter().collect();
        let (dim, queries) = (2 * half, positions.len());
        let padded = dim.next_multiple_of(8);
        let shape = shape((kv_heads * group, kv_heads, padded, dim), queries, keys, window);
        Case::new(shape, positions, seed).check();
    }
}
