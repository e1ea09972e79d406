//! Whether all ranks still have the same parameters and optimizer state, to the bit.
//!
//! They compute the same from the same, so they must. Where they do not, memory or a GPU is faulty, or a
//! rank runs other code; and every later step would be made of two models.

use std::collections::BTreeMap;
use std::ops::Range;

use reclora_comm::Communicator;
use reclora_storage::hash::xxh3_hex;

use crate::error::{Result, TrainerError};

/// Length of a hash as text.
const HASH: usize = 16;

/// What is compared of each tensor, as it follows its name.
const PARTS: [&str; 3] = ["", ", first moment", ", second moment"];

/// What every rank has a copy of: parameters, and the optimizer's moments of them.
#[derive(Clone, Copy, Debug)]
pub struct Replica<'a> {
    /// Trained parameters.
    pub parameters: &'a [f32],
    /// AdamW's first moment.
    pub first_moment: &'a [f32],
    /// AdamW's second moment.
    pub second_moment: &'a [f32],
}

/// Compares the ranks' replicas after step `step`; `tensors` are the names and places of the parameters.
///
/// # Errors
/// [`TrainerError::Replica`], the same on every rank: who differs, in which tensor.
pub fn check(
    replica: Replica<'_>,
    tensors: &[(String, Range<usize>)],
    step: u64,
    comm: &mut dyn Communicator,
) -> Result<()> {
    let hashes = hashes(replica, tensors);
    let whole = xxh3_hex(hashes.concat().as_bytes());
    let of_ranks = comm.all_gather("replica check", whole.as_bytes())?;
    if of_ranks.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(());
    }
    let of_ranks = comm.all_gather("replica check by tensor", hashes.concat().as_bytes())?;
    for (index, (name, _)) in tensors.iter().enumerate() {
        for (part, of) in PARTS.into_iter().enumerate() {
            let at = HASH * (PARTS.len() * index + part);
            let mine = of_ranks.iter().map(|all| all.get(at..at + HASH).unwrap_or_default());
            let odd = odd(&mine.collect::<Vec<_>>());
            if !odd.is_empty() {
                return Err(TrainerError::Replica { step, tensor: format!("{name}{of}"), odd });
            }
        }
    }
    Err(TrainerError::Input("the ranks have different tensors".into()))
}

/// A hash of each tensor, of its first moment and of its second.
fn hashes(replica: Replica<'_>, tensors: &[(String, Range<usize>)]) -> Vec<String> {
    let Replica { parameters, first_moment, second_moment } = replica;
    let of = |values: &[f32], range: &Range<usize>| {
        xxh3_hex(bytemuck::cast_slice(values.get(range.clone()).unwrap_or_default()))
    };
    let each = tensors.iter().flat_map(|(_, range)| {
        [parameters, first_moment, second_moment].map(|values| of(values, range))
    });
    each.collect()
}

/// The ranks that do not have what most have; where no value has a majority, all but those with the
/// first rank's.
fn odd(values: &[&[u8]]) -> Vec<usize> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(*value).or_insert(0) += 1;
    }
    let most = counts.iter().find(|(_, count)| **count * 2 > values.len()).map(|(value, _)| *value);
    let usual = most.or(values.first().copied()).unwrap_or_default();
    (0..values.len()).filter(|&rank| values[rank] != usual).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minority_is_odd() {
        assert_eq!(odd(&[b"a", b"a", b"b", b"a"]), [2]);
        assert_eq!(odd(&[b"b", b"a", b"a"]), [0]);
        assert_eq!(odd(&[b"a", b"b"]), [1]);
        assert_eq!(odd(&[b"a", b"a"]), [0; 0]);
        assert_eq!(odd(&[]), [0; 0]);
    }
}
