//! The items of a user's history that are most like a target: exact, for many targets of one user at once.
//!
//! The histories of a user's targets are beginnings of one another, so the targets are multiplied with
//! pieces of the longest one, from the oldest item on, as matrices. Behind each piece a target keeps its
//! best K so far; what lies behind a target in time is not looked at. Memory is that of a piece, however
//! long the history is.

use super::ItemEmbeddings;
use crate::config::Order;
use crate::kernels::Mat;
use crate::kernels::small_matmul::{small_matmul, transpose};

/// Targets multiplied at once: more amortise the copying of a piece better, and take more memory.
pub const TARGETS: usize = 24;
/// Items of the history in a piece.
const PIECE: usize = 256;

/// An item that a user's history is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// How many items of the history come before.
    pub position: u32,
    /// The item.
    pub item: u32,
}

/// How much of a history is shown, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// At most so many items.
    pub k: usize,
    /// Which, in which order.
    pub order: Order,
}

impl Shown {
    /// How many of `count` items are shown.
    pub fn len(self, count: u32) -> usize {
        self.k.min(count as usize)
    }

    /// Whether it takes similarities to tell which.
    fn is_of_similar(self) -> bool {
        self.order != Order::Recent && self.k > 0
    }

    /// Appends the positions shown of a history of `count` items; `best` are keys, the largest first.
    fn positions(self, count: u32, best: &[u64], positions: &mut Vec<u32>) {
        let start = positions.len();
        let len = self.len(count);
        match self.order {
            Order::Recent => positions.extend(count - len as u32..count),
            Order::High | Order::Sequential => {
                positions.extend(best[..len].iter().copied().map(position));
            }
            Order::Low => positions.extend(best[..len].iter().rev().copied().map(position)),
        }
        if self.order == Order::Sequential {
            positions[start..].sort_unstable();
        }
    }
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub struct Workspace {
    /// `[targets, dimensions]`.
    targets: Vec<f32>,
    /// `[PIECE, dimensions]` and its transpose.
    rows: Vec<f32>,
    columns: Vec<f32>,
    /// `[targets, PIECE]`.
    similarities: Vec<f32>,
    best: Vec<Best>,
}

/// The largest keys of a target so far.
#[derive(Clone, Debug, Default)]
struct Best {
    k: usize,
    keys: Vec<u64>,
    /// The k-th largest key, once there are as many; smaller ones are of no use.
    threshold: u64,
}

impl Best {
    fn reset(&mut self, k: usize) {
        self.k = k;
        self.keys.clear();
        self.threshold = 0;
    }

    /// Takes the similarities of the positions from `first` on.
    fn take(&mut self, similarities: &[f32], first: usize) {
        for (start, some) in (first..).step_by(LANES).zip(similarities.chunks(LANES)) {
            // Most of a long history is not similar enough: looked at together.
            let largest = some.iter().map(|similarity| ordered(*similarity)).max().unwrap_or(0);
            if largest < (self.threshold >> 32) as u32 {
                continue;
            }
            for (place, similarity) in (start..).zip(some) {
                let key = u64::from(ordered(*similarity)) << 32 | place as u64;
                if key > self.threshold || self.keys.len() < self.k {
                    self.keys.push(key);
                }
            }
            if self.keys.len() >= 2 * self.k + PIECE {
                self.cut();
            }
        }
    }

    /// Drops all but the k largest.
    fn cut(&mut self) {
        if let Some(last) = self.k.checked_sub(1)
            && last < self.keys.len()
        {
            let (_, kth, _) = self.keys.select_nth_unstable_by(last, |a, b| b.cmp(a));
            self.threshold = *kth;
            self.keys.truncate(self.k);
        }
    }

    /// The k largest, the largest first.
    fn finish(&mut self) -> &[u64] {
        self.cut();
        self.keys.sort_unstable_by(|a, b| b.cmp(a));
        &self.keys
    }
}

/// Similarities looked at together.
const LANES: usize = 16;

/// A number that is ordered as [`f32::total_cmp`] orders similarities.
fn ordered(similarity: f32) -> u32 {
    let bits = similarity.to_bits();
    // All bits of a negative number turn, of a positive one the first.
    bits ^ (((bits as i32) >> 31) as u32 | 1 << 31)
}

/// The position in a key. Of equally similar items the later one has the larger key.
fn position(key: u64) -> u32 {
    key as u32
}

/// The positions that each of `targets` (at most [`TARGETS`] of one user) is shown with, one target's behind
/// the other's, for each of `shown`. `history` is the user's, the oldest item first, as far as the last
/// target needs it.
///
/// Of equally similar items the later one is taken. Without embeddings no item is similar to another.
pub fn top_k<const N: usize>(
    embeddings: Option<&ItemEmbeddings>,
    history: &[u32],
    targets: &[Target],
    shown: [Shown; N],
    ws: &mut Workspace,
) -> [Vec<u32>; N] {
    let k = shown.iter().filter(|shown| shown.is_of_similar()).map(|shown| shown.k).max();
    if let (Some(embeddings), Some(k)) = (embeddings, k) {
        find(embeddings, history, targets, k, ws);
    }
    let mut positions: [Vec<u32>; N] = std::array::from_fn(|_| Vec::new());
    for (index, target) in targets.iter().enumerate() {
        let best = match (embeddings, k) {
            (Some(_), Some(_)) => ws.best[index].finish(),
            _ => &[],
        };
        for (shown, positions) in shown.iter().zip(&mut positions) {
            shown.positions(target.position, best, positions);
        }
    }
    positions
}

/// Leaves the `k` best of each target's history in `ws.best`.
fn find(
    embeddings: &ItemEmbeddings,
    history: &[u32],
    targets: &[Target],
    k: usize,
    ws: &mut Workspace,
) {
    let width = embeddings.dimensions;
    ws.best.resize_with(targets.len().max(ws.best.len()), Best::default);
    ws.best.iter_mut().for_each(|best| best.reset(k));
    embeddings.copy_rows(targets.iter().map(|target| target.item), &mut ws.targets);
    let longest = targets.iter().map(|target| target.position).max().unwrap_or(0);
    let history = &history[..(longest as usize).min(history.len())];
    ws.columns.resize(width * PIECE, 0.0);
    ws.similarities.resize(targets.len() * PIECE, 0.0);
    let lhs = Mat::new(&ws.targets, targets.len(), width);
    for (first, piece) in (0..).step_by(PIECE).zip(history.chunks(PIECE)) {
        let count = piece.len();
        embeddings.copy_rows(piece.iter().copied(), &mut ws.rows);
        transpose(&mut ws.columns, PIECE, Mat::new(&ws.rows, count, width));
        let rhs = Mat::strided(&ws.columns, width, count, PIECE);
        small_matmul(&mut ws.similarities, PIECE, lhs, rhs, false);
        let rows = ws.similarities.chunks_exact(PIECE).zip(targets);
        for ((row, target), best) in rows.zip(&mut ws.best) {
            let before = (target.position as usize).saturating_sub(first).min(count);
            best.take(&row[..before], first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ITEMS: u32 = 40;

    fn embeddings() -> ItemEmbeddings {
        let rows: Vec<f32> = (0..ITEMS * 4)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 3e4 - (i % 3) as f32)
            .collect();
        ItemEmbeddings::from_states(&rows, 4, 3).unwrap()
    }

    /// The definition: all similarities, sorted.
    fn naive(embeddings: &ItemEmbeddings, history: &[u32], item: u32, shown: Shown) -> Vec<u32> {
        let ws = &mut Workspace::default();
        let mut similarity = |position: u32| {
            // Of this item alone, as a history of one: no other item has a part in it.
            let target = [Target { position: 1, item }];
            find(embeddings, &[history[position as usize]], &target, 1, ws);
            (ws.best[0].keys[0] >> 32) as u32
        };
        let mut all: Vec<u32> = (0..history.len() as u32).collect();
        if shown.order == Order::Recent {
            return all.split_off(all.len() - shown.len(all.len() as u32));
        }
        all.reverse();
        all.sort_by_cached_key(|&position| std::cmp::Reverse(similarity(position)));
        all.truncate(shown.k);
        match shown.order {
            Order::Low => all.reverse(),
            Order::Sequential => all.sort_unstable(),
            Order::High | Order::Recent => {}
        }
        all
    }

    #[test]
    fn keys_are_ordered_as_total_cmp_orders() {
        let values = [f32::NEG_INFINITY, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, f32::INFINITY];
        let values = [&[-f32::NAN], &values[..], &[f32::NAN]].concat();
        assert!(values.windows(2).all(|pair| ordered(pair[0]) < ordered(pair[1])));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn many_targets_at_once_are_shown_what_the_definition_says(
            history in prop_oneof![
                prop::collection::vec(0..ITEMS + 2, 0..40),
                prop::collection::vec(0..ITEMS + 2, 240..700),
                prop::collection::vec(0u32..3, 500..600),
            ],
            targets in prop::collection::vec((any::<prop::sample::Index>(), 0..ITEMS), 1..=TARGETS),
            k in prop_oneof![0usize..6, 0usize..80, Just(1000usize)],
        ) {
            let embeddings = embeddings();
            let targets: Vec<Target> = targets
                .into_iter()
                .map(|(at, item)| Target { position: at.index(history.len() + 1) as u32, item })
                .collect();
            let orders = [Order::Recent, Order::High, Order::Low, Order::Sequential];
            for (i, order) in orders.into_iter().enumerate() {
                let other = Shown { k: 3, order: orders[(i + 1) % 4] };
                let shown = [Shown { k, order }, other];
                let ws = &mut Workspace::default();
                let mut found = top_k(Some(&embeddings), &history, &targets, shown, ws);
                for target in &targets {
                    for (shown, found) in shown.into_iter().zip(&mut found) {
                        let rest = found.split_off(shown.len(target.position));
                        let history = &history[..target.position as usize];
                        prop_assert_eq!(&*found, &naive(&embeddings, history, target.item, shown));
                        *found = rest;
                    }
                }
            }
        }
    }
}
