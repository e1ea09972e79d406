//! Python's `random.seed(n); random.shuffle(list)`, to the bit.
//!
//! The published split of BookCrossing was drawn with it, so that only the same generator gives the same
//! test set: the Mersenne Twister MT19937 seeded by an array of one word, and the shuffle of CPython
//! (Fisher-Yates from the end, each index by rejection from the fewest bits that hold it).

use rand_mt::Mt;

/// MT19937 as Python seeds it with a small number.
pub(super) struct PythonRandom(Mt);

impl PythonRandom {
    /// `random.seed(seed)`.
    pub(super) fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// A number in `0..n`; `n` is at least 1.
    fn below(&mut self, n: u32) -> u32 {
        let bits = u32::BITS - n.leading_zeros();
        loop {
            let value = self.0.next_u32() >> (u32::BITS - bits);
            if value < n {
                return value;
            }
        }
    }

    /// `random.shuffle(values)`. A dataset has fewer than 2^32 of anything.
    pub(super) fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len() as u32).rev() {
            values.swap(i as usize, self.below(i + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_shuffles_are_those_of_python() {
        let mut random = PythonRandom::new(42);
        let bits = [2_746_317_213, 478_163_327, 107_420_369, 3_184_935_163];
        assert_eq!(bits, std::array::from_fn(|_| random.0.next_u32()));
        let shuffled = |n: u32| {
            let mut values: Vec<u32> = (0..n).collect();
            PythonRandom::new(42).shuffle(&mut values);
            values
        };
        // random.seed(42); values = list(range(n)); random.shuffle(values)
        assert_eq!(shuffled(0), [0; 0]);
        assert_eq!(shuffled(1), [0]);
        assert_eq!(shuffled(2), [1, 0]);
        assert_eq!(shuffled(6), [3, 1, 2, 4, 0, 5]);
        assert_eq!(shuffled(10), [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]);
        let many = shuffled(1000);
        assert_eq!(many[..8], [776, 507, 895, 922, 33, 483, 85, 750]);
        assert_eq!(many[997..], [25, 114, 654]);
    }
}
