//! Platt scaling: a model's logit brought to log-odds by a line fitted on labels it has not seen.

use serde::{Deserialize, Serialize};

/// log-odds = slope · logit + intercept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Platt {
    /// 1 for a calibrated model, less for one that is too sure of itself.
    pub slope: f64,
    /// Added to every log-odds.
    pub intercept: f64,
}

impl Platt {
    /// What leaves a logit as it is: what a fit begins with, and is drawn to as by about one sample.
    pub const IDENTITY: Self = Self { slope: 1.0, intercept: 0.0 };
    const STEPS: usize = 50;

    /// The line of the least log loss over samples of (logit, like), by Newton's method. The same bits each time.
    pub fn fit(samples: &[(f32, bool)]) -> Self {
        let mut line = Self::IDENTITY;
        let mut loss = line.penalised(samples);
        for _ in 0..Self::STEPS {
            let [slope, intercept] = line.newton(samples);
            // Halved until it helps: far from the optimum a whole step can be too long.
            let next = (0..30).map(|half| 0.5f64.powi(half)).find_map(|share| {
                let next = Self {
                    slope: line.slope + share * slope,
                    intercept: line.intercept + share * intercept,
                };
                Some((next, next.penalised(samples))).filter(|(_, lower)| *lower < loss)
            });
            let Some((next, lower)) = next else { break };
            (line, loss) = (next, lower);
        }
        line
    }

    /// The log-odds of a logit.
    pub fn of(self, logit: f64) -> f64 {
        self.slope * logit + self.intercept
    }

    /// The logit whose log-odds these are; `None` for a model that says nothing of likes, or the contrary.
    pub fn inverse(self) -> Option<Self> {
        let slope = 1.0 / self.slope;
        (self.slope > 0.0 && slope.is_finite())
            .then(|| Self { slope, intercept: -self.intercept * slope })
    }

    /// This line, then another.
    pub fn then(self, next: Self) -> Self {
        Self { slope: next.slope * self.slope, intercept: next.of(self.intercept) }
    }

    fn penalised(self, samples: &[(f32, bool)]) -> f64 {
        let Self { slope, intercept } = self;
        let loss = samples.iter().map(|&(logit, like)| {
            let odds = self.of(f64::from(logit));
            odds.max(0.0) + (-odds.abs()).exp().ln_1p() - if like { odds } else { 0.0 }
        });
        loss.sum::<f64>() + 0.5 * ((slope - 1.0).powi(2) + intercept.powi(2))
    }

    /// Newton's step of slope and intercept.
    fn newton(self, samples: &[(f32, bool)]) -> [f64; 2] {
        let (mut by, mut curve) =
            ([self.slope - 1.0, self.intercept], [1.0 /* slope² */, 0.0, 1.0 /* intercept² */]);
        for &(logit, like) in samples {
            let logit = f64::from(logit);
            let p = 1.0 / (1.0 + (-self.of(logit)).exp());
            let (error, weight) = (p - f64::from(u8::from(like)), p * (1.0 - p));
            by = [by[0] + error * logit, by[1] + error];
            curve =
                [curve[0] + weight * logit * logit, curve[1] + weight * logit, curve[2] + weight];
        }
        let [a, b, c] = curve;
        let determinant = a * c - b * b;
        [(b * by[1] - c * by[0]) / determinant, (b * by[0] - a * by[1]) / determinant]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples whose log-odds are a line of their logits: of 1,000 with one logit as many are liked as it says.
    fn made(line: Platt) -> Vec<(f32, bool)> {
        let logits = (-8..=8).map(|step| 0.25 * f64::from(step));
        logits
            .flat_map(|logit| {
                let likes = 1000.0 / (1.0 + (-line.of(logit)).exp());
                (0..1000).map(move |n| (logit as f32, f64::from(n) < likes.round()))
            })
            .collect()
    }

    #[test]
    fn the_line_is_found() {
        for (slope, intercept) in [(1.0, 0.0), (0.4, -0.7), (2.5, 1.0)] {
            let fitted = Platt::fit(&made(Platt { slope, intercept }));
            let near = (fitted.slope - slope).abs() < 0.02;
            assert!(near && (fitted.intercept - intercept).abs() < 0.02, "{fitted:?}");
        }
    }

    #[test]
    fn nothing_and_one_class_are_borne() {
        assert_eq!(Platt::fit(&[]), Platt::IDENTITY);
        let sure = Platt::fit(&[(30.0, true), (-30.0, false), (1e3, true)]);
        assert!(sure.slope.is_finite() && sure.slope > 0.0, "{sure:?}");
        let contrary = Platt::fit(&made(Platt { slope: -1.0, intercept: 0.0 }));
        assert!(contrary.slope < 0.0 && contrary.inverse().is_none());
    }

    #[test]
    fn a_line_and_its_inverse_are_the_identity() {
        let line = Platt { slope: 0.6, intercept: -0.2 };
        let Platt { slope, intercept } = line.then(line.inverse().unwrap());
        assert!((slope - 1.0).abs() < 1e-12 && intercept.abs() < 1e-12);
    }
}
