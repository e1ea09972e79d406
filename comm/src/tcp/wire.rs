//! How a value crosses the wire.

use bytemuck::Pod;
use half::bf16;

use crate::tree::{Take, sum_into};

/// A value as it is sent. Sums are always added in f32.
pub trait Element: Pod {
    /// Values of a leaf, into a sum.
    fn take(leaf: &[Self], take: Take, sum: &mut [f32]);

    /// A sum, as it is sent.
    fn narrow(sum: &[f32], sent: &mut [Self]);
}

impl Element for f32 {
    fn take(leaf: &[f32], take: Take, sum: &mut [f32]) {
        match take {
            Take::Copy => sum.copy_from_slice(leaf),
            Take::Add => sum_into(sum, leaf),
        }
    }

    fn narrow(sum: &[f32], sent: &mut [f32]) {
        sent.copy_from_slice(sum);
    }
}

/// The bits of a bf16: rounded to the nearest, ties to even.
impl Element for u16 {
    fn take(leaf: &[u16], take: Take, sum: &mut [f32]) {
        let values = leaf.iter().map(|bits| bf16::from_bits(*bits).to_f32());
        match take {
            Take::Copy => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum = value),
            Take::Add => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
        }
    }

    fn narrow(sum: &[f32], sent: &mut [u16]) {
        for (sent, value) in sent.iter_mut().zip(sum) {
            *sent = bf16::from_f32(*value).to_bits();
        }
    }
}
