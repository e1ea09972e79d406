//! What the ranks of a test sum.
#![allow(dead_code, reason = "each program uses a part of it")]

/// Lengths that are fewer than the ranks, odd, and more than a page.
pub const LENGTHS: [usize; 5] = [1, 3, 64, 1021, 70_000];

/// A rank's numbers, of different sizes, so that another order of adding gives other bits.
pub fn of(rank: usize, length: usize) -> Vec<f32> {
    let number = |i: usize| {
        let bits = (i as u32 + 1).wrapping_mul(2_654_435_761).rotate_left(7 * rank as u32 + 3);
        (bits as f32 / u32::MAX as f32 - 0.5) * [1.0, 3.0, 1e3, -0.7][(i + rank) % 4]
    };
    (0..length).map(number).collect()
}
