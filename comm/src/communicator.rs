//! The one interface through which stages talk to other ranks, and its trivial case.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{CommError, Result};
use crate::record::Record;

/// In which order the sums of ranks are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// In the order of a binary tree over the ranks: the same bits with 1, 2, 4, 8, … ranks.
    Canonical,
    /// As NCCL likes it (`ncclAllReduce`, so only with `nccl`): bits that depend on the number of ranks.
    Fastest,
}

/// In what values cross the wire on their way into a sum and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16, half the bytes (only with `tcp`). Added in f32 in the order of a binary tree, and the
    /// sum rounded once: the same bits on every rank, but others with another number of ranks.
    Bf16,
}

/// A rank's view of its job. Every rank must enter the same collectives, with the same names, in the
/// same order.
pub trait Communicator: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks in the job.
    fn world_size(&self) -> usize;

    /// Replaces `buffer` on every rank by the sum over ranks, added in the order of
    /// [`tree::sum`](crate::tree::sum) over the rank index.
    ///
    /// # Errors
    /// Also [`CommError::NotANumber`], the same on every rank, where a sum is none; infinities pass. Then
    /// the buffer is of no use.
    fn all_reduce_sum(&mut self, name: &str, buffer: &mut [f32]) -> Result<()>;

    /// Replaces a slice of `buffer`, another one on every rank, by the sum over ranks, and returns which;
    /// the slices of all ranks, in rank order, are the whole. What is outside the slice is of no use then.
    ///
    /// # Errors
    /// As for [`Self::all_reduce_sum`].
    fn reduce_scatter_sum(&mut self, name: &str, buffer: &mut [f32]) -> Result<Range<usize>>;

    /// Gives every rank the bytes of each rank, one entry per rank in rank order.
    fn all_gather(&mut self, name: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Gives rank r the r-th of `pieces`, and returns what each rank gave this one, in rank order.
    ///
    /// # Errors
    /// Also where there is not one piece per rank.
    fn all_to_all(&mut self, name: &str, pieces: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>>;

    /// Replaces `bytes` on every rank by those of rank `root`.
    fn broadcast(&mut self, name: &str, root: usize, bytes: &mut Vec<u8>) -> Result<()>;

    /// Returns when every rank has entered it.
    fn barrier(&mut self, name: &str) -> Result<()>;

    /// The last collectives of this rank, oldest first, where they are recorded.
    fn records(&self) -> Vec<Record> {
        Vec::new()
    }
}

/// Where the first value is that is not a number.
pub(crate) fn first_nan(values: &[f32]) -> Option<usize> {
    values.iter().position(|value| value.is_nan())
}

/// Refuses a sum in which there is one.
pub(crate) fn refuse_nan(name: &str, sequence: u64, first_nan: Option<usize>) -> Result<()> {
    let error = |index| CommError::NotANumber { collective: name.into(), sequence, index };
    first_nan.map_or(Ok(()), |index| Err(error(index)))
}

/// Refuses pieces of [`Communicator::all_to_all`] that are not one per rank.
pub(crate) fn one_piece_per_rank(name: &str, pieces: &[Vec<u8>], world_size: usize) -> Result<()> {
    if pieces.len() == world_size {
        return Ok(());
    }
    Err(CommError::Config(format!("{name}: {} pieces for {world_size} ranks", pieces.len())))
}

/// The communicator of a job with one rank: every collective is the identity.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce_sum(&mut self, name: &str, buffer: &mut [f32]) -> Result<()> {
        self.reduce_scatter_sum(name, buffer).map(drop)
    }

    fn reduce_scatter_sum(&mut self, name: &str, buffer: &mut [f32]) -> Result<Range<usize>> {
        refuse_nan(name, 0, first_nan(buffer))?;
        Ok(0..buffer.len())
    }

    fn all_gather(&mut self, _name: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn all_to_all(&mut self, name: &str, pieces: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        one_piece_per_rank(name, &pieces, 1)?;
        Ok(pieces)
    }

    fn broadcast(&mut self, name: &str, root: usize, _bytes: &mut Vec<u8>) -> Result<()> {
        if root == 0 {
            Ok(())
        } else {
            Err(CommError::NoSuchRank { collective: name.into(), rank: root, world_size: 1 })
        }
    }

    fn barrier(&mut self, _name: &str) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solo_collectives_are_the_identity() {
        let mut comm = Solo;
        let mut buffer = [1.5, -0.0];
        comm.all_reduce_sum("gradient", &mut buffer).unwrap();
        assert_eq!(comm.reduce_scatter_sum("gradient", &mut buffer).unwrap(), 0..2);
        let error = comm.all_reduce_sum("gradient", &mut [0.0, f32::NAN]).unwrap_err();
        assert_eq!(error.to_string(), "gradient #0: the sum's value 1 is not a number");
        assert_eq!(buffer.map(f32::to_bits), [1.5f32, -0.0].map(f32::to_bits));
        assert_eq!(comm.all_gather("scores", b"ab").unwrap(), vec![b"ab".to_vec()]);
        assert_eq!(comm.all_to_all("rows", vec![vec![7]]).unwrap(), vec![vec![7]]);
        assert!(comm.all_to_all("rows", Vec::new()).is_err());
    }

    #[test]
    fn solo_refuses_a_root_that_does_not_exist() {
        let error = Solo.broadcast("plan", 1, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "plan: rank 1 does not exist in a world of 1");
    }
}
