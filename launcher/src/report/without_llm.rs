//! The tables at the end of a run up to few2many: what one has without an LLM.

use indicatif::HumanCount;
use reclora_trainer::stages::{SplitMetrics, WithoutLlm};

use super::summary::{label, number};
use super::table::{aligned, new, with_interval};

/// Valid, to choose by, and test.
pub fn without_llm(measured: &WithoutLlm) -> String {
    format!(
        "{}\n\n{}",
        split("valid, to choose settings by", &measured.valid),
        split("test, to report what was chosen", &measured.test)
    )
}

fn split(title: &str, split: &SplitMetrics) -> String {
    let header = ["model", "AUC [95 % interval]", "log loss", "accuracy", "gAUC"];
    let mut table = new(header.map(str::to_owned));
    for (key, metrics) in &split.models {
        let numbers = [metrics.log_loss, metrics.accuracy, metrics.gauc].map(number);
        let cells = [label(key).to_owned(), with_interval(metrics.auc, metrics.auc_ci95)];
        table.add_row(cells.into_iter().chain(numbers));
    }
    let (samples, users) = (HumanCount(split.samples), HumanCount(split.users));
    format!("{title}: {samples} samples of {users} users\n{}", aligned(table, 1))
}
