//! Shows progress on standard error: bars on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::tracker::{Change, Task};
use crate::output::{printable, say};

/// Plain lines come at most this often...
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// ...or whenever another such share of the work is done, but not
const PLAIN_SHARE: u64 = 25;
/// sooner than this after the last: a short task says only that it began and ended.
const PLAIN_PAUSE: Duration = Duration::from_secs(2);

/// Width of the stage's name at the start of a line.
const NAME_WIDTH: usize = 9;

/// Where progress goes.
#[derive(Debug)]
pub struct Display {
    stage: String,
    bars: bool,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    task: String,
    bar: Option<ProgressBar>,
    started: Instant,
    /// Units that were done when the task began: a resumed run does not count them in its rate.
    first_done: Option<u64>,
    printed: Printed,
}

/// What was last printed of a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Printed {
    /// When, since the start of the task.
    pub at: Duration,
    /// Percentage then.
    pub percent: u64,
}

impl Display {
    /// For one stage; bars if standard error is a terminal.
    pub fn new(stage: &str) -> Self {
        Self { stage: stage.to_owned(), bars: std::io::stderr().is_terminal(), running: None }
    }

    /// Shows a change.
    pub fn show(&mut self, change: &Change) {
        match change {
            Change::Started(task) => self.start(task),
            Change::Advanced(task) => self.advance(task),
            Change::Finished(task) => self.finish(task),
            Change::Message(text) => self.line(text),
        }
    }

    /// One line, above the bar if there is one.
    pub fn line(&self, text: &str) {
        let text = format!("{:NAME_WIDTH$} {}", self.stage, printable(text));
        match self.running.as_ref().and_then(|running| running.bar.as_ref()) {
            Some(bar) => bar.println(text),
            None => say(&text),
        }
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.running.take().and_then(|running| running.bar) {
            bar.finish_and_clear();
        }
    }

    fn start(&mut self, task: &Task) {
        self.clear();
        let name = printable(&task.name);
        let bar = self.bars.then(|| {
            let bar = ProgressBar::with_draw_target(Some(task.total), ProgressDrawTarget::stderr());
            bar.set_style(style(task.total > 0));
            bar.set_prefix(format!("{:NAME_WIDTH$} {name}", self.stage));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() {
            let size = match task.total {
                0 => String::new(),
                total => format!(", {total} {}", task.unit),
            };
            self.line(&format!("{name}{size}"));
        }
        self.running = Some(Running {
            task: task.name.clone(),
            bar,
            started: Instant::now(),
            first_done: None,
            printed: Printed { at: Duration::ZERO, percent: 0 },
        });
    }

    fn advance(&mut self, task: &Task) {
        let Some(running) = self.running.as_mut().filter(|r| r.task == task.name) else { return };
        let first = running.first_done.is_none();
        let first_done = *running.first_done.get_or_insert(task.done());
        let elapsed = running.started.elapsed();
        if let Some(bar) = &running.bar {
            bar.set_position(task.done());
            bar.set_message(printable(&task.note));
            if first {
                bar.reset_eta();
            }
        } else if is_due(elapsed, task.done(), task.total, running.printed) {
            running.printed = Printed { at: elapsed, percent: percent(task.done(), task.total) };
            let line = plain(task, elapsed, first_done);
            self.line(&line);
        }
    }

    fn finish(&mut self, task: &Task) {
        let Some(running) = self.running.as_ref().filter(|r| r.task == task.name) else { return };
        let seconds = running.started.elapsed().as_secs_f64();
        let done = task.done();
        self.clear();
        let count = if done > 0 { format!(" {done} {},", task.unit) } else { String::new() };
        let note = if task.note.is_empty() { String::new() } else { format!(", {}", task.note) };
        self.line(&format!("{}:{count} {seconds:.1} s{note}", task.name));
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.clear();
    }
}

fn style(total_known: bool) -> ProgressStyle {
    let template = if total_known {
        "{prefix} {bar:24} {pos}/{len}  {per_sec}  eta {eta}  {wide_msg}"
    } else {
        "{prefix} {spinner} {pos}  {per_sec}  {wide_msg}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Whether a plain line should be printed now.
pub fn is_due(elapsed: Duration, done: u64, total: u64, last: Printed) -> bool {
    let percent = percent(done, total);
    let since = elapsed.saturating_sub(last.at);
    let share = percent / PLAIN_SHARE > last.percent / PLAIN_SHARE;
    percent < 100 && (since >= PLAIN_INTERVAL || (share && since >= PLAIN_PAUSE))
}

fn percent(done: u64, total: u64) -> u64 {
    match total {
        0 => 0,
        total => u64::try_from(u128::from(done) * 100 / u128::from(total)).unwrap_or(100),
    }
}

/// A plain line: how far, how fast, how long still.
pub fn plain(task: &Task, elapsed: Duration, first_done: u64) -> String {
    let done = task.done();
    let rate = done.saturating_sub(first_done) as f64 / elapsed.as_secs_f64().max(1e-9);
    let mut line = format!("{}: {done}", task.name);
    if task.total > 0 {
        line.push_str(&format!("/{} {} ({}%)", task.total, task.unit, percent(done, task.total)));
    } else {
        line.push_str(&format!(" {}", task.unit));
    }
    if rate > 0.0 {
        line.push_str(&format!(", {rate:.1}/s"));
        if task.total > done {
            line.push_str(&format!(", {:.0} s left", (task.total - done) as f64 / rate));
        }
    }
    if !task.note.is_empty() {
        line.push_str(&format!(", {}", task.note));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::tracker::Tracker;
    use reclora_trainer::telemetry::progress::Event;

    #[test]
    fn plain_lines_are_rare() {
        let last = Printed { at: Duration::ZERO, percent: 0 };
        let s = Duration::from_secs;
        assert!(!is_due(s(1), 10, 100, last));
        assert!(!is_due(s(1), 25, 100, last));
        assert!(is_due(s(3), 25, 100, last));
        assert!(!is_due(s(3), 30, 100, Printed { at: s(0), percent: 25 }));
        assert!(is_due(s(11), 30, 100, Printed { at: s(0), percent: 25 }));
        assert!(!is_due(s(99), 100, 100, last), "the finish line says it");
        assert!(!is_due(s(1), 5, 0, last));
        assert!(is_due(s(10), 5, 0, last));
    }

    #[test]
    fn rate_leaves_out_what_was_done_before() {
        let mut tracker = Tracker::new(1);
        let (task, unit) = ("t".into(), "steps".into());
        tracker.apply(0, Event::Start { task, total: 100, unit, together: true });
        let note = "loss 0.6".to_owned();
        let change = tracker.apply(0, Event::Update { task: "t".into(), done: 70, note });
        let Some(Change::Advanced(task)) = change else { panic!() };
        assert_eq!(
            plain(&task, Duration::from_secs(10), 50),
            "t: 70/100 steps (70%), 2.0/s, 15 s left, loss 0.6"
        );
    }
}
