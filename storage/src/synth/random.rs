//! Random numbers of a stream that is named by a key: the same on every machine.

use crate::permutation::mix;

/// SplitMix64.
#[derive(Clone, Debug)]
pub(super) struct Stream(u64);

impl Stream {
    /// The stream of `purpose` and `index` under `seed`.
    pub(super) fn new(seed: u64, purpose: u64, index: u64) -> Self {
        Self(mix(mix(seed ^ 0x7379_6e74_6865_7469) ^ mix(purpose)) ^ mix(index.wrapping_add(1)))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `0..n`; 0 where there is none.
    pub(super) fn below(&mut self, n: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u32
    }

    /// Uniform in [0, 1).
    pub(super) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Near enough to a standard normal: the sum of four uniforms, scaled. It needs no function
    /// that one machine may round differently from another.
    pub(super) fn normal(&mut self) -> f64 {
        let sum = self.uniform() + self.uniform() + self.uniform() + self.uniform();
        (sum - 2.0) * 1.732_050_807_568_877_2
    }
}
