//! Reliability: does "70 %" come true seven times in ten?

use serde::{Deserialize, Serialize};

use super::Scored;

/// The samples whose probability lies in [lower, upper); the last bin holds its upper end too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// Lower end of the bin.
    pub lower: f64,
    /// Upper end of the bin.
    pub upper: f64,
    /// Samples in the bin.
    pub count: u64,
    /// Mean predicted probability; `None` for an empty bin.
    pub mean_probability: Option<f64>,
    /// Share of samples that were liked; `None` for an empty bin.
    pub like_rate: Option<f64>,
}

/// `bins` bins of equal width over [0, 1].
pub fn calibration(scored: &[Scored], bins: usize) -> Vec<CalibrationBin> {
    let mut sums = vec![(0u64, 0.0f64, 0u64); bins];
    for sample in scored {
        let p = f64::from(sample.probability);
        let bin = ((p * bins as f64) as usize).min(bins.saturating_sub(1));
        if let Some((count, probability, likes)) = sums.get_mut(bin) {
            *count += 1;
            *probability += p;
            *likes += u64::from(sample.label);
        }
    }
    let share = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
    sums.iter()
        .enumerate()
        .map(|(index, &(count, probability, likes))| CalibrationBin {
            lower: index as f64 / bins as f64,
            upper: (index + 1) as f64 / bins as f64,
            count,
            mean_probability: share(probability, count),
            like_rate: share(likes as f64, count),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::samples;
    use super::*;

    #[test]
    fn every_sample_is_in_one_bin() {
        let scored = samples(&[(0, true, 0.0), (0, true, 0.25), (0, false, 0.3), (0, true, 1.0)]);
        let bins = calibration(&scored, 4);
        assert_eq!(bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [1, 2, 0, 1]);
        assert_eq!(bins[1].like_rate, Some(0.5));
        assert!((bins[1].mean_probability.unwrap() - 0.275).abs() < 1e-6);
        assert_eq!((bins[2].mean_probability, bins[3].upper), (None, 1.0));
        assert!(calibration(&scored, 0).is_empty());
    }
}
