//! The run in the terminal: tables of figures and of their differences, and what they say.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use reclora_trainer::metrics::{Compared, Difference, Role};

use super::summary::{
    ModelSummary, OfFigure, Summary, contributions, label, number, what_was_scored,
};
use super::verdict;
use crate::output::printable;

/// Sentences are broken to lines of this many characters, as the tables have.
const WIDTH: usize = 79;

/// The figures that models are compared by.
pub const FIGURES: [(&str, OfFigure); 2] = [("AUC", |by| by.auc), ("gAUC", |by| by.gauc)];

/// What the terminal shows of a run.
pub fn table(summary: &Summary) -> String {
    let mut text = format!("{}\n", metrics(&summary.metrics));
    for (figure, of) in FIGURES {
        let title = format!("{figure} less that of");
        let mut table = new([title].into_iter().chain(reference_titles()));
        for (key, model) in &summary.metrics {
            let cells = to_references(key, model, of);
            table.add_row([printable(label(key))].into_iter().chain(cells));
        }
        text.push_str(&format!("{}\n", aligned(table, 1)));
    }
    let contributions = contributions(&summary.metrics);
    if !contributions.is_empty() {
        let figures = FIGURES.map(|(figure, _)| format!("{figure} [95 %]"));
        let mut table = new(["what the LLM brings".to_owned()].into_iter().chain(figures));
        for (what, by) in &contributions {
            let cells = FIGURES.map(|(_, of)| signed(of(by)));
            table.add_row([(*what).to_owned()].into_iter().chain(cells));
        }
        text.push_str(&format!("{}\n", aligned(table, 1)));
    }
    let scored = format!("scored: {}", what_was_scored(&summary.scored, |n| n.to_string()));
    for sentence in [scored].into_iter().chain(verdict::sentences(summary)) {
        text.push_str(&wrapped(&sentence));
    }
    text
}

/// A row per model, `-` where a metric is undefined.
fn metrics(models: &[(String, ModelSummary)]) -> Table {
    let mut table =
        new(["model", "AUC [95 % interval]", "log loss", "accuracy", "gAUC"].map(str::to_owned));
    for (key, row) in models {
        let numbers = [row.log_loss, row.accuracy, row.gauc].map(number);
        let cells = [printable(label(key)), with_interval(row.auc, row.auc_ci95)];
        table.add_row(cells.into_iter().chain(numbers));
    }
    aligned(table, 1)
}

/// A table with a header and no lines but around it.
pub fn new(header: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table
}

/// Columns of numbers end below each other; the first `texts` columns are none.
pub fn aligned(mut table: Table, texts: usize) -> Table {
    if let Some(names) = table.column_mut(0) {
        // Without it, differences to two references fit into a terminal of 80 columns.
        names.set_padding((1, 0));
    }
    for column in table.column_iter_mut().skip(texts) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Titles of the columns of [`to_references`].
pub fn reference_titles() -> impl Iterator<Item = String> {
    Compared::keys(Role::Reference).map(|reference| format!("{} [95 %]", label(reference)))
}

/// A figure of a model less that of each reference; of a reference less itself, nothing.
pub fn to_references(
    key: &str,
    model: &ModelSummary,
    of: OfFigure,
) -> impl Iterator<Item = String> {
    Compared::keys(Role::Reference).map(move |reference| match reference == key {
        true => String::new(),
        false => signed(model.differences.get(reference).and_then(of)),
    })
}

/// `0.7447 [0.7198, 0.7652]`.
pub fn with_interval(value: Option<f64>, interval: Option<[f64; 2]>) -> String {
    match interval {
        Some([low, high]) => format!("{} [{low:.4}, {high:.4}]", number(value)),
        None => number(value),
    }
}

/// `-0.0084 [-0.0128, -0.0050]`.
pub fn signed(by: Option<Difference>) -> String {
    match by {
        Some(Difference { difference, ci95: Some([low, high]) }) => {
            format!("{difference:+.4} [{low:+.4}, {high:+.4}]")
        }
        Some(Difference { difference, ci95: None }) => format!("{difference:+.4}"),
        None => "-".to_owned(),
    }
}

/// Broken between words, but not before a per cent sign; the lines after the first set in.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    let text = text.replace(" %", "\u{a0}%");
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("  {word}")),
        }
    }
    lines.join("\n").replace('\u{a0}', " ") + "\n"
}
