//! What ranks write on standard error, on the console: lines that are alike are shown once. Pure: no clock.

use std::collections::BTreeSet;
use std::time::Duration;

/// How long a line waits for others like it.
const WINDOW: Duration = Duration::from_millis(300);
/// Most lines that wait.
const MOST: usize = 200;

/// Lines that wait to be shown.
#[derive(Debug, Default)]
pub struct Tee {
    waiting: Vec<Alike>,
}

#[derive(Debug)]
struct Alike {
    /// The line without its numbers.
    key: String,
    /// The first of them.
    text: String,
    ranks: BTreeSet<usize>,
    lines: usize,
    since: Duration,
}

impl Tee {
    /// Takes a line; returns one that must wait no longer, where too many do.
    pub fn push(&mut self, now: Duration, rank: usize, text: &str) -> Option<String> {
        let key = without_numbers(text);
        if let Some(alike) = self.waiting.iter_mut().find(|alike| alike.key == key) {
            alike.ranks.insert(rank);
            alike.lines += 1;
            return None;
        }
        let ranks = BTreeSet::from([rank]);
        self.waiting.push(Alike { key, text: text.to_owned(), ranks, lines: 1, since: now });
        (self.waiting.len() > MOST).then(|| self.waiting.remove(0).shown())
    }

    /// The lines that have waited long enough, in the order in which they came.
    pub fn due(&mut self, now: Duration) -> Vec<String> {
        let is_due = |alike: &mut Alike| now.saturating_sub(alike.since) >= WINDOW;
        self.waiting.extract_if(.., is_due).map(Alike::shown).collect()
    }
}

impl Alike {
    fn shown(self) -> String {
        let times = match self.lines {
            1 => String::new(),
            lines => format!("  ({lines} lines like this)"),
        };
        format!("[{}] {}{times}", spans(&self.ranks), self.text)
    }
}

/// Lines that differ in a rank, a time or an address only are alike.
fn without_numbers(text: &str) -> String {
    let mut key = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_ascii_digit() {
            true if key.ends_with('#') => {}
            true => key.push('#'),
            false => key.push(c),
        }
    }
    key
}

/// `0-3,6`.
fn spans(ranks: &BTreeSet<usize>) -> String {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for &rank in ranks {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => spans.push((rank, rank)),
        }
    }
    let text = spans.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_alike_are_shown_once() {
        let mut tee = Tee::default();
        let ms = Duration::from_millis;
        for rank in [0, 1, 2, 5] {
            assert_eq!(
                tee.push(ms(rank as u64), rank, &format!("rank {rank}: 0x7f{rank} late")),
                None
            );
        }
        tee.push(ms(10), 3, "another");
        assert!(tee.due(ms(200)).is_empty());
        assert_eq!(tee.due(ms(305)), ["[0-2,5] rank 0: 0x7f0 late  (4 lines like this)"]);
        assert_eq!(tee.due(ms(400)), ["[3] another"]);
        assert!(tee.due(ms(9000)).is_empty());
    }

    #[test]
    fn not_too_many_wait() {
        let mut tee = Tee::default();
        let name = |i: usize| "x".repeat(i + 1);
        let early: Vec<String> =
            (0..MOST + 3).filter_map(|i| tee.push(Duration::ZERO, 0, &name(i))).collect();
        assert_eq!(early, [0, 1, 2].map(|i| format!("[0] {}", name(i))));
    }
}
