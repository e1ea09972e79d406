//! Which ratings are kept, in which order, and under which indices.

use crate::raw::RawTables;

/// The value at `i`; `u32::MAX`, which is no index, outside.
pub(super) fn at(values: &[u32], i: u32) -> u32 {
    values.get(i as usize).copied().unwrap_or(u32::MAX)
}

/// How many of the indices `0..len` occur.
pub(super) fn distinct(len: usize, values: &[u32]) -> u64 {
    let mut seen = vec![false; len];
    values.iter().for_each(|v| {
        if let Some(s) = seen.get_mut(*v as usize) {
            *s = true;
        }
    });
    seen.iter().filter(|s| **s).count() as u64
}

/// Which ratings are left when users and items with fewer than `k` are dropped until none is.
pub(super) fn k_core(raw: &RawTables, k: u32) -> Vec<bool> {
    let mut kept = vec![true; raw.ratings.user.len()];
    if k <= 1 {
        return kept;
    }
    loop {
        let mut users = vec![0_u32; raw.users.keys.len()];
        let mut items = vec![0_u32; raw.items.keys.len()];
        let rows = || raw.ratings.user.iter().zip(&raw.ratings.item);
        for ((user, item), _) in rows().zip(&kept).filter(|(_, kept)| **kept) {
            for (degree, i) in [(&mut users, user), (&mut items, item)] {
                if let Some(d) = degree.get_mut(*i as usize) {
                    *d += 1;
                }
            }
        }
        let mut dropped = false;
        for ((user, item), kept) in rows().zip(&mut kept).filter(|(_, kept)| **kept) {
            if at(&users, *user) < k || at(&items, *item) < k {
                *kept = false;
                dropped = true;
            }
        }
        if !dropped {
            return kept;
        }
    }
}

/// The kept ratings in (timestamp, user, item) order.
pub(super) fn sorted(raw: &RawTables, kept: &[bool]) -> Vec<u32> {
    let users = ranks(&raw.users.keys);
    let items = ranks(&raw.items.keys);
    let ratings = &raw.ratings;
    let mut rows: Vec<(i64, u32, u32, u32)> = (0_u32..)
        .zip(ratings.timestamp.iter().zip(ratings.user.iter().zip(&ratings.item)).zip(kept))
        .filter(|(_, (_, kept))| **kept)
        .map(|(row, ((time, (u, i)), _))| (*time, at(&users, *u), at(&items, *i), row))
        .collect();
    // The row number comes last: the sort is stable.
    rows.sort_unstable();
    rows.into_iter().map(|(.., row)| row).collect()
}

/// Each key's place among the sorted keys: numerically when all are integers, else as strings.
fn ranks(keys: &[String]) -> Vec<u32> {
    let numbers: Option<Vec<i64>> = keys.iter().map(|k| k.parse().ok()).collect();
    let mut order: Vec<u32> = (0..keys.len() as u32).collect();
    let number = |i: u32| numbers.as_ref().and_then(|n| n.get(i as usize));
    // Equal numbers ("7" and "07") fall back to the strings.
    order.sort_by_key(|i| (number(*i), keys.get(*i as usize)));
    let mut ranks = vec![0; keys.len()];
    for (rank, i) in (0_u32..).zip(order) {
        if let Some(r) = ranks.get_mut(i as usize) {
            *r = rank;
        }
    }
    ranks
}

/// New indices by first appearance.
#[derive(Clone)]
pub(super) struct Appearances {
    /// New index of each old one, `u32::MAX` where it does not appear.
    pub(super) index: Vec<u32>,
    /// Old index of each new one.
    pub(super) kept: Vec<u32>,
}

pub(super) fn first_appearances(len: usize, values: impl Iterator<Item = u32>) -> Appearances {
    let mut index = vec![u32::MAX; len];
    let mut kept = Vec::new();
    for value in values {
        if let Some(slot) = index.get_mut(value as usize).filter(|slot| **slot == u32::MAX) {
            *slot = kept.len() as u32;
            kept.push(value);
        }
    }
    Appearances { index, kept }
}

pub(super) struct Columns {
    pub(super) offsets: Vec<u64>,
    pub(super) item: Vec<u32>,
    pub(super) rating: Vec<u8>,
    pub(super) timestamp: Vec<i64>,
}

/// The sorted ratings, user by user.
pub(super) fn columns_by_user(
    raw: &RawTables,
    order: &[u32],
    users: &Appearances,
    items: &Appearances,
) -> Columns {
    let mut by_user: Vec<(u32, u32)> =
        order.iter().map(|row| (at(&users.index, raw.user(*row)), *row)).collect();
    by_user.sort_by_key(|(user, _)| *user);
    let mut offsets = vec![0_u64; users.kept.len() + 1];
    for (user, _) in &by_user {
        if let Some(count) = offsets.get_mut(*user as usize + 1) {
            *count += 1;
        }
    }
    let mut total = 0;
    for offset in &mut offsets {
        total += *offset;
        *offset = total;
    }
    let rows = || by_user.iter().map(|(_, row)| *row as usize);
    let ratings = &raw.ratings;
    Columns {
        offsets,
        item: by_user.iter().map(|(_, row)| at(&items.index, raw.item(*row))).collect(),
        rating: rows().filter_map(|row| ratings.level.get(row).copied()).collect(),
        timestamp: rows().filter_map(|row| ratings.timestamp.get(row).copied()).collect(),
    }
}
