//! GGUF's Q8_0: weights as blocks of 32 integers of 8 bits with one f16 scale, 8.5 bits a number.

use super::simd::kernel;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Numbers of a block, neighbours along the input dimension of a weight.
pub const BLOCK: usize = 32;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 2 + BLOCK;

/// A block of Q8_0 as it lies in a GGUF file: the step as f16, little-endian, then 32 numbers of 8
/// bits in steps (-127 to 127 as quantised here; a file may hold -128 too).
pub type BlockQ8_0 = [u8; BLOCK_BYTES];

/// The block of these numbers in steps of `scale`.
fn block(scale: f16, values: [i8; BLOCK]) -> BlockQ8_0 {
    let mut block = [0; BLOCK_BYTES];
    let (head, rest) = block.split_at_mut(2);
    head.copy_from_slice(&scale.to_le_bytes());
    for (byte, value) in rest.iter_mut().zip(values) {
        *byte = value.cast_unsigned();
    }
    block
}

/// The step of a block.
fn scale(block: &BlockQ8_0) -> f16 {
    f16::from_le_bytes([block[0], block[1]])
}

/// Why a row can't be quantised to Q8_0.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum QuantizeError {
    /// The row doesn't divide into blocks.
    #[error("rows of {0} numbers don't divide into blocks of 32; keep this weight in bf16 or f32")]
    Length(usize),
    /// A number is NaN or infinite.
    #[error("element {0} of the row is not finite; Q8_0 can't hold it: check the weights")]
    NotFinite(usize),
    /// The block from this element on has numbers above the largest f16 scale times 127.
    #[error(
        "the block at element {0} of the row has magnitudes up to {1:e}, beyond what Q8_0 can hold \
         (8.3e6); keep this weight in bf16 or f32"
    )]
    TooLarge(usize, f32),
}

/// Quantises a row by ggml's rule: the scale is the largest magnitude / 127, the values are rounded
/// to the nearest multiple of it (halves away from zero), and then the scale is rounded to f16.
///
/// A block whose scale is too small for f16 becomes zeros, which is what it stands for.
pub fn quantize_row(row: &[f32]) -> Result<Vec<BlockQ8_0>, QuantizeError> {
    let (blocks, []) = row.as_chunks::<BLOCK>() else {
        return Err(QuantizeError::Length(row.len()));
    };
    blocks.iter().enumerate().map(|(i, block)| quantize_block(block, i * BLOCK)).collect()
}

/// Quantises the block that starts at element `start` of its row.
fn quantize_block(numbers: &[f32; BLOCK], start: usize) -> Result<BlockQ8_0, QuantizeError> {
    if let Some(i) = numbers.iter().position(|x| !x.is_finite()) {
        return Err(QuantizeError::NotFinite(start + i));
    }
    let largest = numbers.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let step = largest / 127.0;
    let scale = f16::from_f32(step);
    if scale.is_infinite() {
        return Err(QuantizeError::TooLarge(start, largest));
    }
    if scale == f16::ZERO {
        return Ok([0; BLOCK_BYTES]);
    }
    let per_step = 1.0 / step;
    Ok(block(scale, numbers.map(|x| (x * per_step).round() as i8)))
}

kernel! {
    /// The numbers of `blocks`, exactly: their products with the scale need no rounding. `dst` holds
    /// 32 for every block. A scale that is not finite (in a corrupt file) makes numbers that are not
    /// finite.
    pub fn dequantize = dequantize_body(blocks: &[BlockQ8_0], dst: &mut [f32])
}

/// Blocks whose scales are converted together.
const SCALES: usize = 16;

#[inline(always)]
fn dequantize_body<const FMA: bool>(blocks: &[BlockQ8_0], dst: &mut [f32]) {
    assert_eq!(blocks.len() * BLOCK, dst.len(), "{} blocks in {}", blocks.len(), dst.len());
    let mut halves = [f16::ZERO; SCALES];
    let mut scales = [0.0; SCALES];
    for (blocks, dst) in blocks.chunks(SCALES).zip(dst.chunks_mut(SCALES * BLOCK)) {
        for (half, block) in halves.iter_mut().zip(blocks) {
            *half = scale(block);
        }
        halves.convert_to_f32_slice(&mut scales);
        let (dst, _) = dst.as_chunks_mut::<BLOCK>();
        for ((block, scale), dst) in blocks.iter().zip(&scales).zip(dst) {
            for (y, &value) in dst.iter_mut().zip(&block[2..]) {
                *y = scale * f32::from(value.cast_signed());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]
    use super::*;

    fn numbers(n: usize, size: f32) -> Vec<f32> {
        (0..n).map(|i| size * (((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0)).collect()
    }

    fn values(block: &BlockQ8_0) -> [i8; BLOCK] {
        std::array::from_fn(|i| block[2 + i].cast_signed())
    }

    fn round_trip(row: &[f32]) -> Vec<f32> {
        let mut back = vec![f32::NAN; row.len()];
        dequantize(&quantize_row(row).unwrap(), &mut back);
        back
    }

    #[test]
    fn follows_the_rule_of_ggml() {
        let mut row = [0.0; 64];
        (row[0], row[1], row[2], row[3], row[31]) = (-127.0, 0.5, -0.5, 1.49, 126.5);
        row[32] = 2.0;
        row[33] = -1.0;
        let blocks = quantize_row(&row).unwrap();
        assert_eq!(blocks.len(), 2);
        assert_eq!(scale(&blocks[0]), f16::ONE);
        let v = values(&blocks[0]);
        assert_eq!((v[0], v[1], v[2], v[3], v[31]), (-127, 1, -1, 1, 127), "halves away from zero");
        assert!(v[4..31].iter().all(|&v| v == 0));
        // 2 / 127 = 0.015748...: the nearest f16 is 1032 / 65536.
        assert_eq!(scale(&blocks[1]).to_f32(), 1032.0 / 65536.0);
        let v = values(&blocks[1]);
        assert_eq!((v[0], v[1]), (127, -64));
    }

    #[test]
    fn every_number_comes_back_within_half_a_step() {
        // From scales that are subnormal in f16 (an absolute error of 2^-25) to the largest.
        for size in [3e-5, 1e-3, 0.02, 1.0, 700.0, 8.3e6] {
            let row = numbers(32 * 37, size);
            for (block, back) in row.chunks(32).zip(round_trip(&row).chunks(32)) {
                let step = block.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
                let of_scale = 127.0 * (step * 2f32.powi(-11)).max(2f32.powi(-25));
                for (x, y) in block.iter().zip(back) {
                    assert!((x - y).abs() <= (0.5 * step + of_scale) * 1.0001, "{x} became {y}");
                }
            }
        }
    }

    #[test]
    fn nothing_and_almost_nothing_become_zeros() {
        assert!(quantize_row(&[]).unwrap().is_empty());
        for tiny in [0.0, -0.0, f32::from_bits(1), -1e-39, 3e-6] {
            let blocks = quantize_row(&[tiny; 32]).unwrap();
            assert_eq!(blocks, [[0; BLOCK_BYTES]], "{tiny:e}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        for length in [1, 31, 33, 172] {
            assert_eq!(quantize_row(&vec![1.0; length]), Err(QuantizeError::Length(length)));
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 31, 32, 95] {
                let mut row = [1.0; 96];
                row[at] = bad;
                assert_eq!(quantize_row(&row), Err(QuantizeError::NotFinite(at)));
            }
        }
        let mut row = [1.0; 96];
        row[40] = -127.0 * 65504.0;
        assert_eq!(scale(&quantize_row(&row).unwrap()[1]), f16::MAX, "the largest that fits");
        for large in [127.0 * 65520.0, f32::MAX] {
            row[40] = -large;
            assert_eq!(quantize_row(&row), Err(QuantizeError::TooLarge(32, large)));
        }
    }

    #[test]
    fn dequantizes_exactly_any_number_of_blocks_and_any_scale() {
        let steps = |i: usize| f16::from_bits((i * 2_521) as u16);
        for count in [0, 1, 15, 16, 17, 31, 33, 1000] {
            let numbers = |b: usize| std::array::from_fn(|i| (b * 32 + i * 37) as u8 as i8);
            let blocks: Vec<BlockQ8_0> = (0..count).map(|b| block(steps(b), numbers(b))).collect();
            let mut dst = vec![f32::NAN; count * 32];
            dequantize(&blocks, &mut dst);
            for (b, (block, dst)) in blocks.iter().zip(dst.chunks(32)).enumerate() {
                for (value, &y) in values(block).into_iter().zip(dst) {
                    let exact = scale(block).to_f64() * f64::from(value);
                    let same = f64::from(y) == exact || (y.is_nan() && exact.is_nan());
                    assert!(same, "block {b}: {} * {value} is not {y}", scale(block));
                }
            }
        }
        let extreme = block(f16::MAX, [i8::MIN; 32]);
        let mut dst = [0.0; 32];
        dequantize(&[extreme], &mut dst);
        assert_eq!(dst, [-128.0 * 65504.0; 32]);
    }

    #[test]
    #[should_panic(expected = "2 blocks in 63")]
    fn a_destination_of_another_size_is_a_bug() {
        let block = block(f16::ONE, [1; 32]);
        dequantize(&[block; 2], &mut [0.0; 63]);
    }
}
