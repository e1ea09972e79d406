//! The attention kernels against the definition, in f64 and without tiles.

use half::bf16;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::kernels::attention::{
    AttentionBuffers, AttentionInputs, AttentionShape, attention,
};
use reclora_trainer::kernels::attention_grad::{HeadGradients, attention_grad};
use reclora_trainer::kernels::bf16::available;

/// Inputs of a call: all heads, head-major, zero beyond `dim`.
struct Case {
    shape: AttentionShape,
    positions: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
}

/// Output and gradients of q, k and v, laid out like the kernels'.
struct Answer([Vec<f64>; 4]);

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
    /// With the absolute value as
    /// `size`, sums of the sizes of all terms: rounding factors changes a small part of that.
    fn definition(&self, size: impl Fn(f64) -> f64) -> Answer {
        let AttentionShape { heads, kv_heads, padded, dim, queries, .. } = self.shape;
        let mut answer = [&self.d_out, &self.q, &self.k, &self.v].map(|x| vec![0.0; x.len()]);
        for (head, query) in (0..heads).flat_map(|h| (0..queries).map(move |i| (h, i))) {
            let q_at = (head * queries + query) * padded;
            let o_at = (query * heads + head) * dim;
            let kv_at = |key: usize| (head * kv_heads / heads * self.shape.keys + key) * padded;
            let end = self.positions[query] as usize + 1;
            let seen = end - self.shape.window.unwrap_or(end).min(end)..end;
            let dot = |a: &[f32], b: &[f32], size: &dyn Fn(f64) -> f64| -> f64 {
                a.iter().zip(b).map(|(a, b)| size(f64::from(*a) * f64::from(*b))).sum()
            };
            let q = &self.q[q_at..q_at + dim];
            let d_out = &self.d_out[o_at..o_at + dim];
            let exp: Vec<f64> = seen
                .clone()
                .map(|key| dot(q, &self.k[kv_at(key)..][..dim], &|x| x).exp2())
                .collect();
            let sum: f64 = exp.iter().sum();
            let p: Vec<f64> = exp.iter().map(|e| e / sum).collect();
            let dp: Vec<f64> =
                seen.clone().map(|key| dot(d_out, &self.v[kv_at(key)..][..dim], &size)).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for (key, (p, dp)) in seen.zip(p.iter().zip(&dp)) {
                let ds = p * (dp + size(-mean));
                for d in 0..dim {
                    answer[0][o_at + d] += p * size(f64::from(self.v[kv_at(key) + d]));
                    answer[1][q_at + d] += ds * size(f64::from(self.k[kv_at(key) + d]));
                    answer[2][kv_at(key) + d] += ds * size(f64::from(q[d]));
                    answer[3][kv_at(key) + d] += p * size(f64::from(d_out[d]));
                }
            }
        }
        Answer(answer)
    }

    /// The same inputs, in numbers that bf16 has, and multiplied in bf16.
    fn in_bf16(&self) -> Self {
        let round = |values: &[f32]| values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        Self {
            shape: AttentionShape { in_bf16: true, ..self.shape },
            positions: self.positions.clone(),
            q: round(&self.q),
            k: round(&self.k),
            v: round(&self.v),
            d_out: round(&self.d_out),
        }
    }

    /// Output and gradients (of those wanted), into memory full of garbage.
    fn run(&self, wanted: [bool; 3], buffers: &mut AttentionBuffers) -> [Vec<f32>; 4] {
        let Self { shape, positions, q, k, v, d_out } = self;
        let garbage = |length: usize| vec![GARBAGE; length];
        let (mut out, mut log_sum) = (garbage(d_out.len()), garbage(shape.heads * shape.queries));
        let inputs = AttentionInputs { shape: *shape, q, k, v, positions };
        attention(inputs, &mut out, &mut log_sum, buffers);
        let (mut dq, mut dk, mut dv) = (garbage(q.len()), garbage(k.len()), garbage(v.len()));
        let gradients = &mut HeadGradients {
            q: wanted[0].then_some(&mut dq[..]),
            k: wanted[1].then_some(&mut dk[..]),
            v: wanted[2].then_some(&mut dv[..]),
        };
        attention_grad(inputs, &log_sum, &out, d_out, gradients, buffers);
        [out, dq, dk, dv]
    }

    /// What all memory held before must not matter, nor which gradients are wanted.
    fn check(&self) {
        self.check_within(1e-5);
        if available() {
            // Probabilities and gradients of scores are rounded: by up to 1/512 each, of a sum.
            self.in_bf16().check_within(1.0 / 128.0);
        }
    }

    fn check_within(&self, tolerance: f64) {
        let buffers = &mut AttentionBuffers::default();
        let mut damaged = Self { positions: self.positions.clone(), ..self.in_bf16() };
        damaged.shape.in_bf16 = self.shape.in_bf16;
        damaged.q.fill(f32::NAN);
        damaged.run([true; 3], buffers);
        let got = self.run([true; 3], buffers);
        let (expected, sizes) = (self.definition(|x| x), self.definition(f64::abs));
        for (i, name) in ["out", "dq", "dk", "dv"].iter().enumerate() {
            assert_close(name, &got[i], &expected.0[i], &sizes.0[i], tolerance);
        }
        for only in 0..3 {
            let one = self.run(std::array::from_fn(|i| i == only), buffers);
            for (i, gradient) in one[1..].iter().enumerate() {
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                let expected = vec![GARBAGE; gradient.len()];
                let expected = if i == only { &got[1 + i] } else { &expected };
                assert!(gradient.iter().zip(expected).all(same), "{i} where only {only} is wanted");
            }
        }
    }
}

/// What memory holds before.
const GARBAGE: f32 = 12_345.0;

fn assert_close(name: &str, got: &[f32], expected: &[f64], sizes: &[f64], tolerance: f64) {
    for (index, ((got, expected), size)) in got.iter().zip(expected).zip(sizes).enumerate() {
        let wrong = (f64::from(*got) - expected).abs();
        assert!(wrong <= tolerance * size, "{name}[{index}]: {got}, expected {expected} ({size})");
    }
}

fn shape(
    (heads, kv_heads, padded, dim): (usize, usize, usize, usize),
    queries: usize,
    keys: usize,
    window: Option<usize>,
) -> AttentionShape {
    AttentionShape { heads, kv_heads, padded, dim, queries, keys, window, in_bf16: false }
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
