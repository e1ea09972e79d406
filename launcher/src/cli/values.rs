//! What flags may be that is more than a word or a number.

use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Most nodes of a job.
const MOST: u16 = 1024;

/// How ranks are bound to cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Binding {
    /// To those of the launcher.
    #[default]
    None,
    /// The ranks of a machine to its NUMA nodes, in blocks of the same size.
    Node,
}

/// How many nodes a job has (`--nnodes`): a number, or a range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCount {
    /// With fewer it waits.
    pub min: u16,
    /// Those that may take part.
    pub max: u16,
}

impl NodeCount {
    /// A single node.
    pub const ONE: Self = Self { min: 1, max: 1 };
}

impl FromStr for NodeCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|n| (1..=MOST).contains(n));
        let (min, max) = text.split_once(':').unwrap_or((text, text));
        match (number(min), number(max)) {
            (Some(min), Some(max)) if min <= max => Ok(Self { min, max }),
            _ => Err(format!("give a number from 1 to {MOST}, or two of them as MIN:MAX")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges() {
        let count = |text: &str| text.parse::<NodeCount>().map(|count| (count.min, count.max));
        assert_eq!(count("4"), Ok((4, 4)));
        assert_eq!(count("2:8"), Ok((2, 8)));
        for bad in ["", "0", "1025", "8:2", "0:4", "a", "1:2:3", "-1", ":4"] {
            assert!(count(bad).is_err(), "{bad}");
        }
    }
}
