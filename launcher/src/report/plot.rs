//! Figures as inline SVG: a line chart, bars and a heat map.
//!
//! Colours are those of the light palette. The page's style sheet maps each of them (attribute
//! selectors on `fill` and `stroke`) to its dark counterpart, so one drawing serves both schemes.
//! Drawings are made on a fine grid and scaled down by the view box: `plotters` rounds to whole
//! units, which would show as steps in a curve.

use plotters::chart::MeshStyle;
use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Drawing units per CSS pixel.
const UNIT: u32 = 4;
/// Width and height of a chart in CSS pixels.
const CHART: (u32, u32) = (400, 290);
/// Values beyond this are not drawn: they are damage, and would break the axis arithmetic.
const LARGEST: f64 = 1e12;

/// Text and tick labels.
pub(super) const TEXT: RGBColor = RGBColor(0x57, 0x60, 0x6A);
const AXIS: RGBColor = RGBColor(0x8C, 0x95, 0x9F);
const GRID: RGBColor = RGBColor(0xE4, 0xE8, 0xEC);

/// What a drawing routine returns; the text says what the drawing library did not like.
pub(super) type Drawn = Result<String, String>;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stroke {
    /// A line.
    Line,
    /// A pale line, for raw values behind a smoothed curve.
    Faint,
    /// A dashed line, for references.
    Dashed,
    /// A line with a dot at each point.
    Dotted,
}

/// A series of a [`LineChart`].
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub points: Vec<(f64, f64)>,
    pub colour: RGBColor,
    pub stroke: Stroke,
}

/// Lines over a numeric axis.
#[derive(Clone, Debug)]
pub(super) struct LineChart {
    pub x_label: &'static str,
    pub y_label: &'static str,
    pub series: Vec<Series>,
    /// Both axes run from 0 to 1.
    pub unit_square: bool,
    /// x counts something (epochs): no tick between whole numbers.
    pub whole_x: bool,
}

impl LineChart {
    /// Draws the chart; `None` when no series has a point.
    pub fn draw(&self, description: &str) -> Option<Drawn> {
        let drawable = |p: &&(f64, f64)| p.0.abs() <= LARGEST && p.1.abs() <= LARGEST;
        let series: Vec<(&Series, Vec<(f64, f64)>)> = self
            .series
            .iter()
            .map(|s| (s, s.points.iter().filter(drawable).copied().collect()))
            .collect();
        let all = || series.iter().flat_map(|(_, points)| points.iter());
        let (x, y) = if self.unit_square {
            all().next()?;
            ((0.0, 1.0), (0.0, 1.0))
        } else {
            (span(all().map(|p| p.0), 0.0)?, span(all().map(|p| p.1), 0.06)?)
        };
        Some(self.render(&series, x, y).map(|svg| finish(&svg, description)))
    }

    fn render(&self, series: &[(&Series, Vec<(f64, f64)>)], x: (f64, f64), y: (f64, f64)) -> Drawn {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, scaled(CHART)).into_drawing_area();
            let mut chart = builder(&area).build_cartesian_2d(x.0..x.1, y.0..y.1).map_err(text)?;
            let whole = self.whole_x;
            let x_ticks = if whole { (x.1 - x.0).ceil().clamp(1.0, 9.0) as usize + 1 } else { 6 };
            styled(&mut chart.configure_mesh(), self.x_label, self.y_label)
                .x_labels(x_ticks)
                .x_label_formatter(&|v| match whole && (v - v.round()).abs() > 1e-6 {
                    true => String::new(),
                    false => tick(*v, x.1 - x.0),
                })
                .y_label_formatter(&|v| tick(*v, y.1 - y.0))
                .draw()
                .map_err(text)?;
            for (series, points) in series {
                draw_series(&mut chart, series, points)?;
            }
            area.present().map_err(text)?;
        }
        Ok(svg)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Plane = plotters::coord::types::RangedCoordf64;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Plane, Plane>>;

fn draw_series(chart: &mut Chart, series: &Series, points: &[(f64, f64)]) -> Result<(), String> {
    let colour = series.colour;
    let points = points.iter().copied();
    match series.stroke {
        Stroke::Line => chart.draw_series(LineSeries::new(points, colour.stroke_width(2 * UNIT))),
        Stroke::Faint => {
            chart.draw_series(LineSeries::new(points, colour.mix(0.28).stroke_width(UNIT)))
        }
        Stroke::Dashed => {
            let style = colour.stroke_width(UNIT + UNIT / 2);
            chart.draw_series(DashedLineSeries::new(points, 5 * UNIT, 4 * UNIT, style))
        }
        Stroke::Dotted => chart.draw_series(
            LineSeries::new(points, colour.stroke_width(2 * UNIT).filled()).point_size(3 * UNIT),
        ),
    }
    .map_err(text)?;
    Ok(())
}

/// Bars with a dashed line at `reference`. `None` without bars.
pub(super) fn bars(
    values: &[f64],
    reference: f64,
    labels: (&str, &str),
    colour: RGBColor,
    description: &str,
) -> Option<Drawn> {
    let top = values.iter().copied().filter(|v| *v <= LARGEST).fold(reference, f64::max);
    if values.is_empty() || top <= 0.0 {
        return None;
    }
    Some(render_bars(values, reference, top, labels, colour).map(|svg| finish(&svg, description)))
}

fn render_bars(
    values: &[f64],
    reference: f64,
    top: f64,
    (x_label, y_label): (&str, &str),
    colour: RGBColor,
) -> Drawn {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, scaled(CHART)).into_drawing_area();
        let experts = (0..values.len().saturating_sub(1) as u32).into_segmented();
        let top = top * 1.08;
        let mut chart = builder(&area).build_cartesian_2d(experts, 0.0..top).map_err(text)?;
        styled(&mut chart.configure_mesh(), x_label, y_label)
            .x_labels(values.len().min(16))
            .x_label_formatter(&|v| match v {
                SegmentValue::CenterOf(v) => v.to_string(),
                _ => String::new(),
            })
            .y_label_formatter(&|v| tick(*v, top))
            .draw()
            .map_err(text)?;
        let bars = values.iter().enumerate().map(|(expert, value)| {
            let expert = expert as u32;
            let corners = [
                (SegmentValue::Exact(expert), 0.0),
                (SegmentValue::Exact(expert + 1), value.clamp(0.0, top)),
            ];
            let mut bar = Rectangle::new(corners, colour.filled());
            let margin = (CHART.0 * UNIT / (10 * values.len() as u32 + 10)).max(1);
            bar.set_margin(0, 0, margin, margin);
            bar
        });
        chart.draw_series(bars).map_err(text)?;
        let ends = [SegmentValue::Exact(0), SegmentValue::Exact(values.len() as u32)];
        let line = ends.map(|x| (x, reference));
        let style = TEXT.stroke_width(UNIT + UNIT / 2);
        chart.draw_series(DashedLineSeries::new(line, 5 * UNIT, 4 * UNIT, style)).map_err(text)?;
        area.present().map_err(text)?;
    }
    Ok(svg)
}

/// Rows of cells, from pale at `range.0` to strong at `range.1`. `None` without cells.
pub(super) fn heat_map(
    rows: &[(String, Vec<f64>)],
    range: (f64, f64),
    x_label: &str,
    colour: RGBColor,
    description: &str,
) -> Option<Drawn> {
    let columns = rows.first()?.1.len();
    if columns == 0 {
        return None;
    }
    let drawn = render_heat_map(rows, columns, range, x_label, colour);
    Some(drawn.map(|svg| finish(&svg, description)))
}

fn render_heat_map(
    rows: &[(String, Vec<f64>)],
    columns: usize,
    (low, high): (f64, f64),
    x_label: &str,
    colour: RGBColor,
) -> Drawn {
    // Row labels on the left, column labels and the axis title below; in drawing units.
    let (left, right, above, below) = (80 * UNIT, 10 * UNIT, 12 * UNIT, 44 * UNIT);
    let room = CHART.1 * UNIT - above - below;
    let row_height = (room / rows.len() as u32).clamp(14 * UNIT, 26 * UNIT);
    let height = above + row_height * rows.len() as u32 + below;
    let width = CHART.0 * UNIT;
    let cell = f64::from(width - left - right) / columns as f64;
    let column_x = |column: usize| left as i32 + (cell * column as f64).round() as i32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        let label = |at: &str, position: (i32, i32), size: u32, anchor: HPos| {
            let style = font(size).pos(Pos::new(anchor, VPos::Center));
            area.draw(&Text::new(at.to_owned(), position, style)).map_err(text)
        };
        for (row, (name, values)) in rows.iter().enumerate() {
            let y = (above + row_height * row as u32) as i32;
            let middle = y + row_height as i32 / 2;
            label(name, (left as i32 - 6 * UNIT as i32, middle), 13, HPos::Right)?;
            for (column, value) in values.iter().enumerate() {
                let gap = UNIT as i32 / 2;
                let corners = [
                    (column_x(column) + gap, y + gap),
                    (column_x(column + 1) - gap, y + row_height as i32 - gap),
                ];
                let share = ((value - low) / (high - low).max(1e-9)).clamp(0.0, 1.0);
                let style = colour.mix(0.08 + 0.92 * share).filled();
                area.draw(&Rectangle::new(corners, style)).map_err(text)?;
            }
        }
        let bottom = (height - below) as i32;
        let step = columns.div_ceil(16);
        for column in (0..columns).step_by(step) {
            let x = (column_x(column) + column_x(column + 1)) / 2;
            label(&column.to_string(), (x, bottom + 11 * UNIT as i32), 14, HPos::Center)?;
        }
        let middle = (column_x(0) + column_x(columns)) / 2;
        label(x_label, (middle, bottom + 30 * UNIT as i32), 15, HPos::Center)?;
        area.present().map_err(text)?;
    }
    Ok(svg)
}

/// Axes, grid and text as every chart has them.
fn styled<'m, 'a, 'b, X: Ranged, Y: Ranged, DB: DrawingBackend>(
    mesh: &'m mut MeshStyle<'a, 'b, X, Y, DB>,
    x_label: &str,
    y_label: &str,
) -> &'m mut MeshStyle<'a, 'b, X, Y, DB> {
    mesh.axis_style(AXIS.stroke_width(UNIT))
        .bold_line_style(GRID.stroke_width(UNIT))
        .light_line_style(TRANSPARENT)
        .disable_x_mesh()
        .label_style(font(14))
        .axis_desc_style(font(15))
        .x_desc(x_label)
        .y_desc(y_label)
        .y_labels(6)
        .set_all_tick_mark_size(3 * UNIT)
}

fn builder<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.margin(8 * UNIT).margin_right(14 * UNIT);
    builder.x_label_area_size(40 * UNIT).y_label_area_size(54 * UNIT);
    builder
}

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size * UNIT).into_font().color(&TEXT)
}

fn scaled((width, height): (u32, u32)) -> (u32, u32) {
    (width * UNIT, height * UNIT)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Makes the drawing fluid and gives it a description for those who can't see it.
fn finish(svg: &str, description: &str) -> String {
    let mut label = String::new();
    for c in description.chars() {
        match c {
            '<' => label.push_str("&lt;"),
            '>' => label.push_str("&gt;"),
            '&' => label.push_str("&amp;"),
            '"' => label.push_str("&quot;"),
            other => label.push(other),
        }
    }
    let body = svg.find("viewBox").map_or(svg, |at| &svg[at..]);
    format!("<svg role=\"img\" aria-label=\"{label}\" {body}")
}

/// The smallest range with room around the values; `None` without values. Never empty.
fn span(values: impl Iterator<Item = f64>, margin: f64) -> Option<(f64, f64)> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return None;
    }
    // A range too small for its magnitude has no distinct ticks.
    let least = (low.abs().max(high.abs()) * 1e-4).max(1e-4);
    let pad = ((high - low) * margin).max(if high - low < least { least } else { 0.0 });
    Some((low - pad, high + pad))
}

/// A tick label with the decimals that its axis needs.
fn tick(value: f64, span: f64) -> String {
    let decimals = (1.5 - span.max(1e-9).log10()).ceil().clamp(0.0, 6.0) as usize;
    let label = format!("{value:.decimals$}");
    // "-0.0" and "0.50" read better as "0" and "0.5".
    let label = match label.contains('.') {
        true => label.trim_end_matches('0').trim_end_matches('.'),
        false => &label,
    };
    if label == "-0" { "0".to_owned() } else { label.to_owned() }
}
