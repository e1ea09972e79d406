//! Python's `random.seed(n); random.shuffle(list)`, to the bit.
//!
//! The published split of BookCrossing was drawn with it, so that only the same generator gives the same
//! test set: the Mersenne Twister MT19937 seeded by an array of one word, and the shuffle of CPython
//! (Fisher-Yates from the end, each index by rejection from the fewest bits that hold it).

const N: usize = 624;
const M: usize = 397;

/// MT19937 as Python seeds it with a small number.
pub(super) struct PythonRandom {
    state: [u32; N],
    next: usize,
}

impl PythonRandom {
    /// `random.seed(seed)`.
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [0_u32; N];
        let mut last = 19_650_218_u32;
        for (i, word) in (0_u32..).zip(&mut state) {
            if i > 0 {
                last = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i);
            }
            *word = last;
        }
        let mut random = Self { state, next: N };
        let mut i = 1;
        for _ in 0..N {
            i = random.stir(i, 1_664_525, |mixed| mixed.wrapping_add(seed));
        }
        for _ in 0..N - 1 {
            let place = i as u32;
            i = random.stir(i, 1_566_083_941, |mixed| mixed.wrapping_sub(place));
        }
        random.set(0, 0x8000_0000);
        random
    }

    /// One step of seeding at word `i`; returns the next word's index.
    fn stir(&mut self, i: usize, factor: u32, add: impl FnOnce(u32) -> u32) -> usize {
        let before = self.word(i - 1);
        let mixed = self.word(i) ^ (before ^ (before >> 30)).wrapping_mul(factor);
        self.set(i, add(mixed));
        if i + 1 < N {
            return i + 1;
        }
        self.set(0, self.word(N - 1));
        1
    }

    fn word(&self, i: usize) -> u32 {
        self.state.get(i % N).copied().unwrap_or_default()
    }

    fn set(&mut self, i: usize, value: u32) {
        if let Some(word) = self.state.get_mut(i) {
            *word = value;
        }
    }

    /// The next 32 bits.
    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let bits = (self.word(i) & 0x8000_0000) | (self.word(i + 1) & 0x7fff_ffff);
                let odd = if bits & 1 == 1 { 0x9908_b0df } else { 0 };
                self.set(i, self.word(i + M) ^ (bits >> 1) ^ odd);
            }
            self.next = 0;
        }
        let mut bits = self.word(self.next);
        self.next += 1;
        bits ^= bits >> 11;
        bits ^= (bits << 7) & 0x9d2c_5680;
        bits ^= (bits << 15) & 0xefc6_0000;
        bits ^ (bits >> 18)
    }

    /// A number in `0..n`; `n` is at least 1.
    fn below(&mut self, n: u32) -> u32 {
        let bits = u32::BITS - n.leading_zeros();
        loop {
            let value = self.next_u32() >> (u32::BITS - bits);
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
        assert_eq!(bits, std::array::from_fn(|_| random.next_u32()));
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
