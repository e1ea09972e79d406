//! Which figures the page has and what is in them.

use color_eyre::eyre::eyre;
use plotters::style::RGBColor;
use serde::Serialize;

use reclora_trainer::metrics::{COMPARED, Compared, Rgb};

use super::inputs::{Gate, History, Inputs, Step};
use super::plot::{self, Drawn, LineChart, Series, Stroke, TEXT};
use super::summary::label;
use crate::error::Result;

/// Points of a curve that are drawn; more would not be seen.
const MAX_POINTS: usize = 400;

/// A figure of the page.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    pub title: &'static str,
    /// What is to be seen, in a sentence.
    pub note: String,
    /// (style class, name) of each series.
    pub legend: Vec<(String, String)>,
    /// The drawing; `None` where there is nothing to draw.
    pub svg: Option<String>,
}

/// Colours of a model that this version does not know, on a light ground and on a dark one.
const OTHER: (&str, [Rgb; 2]) = ("other", [[0xBE, 0x18, 0x5D], [0xF4, 0x72, 0xA8]]);

/// Colour and style class of a model.
fn colour(key: &str) -> (RGBColor, &'static str) {
    let known = Compared::find(key).map(|model| (model.key, model.colours));
    let (class, [[red, green, blue], _]) = known.unwrap_or(OTHER);
    (RGBColor(red, green, blue), class)
}

/// Style classes with their colours on a light ground and on a dark one, as the style sheet writes them.
pub(super) fn colours() -> Vec<[String; 3]> {
    let hex = |[red, green, blue]: Rgb| format!("#{red:02X}{green:02X}{blue:02X}");
    let known = COMPARED.iter().map(|model| (model.key, model.colours)).chain([OTHER]);
    known.map(|(class, [light, dark])| [class.to_owned(), hex(light), hex(dark)]).collect()
}

fn key_of(model: &str) -> (String, String) {
    (colour(model).1.to_owned(), label(model).to_owned())
}

fn finish(
    title: &'static str,
    note: impl Into<String>,
    legend: Vec<(String, String)>,
    drawn: Option<Drawn>,
) -> Result<Figure> {
    let failed = |what| eyre!("report: can't draw the figure \"{title}\": {what}");
    let svg = drawn.transpose().map_err(failed)?;
    Ok(Figure { title, note: note.into(), legend, svg })
}

/// ROC and reliability curves of the test set, models in the given order.
pub(super) fn test(inputs: &Inputs, models: &[String]) -> Result<Vec<Figure>> {
    let diagonal =
        || Series { points: vec![(0.0, 0.0), (1.0, 1.0)], colour: TEXT, stroke: Stroke::Dashed };
    let (mut roc, mut calibration) = (Vec::new(), Vec::new());
    // RecLoRA is drawn last, on top of the others.
    for key in models.iter().rev() {
        let Some(model) = inputs.evaluation.models.get(key) else { continue };
        let colour = colour(key).0;
        let curve = model.roc.iter().filter_map(|p| Some((p[0]?, p[1]?))).collect();
        let curve = Series { points: thin(curve), colour, stroke: Stroke::Line };
        roc.extend((!curve.points.is_empty()).then_some(curve));
        let bins = model.calibration.iter().filter(|bin| bin.count > 0);
        let points: Vec<_> =
            bins.filter_map(|bin| Some((bin.mean_probability?, bin.like_rate?))).collect();
        let curve = Series { points, colour, stroke: Stroke::Dotted };
        calibration.extend((!curve.points.is_empty()).then_some(curve));
    }
    let chart = |x_label, y_label, mut series: Vec<Series>, title: &str| {
        if series.is_empty() {
            return None;
        }
        series.insert(0, diagonal());
        LineChart { x_label, y_label, series, unit_square: true, whole_x: false }.draw(title)
    };
    let legend = |reference: &str| {
        let models = models.iter().map(|key| key_of(key));
        models.chain([("reference".to_owned(), reference.to_owned())]).collect()
    };
    let roc = chart("dislikes called likes", "likes found", roc, "ROC curves on the test set");
    let calibration = chart(
        "predicted probability of a like",
        "share of likes",
        calibration,
        "Reliability curves on the test set",
    );
    Ok(vec![
        finish(
            "ROC",
            "Likes found against dislikes wrongly called likes, for every threshold. \
             Further to the upper left is better.",
            legend("guessing"),
            roc,
        )?,
        finish(
            "Calibration",
            "Samples binned by predicted probability. On the diagonal, 70 % means \
             that 7 of 10 were liked.",
            legend("perfect"),
            calibration,
        )?,
    ])
}

/// Loss and valid AUC while the adapters were tuned.
pub(super) fn tuning(inputs: &Inputs) -> Result<Vec<Figure>> {
    let mut runs = vec![("reclora", &inputs.reclora)];
    runs.extend(inputs.others.iter().map(|(key, history)| (*key, history)));
    let auc = runs.iter().rev().map(|(key, history)| Series {
        points: valid_auc(history),
        colour: colour(key).0,
        stroke: Stroke::Dotted,
    });
    Ok(vec![
        tuning_loss(&runs)?,
        finish(
            "Valid AUC while tuning",
            "After each epoch, on samples of the valid split. A model that starts from the CRM keeps \
             the epoch of the least log loss there, another one its last.",
            runs.iter().map(|(key, _)| key_of(key)).collect(),
            lines("epoch", "valid AUC", auc.collect(), true, "Valid AUC per epoch of tuning"),
        )?,
    ])
}

/// Loss per step: of all tokens of the answers and, where it was recorded, of the deciding one.
fn tuning_loss(runs: &[(&str, &History)]) -> Result<Figure> {
    let (mut raw, mut smooth, mut later) = (Vec::new(), Vec::new(), Vec::new());
    for (key, history) in runs.iter().rev() {
        let of = |loss: fn(&Step) -> Option<f64>| -> Vec<(f64, f64)> {
            history.steps.iter().filter_map(|step| Some((step.step as f64, loss(step)?))).collect()
        };
        let series = |points, stroke| Series { points, colour: colour(key).0, stroke };
        let (all, deciding) = (of(|step| step.loss), of(|step| step.deciding_loss));
        smooth.push(series(smoothed(&all), Stroke::Line));
        smooth.push(series(smoothed(&deciding), Stroke::Dashed));
        later.extend([&all, &deciding].iter().flat_map(|points| &points[points.len() / 10..]));
        raw.push(series(all, Stroke::Faint));
    }
    let mut note = "Cross-entropy of the answer's tokens per optimizer step: raw (pale) and \
                    smoothed."
        .to_owned();
    let mut legend: Vec<_> = runs.iter().map(|(key, _)| key_of(key)).collect();
    smooth.retain(|series| !series.points.is_empty());
    if smooth.iter().any(|series| series.stroke == Stroke::Dashed) {
        note.push_str(
            " Dashed: that of the token which decides the answer, smoothed; it compares with the \
             log loss of the test (a coin has 0.6931).",
        );
        legend.push(("reference".to_owned(), "deciding token".to_owned()));
    }
    let mut series = [raw, smooth].concat();
    if let Some(largest) = cut_first_steps(&mut series, &later) {
        note.push_str(&format!(" The first steps, up to {largest:.2}, are above the figure."));
    }
    for series in &mut series {
        series.points = thin(std::mem::take(&mut series.points));
    }
    let drawn = lines("step", "loss", series, false, "Tuning loss per optimizer step");
    finish("Tuning loss", note, legend, drawn)
}

/// Loss and valid AUC while the recommendation model was trained.
pub(super) fn crm(history: &History) -> Result<Vec<Figure>> {
    let colour = colour("crm").0;
    let epochs = &history.epochs;
    let points = |value: &dyn Fn(usize) -> Option<f64>| -> Vec<(f64, f64)> {
        let at = |i: usize| Some((epochs.get(i)?.epoch as f64, value(i)?));
        (0..epochs.len()).filter_map(at).collect()
    };
    let train = points(&|i| epochs.get(i)?.train_loss);
    let valid = points(&|i| epochs.get(i)?.valid_log_loss);
    let loss = vec![
        Series { points: train, colour: TEXT, stroke: Stroke::Dotted },
        Series { points: valid, colour, stroke: Stroke::Dotted },
    ];
    let auc = vec![Series { points: valid_auc(history), colour, stroke: Stroke::Dotted }];
    let key = |class: &str, name: &str| (class.to_owned(), name.to_owned());
    Ok(vec![
        finish(
            "CRM loss",
            "Log loss per epoch. Where valid turns up while train still falls, \
             the model begins to memorise.",
            vec![key("crm", "valid"), key("muted", "train")],
            lines("epoch", "log loss", loss, true, "CRM loss per epoch"),
        )?,
        finish(
            "CRM valid AUC",
            "On the whole valid split. The epoch with the highest value is kept.",
            vec![key("crm", "valid")],
            lines("epoch", "valid AUC", auc, true, "Valid AUC of the CRM per epoch"),
        )?,
    ])
}

/// How the gates mixed the experts. Empty for a run with one expert.
pub(super) fn gate(gate: Option<&Gate>) -> Result<Vec<Figure>> {
    let Some(gate) = gate.filter(|gate| gate.experts > 0) else { return Ok(Vec::new()) };
    let rows: Vec<(String, Vec<f64>)> = gate
        .modules
        .iter()
        .map(|module| {
            let weights = module.mean_alpha.iter().map(|w| w.unwrap_or(0.0)).collect();
            (short_name(&module.name), weights)
        })
        .collect();
    let blue = colour("reclora").0;
    let usage = mean_usage(gate);
    let uniform = 1.0 / gate.experts as f64;
    let name = "Mean weight of each expert";
    // At least 10 % to each side of an even mix: smaller differences must not look large.
    let weights = || rows.iter().flat_map(|(_, weights)| weights).copied();
    let low = weights().fold(0.9 * uniform, f64::min);
    let high = weights().fold(1.1 * uniform, f64::max);
    Ok(vec![
        finish(
            "Expert usage",
            format!(
                "Mean weight of each expert over all adapted modules and test samples. \
                 An even mix gives {uniform:.3} each."
            ),
            vec![key_of("reclora"), ("reference".to_owned(), "even mix".to_owned())],
            plot::bars(&usage, uniform, ("expert", "mean weight"), blue, name),
        )?,
        finish(
            "Expert usage by module",
            format!("Mean weight per adapted module, from {low:.3} (pale) to {high:.3} (strong)."),
            Vec::new(),
            plot::heat_map(
                &rows,
                (low, high),
                "expert",
                blue,
                "Mean weight of each expert by module",
            ),
        )?,
    ])
}

/// Cuts off where the loss has not yet fallen: the first steps may be so far above the `later` ones that
/// nothing would be seen of these. Gives the largest value cut off; `None` where nothing was.
fn cut_first_steps(series: &mut [Series], later: &[(f64, f64)]) -> Option<f64> {
    let (low, high) = later
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let limit = high + 0.15 * (high - low);
    let mut largest = None;
    for series in series {
        let above = series.points.iter().take_while(|p| p.1 > limit).count();
        let cut: Vec<_> = series.points.drain(..above).collect();
        let Some(last) = cut.last() else { continue };
        largest = cut.iter().map(|p| p.1).chain(largest).reduce(f64::max);
        let Some(next) = series.points.first() else { continue };
        // Where the curve comes through the limit.
        let share = (limit - next.1) / (last.1 - next.1);
        series.points.insert(0, (next.0 + share * (last.0 - next.0), limit));
    }
    largest
}

fn mean_usage(gate: &Gate) -> Vec<f64> {
    if gate.modules.is_empty() {
        return Vec::new();
    }
    let weight = |expert: usize| {
        let weights = gate.modules.iter().filter_map(|m| m.mean_alpha.get(expert).copied()?);
        weights.sum::<f64>() / gate.modules.len() as f64
    };
    (0..gate.experts).map(weight).collect()
}

/// `model.layers.3.self_attn.q_proj` is `3 q_proj` where room is short; at most 14 characters.
pub(super) fn short_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let layer = parts.iter().find(|part| part.parse::<u32>().is_ok());
    let short = match (layer, parts.last()) {
        (Some(layer), Some(projection)) => format!("{layer} {projection}"),
        _ => name.to_owned(),
    };
    short.chars().take(14).collect()
}

fn lines(
    x_label: &'static str,
    y_label: &'static str,
    series: Vec<Series>,
    whole_x: bool,
    description: &str,
) -> Option<Drawn> {
    LineChart { x_label, y_label, series, unit_square: false, whole_x }.draw(description)
}

fn valid_auc(history: &History) -> Vec<(f64, f64)> {
    history.epochs.iter().filter_map(|e| Some((e.epoch as f64, e.valid_auc?))).collect()
}

/// Exponential moving average over about a twentieth of the points, without the usual pull
/// towards the first value.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 20.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let average = |&(x, y): &(f64, f64)| {
        sum = keep * sum + (1.0 - keep) * y;
        weight = keep * weight + (1.0 - keep);
        (x, sum / weight)
    };
    points.iter().map(average).collect()
}

/// At most about [`MAX_POINTS`] of the points, evenly, always with the first and the last.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(MAX_POINTS).max(1);
    let last = points.last().copied();
    let mut kept: Vec<_> = points.iter().copied().step_by(step).collect();
    if kept.last() != last.as_ref() {
        kept.extend(last);
    }
    kept
}
