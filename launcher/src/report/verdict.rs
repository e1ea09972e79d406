//! What the figures say, in words; the same in the terminal and on the page.
//!
//! Every sentence is about the interval of a difference. Intervals of two models that overlap say little:
//! the models are measured on the same samples.

use reclora_trainer::metrics::{Compared, Difference, Role};
use reclora_trainer::stages::Leak;

use super::summary::{ModelSummary, OfFigure, Summary};

/// Entropy as a share of that of an even mix from which gates hardly choose.
const EVEN: f64 = 0.9;

const AIMS: [Aim; 2] = [
    Aim { aim: "To rank the samples of all users together", figure: "AUC", of: |by| by.auc },
    Aim { aim: "To rank within one user", figure: "gAUC", of: |by| by.gauc },
];

/// What one wants a model for, and the figure that tells how well it does it.
struct Aim {
    aim: &'static str,
    figure: &'static str,
    of: OfFigure,
}

/// What the LLM adds to the CRM's score, where that is the start; and where RecLoRA stands.
pub(super) fn sentences(summary: &Summary) -> Vec<String> {
    let gain = summary.gains.get("reclora");
    let gain =
        gain.map(|gain| format!("RecLoRA starts from the CRM's score: {}.", gain.describe()));
    let said = gain.into_iter().chain(comparisons(&summary.metrics));
    said.chain(of_gates(summary)).chain(of_leak(summary)).collect()
}

/// Gates that give nearly the same mix to everyone.
fn of_gates(summary: &Summary) -> Option<String> {
    let evenness = summary.gate_evenness.filter(|evenness| *evenness > EVEN)?;
    Some(format!(
        "The gates hardly choose: the entropy of their weights is {:.0} % of that of an even mix. A lower \
         adapter.temperature or more few-shot samples may help.",
        100.0 * evenness
    ))
}

/// What tuning on a CRM that has seen the few-shot labels would have learnt from.
fn of_leak(summary: &Summary) -> Option<String> {
    let Leak { samples, seen, unseen } = summary.leak?;
    Some(format!(
        "Of the {samples} samples of the holdout, the CRM that was trained on them says the labels with a log loss of \
         {seen:.4}, the one that was not with {unseen:.4}: the adapters are tuned on what the latter says."
    ))
}

/// RecLoRA against the CRM, and both of them against what needs neither.
fn comparisons(models: &[(String, ModelSummary)]) -> Vec<String> {
    let of = |aim: &Aim| [aim.against_crm(models), aim.against_baselines(models)];
    AIMS.iter().flat_map(of).flatten().collect()
}

impl Aim {
    /// The figure of `model` less that of `reference`.
    fn difference(
        &self,
        models: &[(String, ModelSummary)],
        model: &str,
        reference: &str,
    ) -> Option<Difference> {
        let (_, model) = models.iter().find(|(key, _)| key == model)?;
        (self.of)(model.differences.get(reference)?)
    }

    fn against_crm(&self, models: &[(String, ModelSummary)]) -> Option<String> {
        let by = self.difference(models, "reclora", "crm")?;
        let better = |first: &str, other: &str, by: Difference| {
            format!(
                "{first} is a better choice than {other}: its {} is {}. This is not chance.",
                self.figure,
                higher(by, "")
            )
        };
        let text = match by.ci95 {
            Some([0.0, 0.0]) => "RecLoRA scores as the CRM alone does.".to_owned(),
            Some([low, _]) if low > 0.0 => better("RecLoRA", "the CRM alone", by),
            Some([_, high]) if high < 0.0 => better("the CRM alone", "RecLoRA", negated(by)),
            _ => format!(
                "RecLoRA and the CRM alone can't be told apart: the {} of RecLoRA less that of the CRM is \
                 {:+.4}{}, which may be chance.",
                self.figure,
                by.difference,
                signed_ends(by)
            ),
        };
        Some(format!("{} ({}), {text}", self.aim, self.figure))
    }

    /// Of the baselines the one that is best; `None` where it is behind RecLoRA and the CRM.
    fn against_baselines(&self, models: &[(String, ModelSummary)]) -> Option<String> {
        let above = |baseline| {
            ["reclora", "crm"].map(|rival| (rival, self.difference(models, baseline, rival)))
        };
        let best = |baseline| above(baseline)[0].1.map_or(f64::NEG_INFINITY, |by| by.difference);
        let baselines =
            Compared::keys(Role::Baseline).filter(|key| models.iter().any(|(k, _)| k == key));
        let baseline = baselines.max_by(|a, b| best(a).total_cmp(&best(b)))?;
        let above = above(baseline).into_iter().filter_map(|(rival, by)| Some((rival, by?)));
        let ahead: Vec<_> = above.filter(|(_, by)| by.difference > 0.0).collect();
        let is_sure = |(_, by): &&(&str, Difference)| by.ci95.is_some_and(|[low, _]| low > 0.0);
        let sure: Vec<_> = ahead.iter().filter(is_sure).copied().collect();
        let lead = format!("{} ({}), {}", self.aim, self.figure, name(baseline));
        let amounts = |rivals: &[(&str, Difference)], amount: fn(Difference, &str) -> String| {
            let amounts = rivals.iter().map(|(rival, by)| amount(*by, of(rival)));
            format!("its {} is {}", self.figure, amounts.collect::<Vec<_>>().join(" and "))
        };
        if !sure.is_empty() {
            let amounts = amounts(&sure, higher);
            return Some(format!(
                "{lead} is a better choice than {}: {amounts}. This is not chance.",
                names(&sure)
            ));
        }
        (!ahead.is_empty()).then(|| {
            let amounts = amounts(&ahead, |by, than| {
                format!("{:.4} higher{than}{}", by.difference, signed_ends(by))
            });
            format!("{lead} is not behind {}: {amounts}, which may be chance.", names(&ahead))
        })
    }
}

/// How people call a model within a sentence.
fn name(key: &str) -> &str {
    Compared::find(key).map_or(key, |model| model.words)
}

fn of(rival: &str) -> &'static str {
    if rival == "crm" { " than that of the CRM" } else { " than that of RecLoRA" }
}

fn names(rivals: &[(&str, Difference)]) -> String {
    let names: Vec<&str> = rivals.iter().map(|(key, _)| name(key)).collect();
    names.join(" and ")
}

fn higher(by: Difference, than: &str) -> String {
    let ends = by.ci95.map(|[low, high]| format!(" (95 % interval {low:.4} to {high:.4})"));
    format!("{:.4} higher{than}{}", by.difference, ends.unwrap_or_default())
}

fn signed_ends(by: Difference) -> String {
    match by.ci95 {
        Some([low, high]) => format!(" (95 % interval {low:+.4} to {high:+.4})"),
        None => " (too few users for an interval)".to_owned(),
    }
}

fn negated(by: Difference) -> Difference {
    let ci95 = by.ci95.map(|[low, high]| [-high, -low]);
    Difference { difference: -by.difference, ci95 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use reclora_trainer::metrics::Differences;

    use super::*;

    type By = (f64, Option<[f64; 2]>);

    /// Models whose differences in one figure are given: (model, reference, difference).
    fn models(gauc: bool, differences: &[(&str, &str, By)]) -> Vec<(String, ModelSummary)> {
        let mut models: BTreeMap<String, ModelSummary> = BTreeMap::new();
        let mut put = |model: &str, reference: &str, by: Difference| {
            let of = Differences { auc: (!gauc).then_some(by), gauc: gauc.then_some(by) };
            let model = models.entry(model.to_owned()).or_default();
            model.differences.insert(reference.to_owned(), of);
        };
        for (model, reference, (difference, ci95)) in differences {
            let by = Difference { difference: *difference, ci95: *ci95 };
            put(model, reference, by);
            put(reference, model, negated(by));
        }
        models.into_iter().collect()
    }

    #[test]
    fn reclora_and_the_crm_are_judged_by_the_interval_of_their_difference() {
        let cases: [(By, &str); 5] = [
            (
                (-0.0084, Some([-0.0128, -0.0050])),
                "the CRM alone is a better choice than RecLoRA: its AUC is 0.0084 higher \
                 (95 % interval 0.0050 to 0.0128). This is not chance.",
            ),
            (
                (0.0123, Some([0.0001, 0.0200])),
                "RecLoRA is a better choice than the CRM alone: its AUC is 0.0123 higher \
                 (95 % interval 0.0001 to 0.0200). This is not chance.",
            ),
            (
                (-0.0013, Some([-0.0070, 0.0020])),
                "RecLoRA and the CRM alone can't be told apart: the AUC of RecLoRA less that of the CRM is \
                 -0.0013 (95 % interval -0.0070 to +0.0020), which may be chance.",
            ),
            ((0.0, Some([0.0, 0.0])), "RecLoRA scores as the CRM alone does."),
            (
                (0.3, None),
                "RecLoRA and the CRM alone can't be told apart: the AUC of RecLoRA less that of the CRM is \
                 +0.3000 (too few users for an interval), which may be chance.",
            ),
        ];
        for (by, expected) in cases {
            let sentences = comparisons(&models(false, &[("reclora", "crm", by)]));
            let expected = format!("To rank the samples of all users together (AUC), {expected}");
            assert_eq!(sentences, [expected]);
        }
    }

    #[test]
    fn a_baseline_that_is_not_behind_is_named() {
        let lr = "logistic_regression";
        let sure = |by: f64| (by, Some([by - 0.01, by + 0.01]));
        let unsure = |by: f64| (by, Some([by - 0.1, by + 0.1]));
        let lead = "To rank within one user (gAUC), ";
        type Case<'a> = (&'a [(&'a str, &'a str, By)], Option<&'a str>);
        let cases: [Case; 6] = [
            (
                &[
                    (lr, "reclora", sure(0.04)),
                    (lr, "crm", sure(0.03)),
                    ("item_mean", "reclora", sure(0.02)),
                    ("item_mean", "crm", sure(0.015)),
                ],
                Some(
                    "logistic regression is a better choice than RecLoRA and the CRM alone: its gAUC is \
                     0.0400 higher than that of RecLoRA (95 % interval 0.0300 to 0.0500) and 0.0300 \
                     higher than that of the CRM (95 % interval 0.0200 to 0.0400). This is not chance.",
                ),
            ),
            (
                &[("item_mean", "reclora", sure(0.02)), ("item_mean", "crm", unsure(0.01))],
                Some(
                    "the item mean is a better choice than RecLoRA: its gAUC is 0.0200 higher than that of \
                     RecLoRA (95 % interval 0.0100 to 0.0300). This is not chance.",
                ),
            ),
            (
                &[(lr, "reclora", sure(-0.04)), (lr, "crm", sure(0.03))],
                Some(
                    "logistic regression is a better choice than the CRM alone: its gAUC is 0.0300 higher \
                     than that of the CRM (95 % interval 0.0200 to 0.0400). This is not chance.",
                ),
            ),
            (
                &[(lr, "reclora", unsure(0.04)), (lr, "crm", unsure(-0.01))],
                Some(
                    "logistic regression is not behind RecLoRA: its gAUC is 0.0400 higher than that of \
                     RecLoRA (95 % interval -0.0600 to +0.1400), which may be chance.",
                ),
            ),
            (
                &[(lr, "reclora", (0.04, None)), ("item_mean", "reclora", unsure(-0.5))],
                Some(
                    "logistic regression is not behind RecLoRA: its gAUC is 0.0400 higher than that of \
                     RecLoRA (too few users for an interval), which may be chance.",
                ),
            ),
            (&[(lr, "reclora", sure(-0.04)), (lr, "crm", unsure(-0.03))], None),
        ];
        for (differences, expected) in cases {
            let expected = expected.map(|text| format!("{lead}{text}"));
            assert_eq!(comparisons(&models(true, differences)), Vec::from_iter(expected));
        }
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured() {
        assert!(comparisons(&[]).is_empty());
        assert!(comparisons(&[("reclora".to_owned(), ModelSummary::default())]).is_empty());
    }
}
