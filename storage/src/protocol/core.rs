//! Which users and items are kept, and under which indices. What is in memory here grows with users
//! and items; ratings are only passed over.

use crate::error::Result;
use crate::raw::{Rating, RawTables};

/// The value at `i`; `u32::MAX`, which is no index, outside.
pub(super) fn at(values: &[u32], i: u32) -> u32 {
    values.get(i as usize).copied().unwrap_or(u32::MAX)
}

/// The users or the items of the k-core.
#[derive(Debug)]
pub(super) struct Side {
    /// Ratings of each in the core; 0 is none, and outside.
    degrees: Vec<u32>,
}

impl Side {
    fn has(&self, i: u32) -> bool {
        self.degrees.get(i as usize).is_some_and(|degree| *degree > 0)
    }

    fn drop_below(&mut self, k: u32) -> bool {
        let mut dropped = false;
        for degree in self.degrees.iter_mut().filter(|d| (1..k).contains(*d)) {
            *degree = 0;
            dropped = true;
        }
        dropped
    }
}

/// What is left when users and items with fewer than `k` ratings are dropped until none is.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) users: Side,
    pub(super) items: Side,
    /// Users and items with a rating before any was dropped.
    pub(super) raw: [u64; 2],
    /// Time of the first and the last rating left.
    pub(super) times: Option<(i64, i64)>,
    /// Ratings left.
    pub(super) ratings: usize,
}

impl Core {
    pub(super) fn new(raw: &RawTables, k: u32) -> Result<Self> {
        // Before the first pass everybody is in.
        let side = |len| Side { degrees: vec![1; len] };
        let mut users = side(raw.users.keys.len());
        let mut items = side(raw.items.keys.len());
        let mut distinct = None;
        loop {
            let mut core = Self::pass(raw, &users, &items)?;
            let count = |side: &Side| side.degrees.iter().filter(|d| **d > 0).count() as u64;
            core.raw = *distinct.get_or_insert([count(&core.users), count(&core.items)]);
            let dropped = [core.users.drop_below(k), core.items.drop_below(k)];
            if dropped == [false; 2] {
                return Ok(core);
            }
            (users, items) = (core.users, core.items);
        }
    }

    /// Counts the ratings whose user and item are both left.
    fn pass(raw: &RawTables, users: &Side, items: &Side) -> Result<Self> {
        let mut user_degrees = vec![0_u32; users.degrees.len()];
        let mut item_degrees = vec![0_u32; items.degrees.len()];
        let (mut times, mut ratings): (Option<(i64, i64)>, usize) = (None, 0);
        raw.ratings.for_each(|rating| {
            if users.has(rating.user) && items.has(rating.item) {
                for (degrees, i) in
                    [(&mut user_degrees, rating.user), (&mut item_degrees, rating.item)]
                {
                    if let Some(degree) = degrees.get_mut(i as usize) {
                        *degree += 1;
                    }
                }
                let time = rating.timestamp;
                times = times.map_or(Some((time, time)), |(a, b)| Some((a.min(time), b.max(time))));
                ratings += 1;
            }
            Ok(())
        })?;
        let (users, items) = (Side { degrees: user_degrees }, Side { degrees: item_degrees });
        Ok(Self { users, items, raw: [0; 2], times, ratings })
    }

    pub(super) fn has(&self, rating: &Rating) -> bool {
        self.users.has(rating.user) && self.items.has(rating.item)
    }
}

/// New indices by first appearance in the sorted ratings.
#[derive(Clone)]
pub(super) struct Appearances {
    /// New index of each old one, `u32::MAX` where it does not appear.
    pub(super) index: Vec<u32>,
    /// Old index of each new one.
    pub(super) kept: Vec<u32>,
    /// Place of each old one's key among the sorted keys.
    pub(super) ranks: Vec<u32>,
}

impl Appearances {
    /// `first` is where each old one first appears: any key that sorts as the ratings do.
    fn new<T: Ord + Copy>(first: &[Option<T>], ranks: Vec<u32>) -> Self {
        let mut kept: Vec<u32> =
            (0..).zip(first).filter(|(_, f)| f.is_some()).map(|(i, _)| i).collect();
        // Ranks decide between two that appear at once, as they do in the sorted ratings.
        kept.sort_unstable_by_key(|i| (first.get(*i as usize), at(&ranks, *i)));
        let mut index = vec![u32::MAX; first.len()];
        for (new, old) in (0..).zip(&kept) {
            if let Some(slot) = index.get_mut(*old as usize) {
                *slot = new;
            }
        }
        Self { index, kept, ranks }
    }
}

/// Users and items of the core in the order of their first ratings by (timestamp, user, item).
pub(super) fn appearances(raw: &RawTables, core: &Core) -> Result<(Appearances, Appearances)> {
    let (user_ranks, item_ranks) = (ranks(&raw.users.keys), ranks(&raw.items.keys));
    let mut users: Vec<Option<i64>> = vec![None; user_ranks.len()];
    let mut items: Vec<Option<(i64, u32)>> = vec![None; item_ranks.len()];
    raw.ratings.for_each(|rating| {
        if core.has(&rating) {
            earliest(&mut users, rating.user, rating.timestamp);
            let moment = (rating.timestamp, at(&user_ranks, rating.user));
            earliest(&mut items, rating.item, moment);
        }
        Ok(())
    })?;
    Ok((Appearances::new(&users, user_ranks), Appearances::new(&items, item_ranks)))
}

fn earliest<T: Ord + Copy>(first: &mut [Option<T>], i: u32, moment: T) {
    if let Some(first) = first.get_mut(i as usize)
        && first.is_none_or(|first| moment < first)
    {
        *first = Some(moment);
    }
}

/// Each key's place among the sorted keys: numerically when all are integers, else as strings.
fn ranks(keys: &[String]) -> Vec<u32> {
    let numbers: Option<Vec<i64>> = keys.iter().map(|k| k.parse().ok()).collect();
    let mut order: Vec<u32> = (0..keys.len() as u32).collect();
    let number = |i: u32| numbers.as_ref().and_then(|n| n.get(i as usize));
    // Equal numbers ("7" and "07") fall back to the strings.
    order.sort_by_key(|i| (number(*i), keys.get(*i as usize)));
    inverse(&order)
}

/// The inverse of a permutation.
pub(super) fn inverse(order: &[u32]) -> Vec<u32> {
    let mut inverse = vec![0; order.len()];
    for (place, i) in (0_u32..).zip(order) {
        if let Some(slot) = inverse.get_mut(*i as usize) {
            *slot = place;
        }
    }
    inverse
}
