//! First values of tensors, each a pure function of seed, name and place: any part of a tensor can be had without
//! those before it.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_storage::hash::xxh3_hex;
use reclora_storage::permutation::mix;

use super::layout::{Init, TensorLayout};

/// Scatters the bits of a key (SplitMix64, Steele et al. 2014): a bijection of 64 bits.
pub(crate) fn splitmix(key: u64) -> u64 {
    mix(key.wrapping_add(0x9e37_79b9_7f4a_7c15))
}

impl TensorLayout {
    /// Fills `values` with what the tensor begins with, from its value number `first` on.
    pub fn fill(&self, seed: u64, first: usize, values: &mut [f32]) {
        match (self.init, &self.shape[..]) {
            (Init::Uniform, [.., fan_in]) => {
                uniform(1.0 / (*fan_in as f32).sqrt(), seed, &self.name, first, values);
            }
            (Init::XavierNormal, [height, width]) => {
                let deviation = (2.0 / (height + width) as f64).sqrt();
                normal(deviation, seed, &self.name, first, values);
            }
            _ => values.fill(0.0),
        }
    }
}

/// Uniform in `-bound..bound`, a word each.
fn uniform(bound: f32, seed: u64, name: &str, first: usize, values: &mut [f32]) {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..24].copy_from_slice(&xxh3_hex(name.as_bytes()).as_bytes()[..16]);
    let mut random = ChaCha8Rng::from_seed(key);
    random.set_word_pos(first as u128);
    for value in values {
        let unit = (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        *value = unit * bound;
    }
}

/// Normal deviates (Box–Muller), each of two numbers of two words.
fn normal(deviation: f64, seed: u64, name: &str, first: usize, values: &mut [f32]) {
    let key = xxh3_hex(format!("{seed}/crm/{name}").as_bytes());
    let key = u64::from_str_radix(&key, 16).unwrap_or(seed);
    let mut random = ChaCha8Rng::seed_from_u64(key);
    random.set_word_pos(4 * first as u128);
    // In (0, 1]: the logarithm below must be finite.
    let mut uniform = || ((random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    for value in values {
        let radius = (-2.0 * uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * uniform();
        *value = (deviation * radius * angle.cos()) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_tensor_begins_as_in_the_whole() {
        for init in [Init::Zero, Init::Uniform, Init::XavierNormal] {
            let tensor = TensorLayout { name: "a".into(), shape: vec![5, 3], range: 0..15, init };
            let mut whole = [1.0; 15];
            tensor.fill(7, 0, &mut whole);
            for first in 0..15 {
                let mut part = vec![1.0; 15 - first];
                tensor.fill(7, first, &mut part);
                assert_eq!(part, whole[first..], "{init:?} {first}");
            }
            let mut other = [1.0; 15];
            tensor.fill(8, 0, &mut other);
            assert_eq!(other == whole, init == Init::Zero);
        }
    }
}
