//! The view in a terminal, which keeps itself up to date.

use std::time::{Duration, Instant};

use color_eyre::eyre::WrapErr;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Axis, Block, Cell, Chart, Dataset, GraphType, Paragraph, Row, Table, TableState, Wrap,
};

use super::show::{Grid, Node, View, gpus, ranks};
use super::source::{Look, Source};
use super::verdict::{Kind, Verdict};
use crate::error::Result;
use crate::signals::{self, Polled};

/// Columns from which on every column of a table is shown.
const WIDE: u16 = 132;
/// Between two looks for a key.
const PATIENCE: Duration = Duration::from_millis(200);
/// Most rows of the verdicts.
const VERDICT_ROWS: u16 = 6;
/// Least rows of the loss curve.
const CURVE_ROWS: u16 = 6;

const TITLE: Style = Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);

/// Shows until somebody presses `q`, or a signal comes.
pub fn show(mut source: Source, interval: Duration) -> Result<()> {
    // Before the screen is taken: an error is to be read.
    let mut look = source.look()?;
    let mut terminal = ratatui::try_init().wrap_err("can't use this terminal; see --once")?;
    let mut screen = Screen::default();
    let mut looked = Instant::now();
    let _polled = Polled::begin();
    let result = loop {
        if signals::pending().is_some() {
            break Ok(());
        }
        if let Err(error) = terminal.draw(|frame| screen.draw(frame, &look)) {
            break Err(error.into());
        }
        match next(PATIENCE) {
            Ok(Some(key)) if is_end(key) => break Ok(()),
            Ok(Some(key)) => screen.press(key),
            Ok(None) => {}
            Err(error) => break Err(error),
        }
        if !screen.is_held && looked.elapsed() >= interval {
            looked = Instant::now();
            match source.look() {
                Ok(new) => look = new,
                Err(error) => break Err(error),
            }
        }
    };
    ratatui::restore();
    if let Some(signal) = signals::pending() {
        // Without a word: nothing was ended but the view.
        std::process::exit(128 + signal as i32);
    }
    result
}

/// The next key, if one is pressed in time. A change of the window's size ends the wait.
fn next(patience: Duration) -> Result<Option<KeyEvent>> {
    if !event::poll(patience)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        Event::Key(key) if key.is_press() => Some(key),
        _ => None,
    })
}

fn is_end(key: KeyEvent) -> bool {
    let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL;
    is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

/// What keys change.
#[derive(Debug, Default)]
struct Screen {
    /// The node whose tables are shown.
    node: usize,
    /// The first row of them.
    row: usize,
    /// Whether nothing new is looked at.
    is_held: bool,
}

impl Screen {
    fn press(&mut self, key: KeyEvent) {
        match key.code {
            KeyCode::Right | KeyCode::Tab | KeyCode::Char('l') => {
                (self.node, self.row) = (self.node + 1, 0);
            }
            KeyCode::Left | KeyCode::BackTab | KeyCode::Char('h') => {
                (self.node, self.row) = (self.node.saturating_sub(1), 0);
            }
            KeyCode::Down | KeyCode::Char('j') => self.row += 1,
            KeyCode::Up | KeyCode::Char('k') => self.row = self.row.saturating_sub(1),
            KeyCode::Char(' ') => self.is_held = !self.is_held,
            _ => {}
        }
    }

    fn draw(&mut self, frame: &mut Frame<'_>, look: &Look) {
        let view = look.view();
        self.node = self.node.min(view.nodes.len().saturating_sub(1));
        let said_lines = verdict_lines(&view);
        let width = usize::from(frame.area().width.saturating_sub(2)).max(1);
        let rows: usize = said_lines.iter().map(|line| line.width().div_ceil(width).max(1)).sum();
        let height = frame.area().height;
        let verdicts = (rows as u16).clamp(1, if height < 30 { 3 } else { VERDICT_ROWS }) + 2;
        let needed = view.nodes.get(self.node).map_or(0, table_rows);
        // Where there is not room for all, the tables come first.
        let has_curve = view.loss.points.len() > 1
            && needed.saturating_add(verdicts + CURVE_ROWS + 3) <= height;
        let [head, tables, loss, said, foot] = Layout::vertical([
            Constraint::Length(2),
            if has_curve { Constraint::Length(needed) } else { Constraint::Fill(1) },
            if has_curve { Constraint::Min(CURVE_ROWS) } else { Constraint::Length(0) },
            Constraint::Length(verdicts),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(self.heading(&view)), head);
        if let Some(node) = view.nodes.get(self.node) {
            self.tables(frame, tables, node);
        }
        if has_curve {
            draw_loss(frame, loss, &view);
        }
        let said_block = Block::bordered().title("verdicts").title_style(TITLE);
        frame.render_widget(
            Paragraph::new(said_lines).wrap(Wrap { trim: false }).block(said_block),
            said,
        );
        let keys = match self.is_held {
            true => "held: space goes on · q end",
            false => "q end · space hold · ←→ node · ↑↓ row",
        };
        frame.render_widget(Line::styled(keys, FAINT), foot);
    }

    fn heading(&self, view: &View<'_>) -> Vec<Line<'static>> {
        let mut first = vec![Span::styled(view.job.clone(), TITLE)];
        if view.nodes.len() > 1 {
            first.push(Span::raw(format!("  node {} of {}", self.node + 1, view.nodes.len())));
        }
        let goodput = view.goodput.short();
        if !goodput.is_empty() {
            first.push(Span::styled(format!("  {goodput}"), FAINT));
        }
        let node = view.nodes.get(self.node).map_or(String::new(), Node::heading);
        vec![Line::from(first), Line::raw(node)]
    }

    fn tables(&mut self, frame: &mut Frame<'_>, area: Rect, node: &Node<'_>) {
        let (gpus, ranks) = (gpus(&node.sample.gpus), ranks(&node.sample.ranks, &node.rates));
        let rows = gpus.rows.len().max(ranks.rows.len());
        self.row = self.row.min(rows.saturating_sub(1));
        let (gpu_rows, ranks_rows) = (rows_of(gpus.rows.len()), rows_of(ranks.rows.len()));
        let ranks_rows = if ranks.rows.is_empty() { 0 } else { ranks_rows };
        let constraints = match gpu_rows.saturating_add(ranks_rows) > area.height {
            true => [Constraint::Fill(1), Constraint::Length(ranks_rows.min(area.height / 2))],
            false => [Constraint::Length(gpu_rows), Constraint::Fill(1)],
        };
        let [above, below] = Layout::vertical(constraints).areas(area);
        match (&node.sample.no_gpus, gpus.rows.is_empty()) {
            (Some(why), _) => frame.render_widget(boxed("GPUs", why), above),
            (None, true) => frame.render_widget(boxed("GPUs", "none"), above),
            (None, false) => self.table(frame, above, "GPUs", &gpus),
        }
        if ranks_rows > 0 {
            self.table(frame, below, "ranks", &ranks);
        }
    }

    fn table(&self, frame: &mut Frame<'_>, area: Rect, title: &str, grid: &Grid) {
        let is_wide = area.width >= WIDE;
        let shown: Vec<usize> =
            (0..grid.header.len()).filter(|&column| is_wide || grid.header[column].1).collect();
        let name = |column: usize| match is_wide {
            true => grid.header[column].0.clone(),
            false => shortened(&grid.header[column].0),
        };
        let width = |&column: &usize| {
            let cells = grid.rows.iter().map(|row| row[column].chars().count());
            Constraint::Length(cells.chain([name(column).chars().count()]).max().unwrap_or(0) as u16)
        };
        let rows = grid.rows.iter().map(|row| {
            Row::new(shown.iter().map(|&column| {
                let cell = row[column].as_str();
                let is_bad = cell.starts_with("lost") || cell.starts_with("throttled");
                let style = if is_bad { Style::new().fg(Color::Red) } else { Style::new() };
                Cell::new(cell).style(style)
            }))
        });
        // The last column, the state, takes what is left.
        let widths =
            shown.iter().enumerate().map(|(place, column)| match place + 1 == shown.len() {
                true => Constraint::Fill(1),
                false => width(column),
            });
        let table = Table::new(rows, widths)
            .header(Row::new(shown.iter().map(|&column| name(column))).style(FAINT))
            .block(Block::bordered().title(title.to_owned()).title_style(TITLE));
        let mut state =
            TableState::new().with_offset(self.row.min(grid.rows.len().saturating_sub(1)));
        frame.render_stateful_widget(table, area, &mut state);
    }
}

/// Rows of a table's box; without a table there is one line in it.
fn rows_of(rows: usize) -> u16 {
    u16::try_from(rows + 2).unwrap_or(u16::MAX).saturating_add(1)
}

/// Rows of both tables of a node.
fn table_rows(node: &Node<'_>) -> u16 {
    let ranks = node.sample.ranks.len();
    let ranks = if ranks == 0 { 0 } else { rows_of(ranks) };
    rows_of(node.sample.gpus.len()).saturating_add(ranks)
}

/// A column's title where there is little room.
fn shortened(title: &str) -> String {
    let phase = title.strip_suffix(" %").filter(|name| name.chars().count() > 5);
    phase.map_or(title.to_owned(), |name| format!("{}%", name.chars().take(4).collect::<String>()))
}

fn boxed<'a>(title: &'a str, text: &'a str) -> Paragraph<'a> {
    Paragraph::new(text).block(Block::bordered().title(title).title_style(TITLE))
}

fn verdict_lines(view: &View<'_>) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if view.is_over() {
        lines.push(Line::raw("Nothing is collected any more: the run is over. This was the last."));
    }
    for Verdict { kind, rank, figures, help } in &view.verdicts {
        let of = rank.map_or(String::new(), |rank| format!(" (rank {rank})"));
        let colour = if *kind == Kind::ComputeBound { Color::Green } else { Color::Red };
        let name = Span::styled(format!("{}{of}", kind.name()), Style::new().fg(colour));
        lines.push(Line::from(vec![name, Span::raw(format!(": {figures}"))]));
        lines.push(Line::styled(format!("  help: {help}"), FAINT));
    }
    if lines.is_empty() {
        lines.push(Line::styled("nothing to say", FAINT));
    }
    lines
}

fn draw_loss(frame: &mut Frame<'_>, area: Rect, view: &View<'_>) {
    let curve = view.loss;
    let points: Vec<(f64, f64)> =
        curve.points.iter().map(|(step, loss)| (*step as f64, *loss)).collect();
    let ends = (points.first(), points.last());
    let (first, last) = (ends.0.map_or(0.0, |p| p.0), ends.1.map_or(1.0, |p| p.0));
    let (low, high) = curve.range();
    // A flat line has no height of its own.
    let high = high.max(low + 1e-6);
    let data = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().fg(Color::Blue))
        .data(&points);
    let newest = points.last().map_or(0.0, |point| point.1);
    let title = format!("loss of {}: {newest:.4}", curve.task);
    let chart = Chart::new(vec![data])
        .block(Block::bordered().title(title).title_style(TITLE))
        .x_axis(
            Axis::default()
                .bounds([first, last])
                .labels([format!("{first:.0}"), format!("step {last:.0}")]),
        )
        .y_axis(
            Axis::default().bounds([low, high]).labels([format!("{low:.3}"), format!("{high:.3}")]),
        );
    frame.render_widget(chart, area);
}
