//! Metrics of samples by how long the user's history was.

use serde::{Deserialize, Serialize};

use super::{Scored, auc, log_loss};

/// The shortest group: fewer earlier interactions than this. Each next group is twice as long.
const SHORTEST: u32 = 5;

/// The samples whose users had a number of earlier interactions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryGroup {
    /// From this many earlier interactions on.
    pub from: u32,
    /// To fewer than this many.
    pub to: u32,
    /// Samples.
    pub samples: u64,
    /// Area under the ROC curve within the group; `None` where all labels are the same.
    pub auc: Option<f64>,
    /// Mean negative log likelihood, in nats.
    pub log_loss: Option<f64>,
}

/// Groups of `scored`, shortest histories first, without empty ones; `lengths` are the numbers of earlier
/// interactions, a sample each.
pub fn by_history_length(scored: &[Scored], lengths: &[u32]) -> Vec<HistoryGroup> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut groups = Vec::new();
    let (mut from, mut to) = (0, SHORTEST);
    while from <= longest && from < to {
        let inside = scored.iter().zip(lengths).filter(|(_, length)| (from..to).contains(*length));
        let inside: Vec<Scored> = inside.map(|(scored, _)| *scored).collect();
        if !inside.is_empty() {
            let (auc, log_loss) = (auc(&inside), log_loss(&inside));
            groups.push(HistoryGroup { from, to, samples: inside.len() as u64, auc, log_loss });
        }
        (from, to) = (to, to.saturating_mul(2));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::samples;

    #[test]
    fn samples_are_in_the_group_of_their_history() {
        let scored = samples(&[(1, true, 0.9), (1, false, 0.1), (2, true, 0.2), (2, false, 0.8)]);
        let groups = by_history_length(&scored, &[0, 4, 5, 23]);
        let of = |group: &HistoryGroup| (group.from, group.to, group.samples, group.auc);
        let groups: Vec<_> = groups.iter().map(of).collect();
        assert_eq!(groups, [(0, 5, 2, Some(1.0)), (5, 10, 1, None), (20, 40, 1, None)]);
        assert!(by_history_length(&[], &[]).is_empty());
        let longest = by_history_length(&scored[..1], &[u32::MAX - 1]);
        assert_eq!(longest.len(), 1);
    }
}
