//! Items that a user has rated more than once: finding them, and keeping one rating of each.
//!
//! No set of all pairs is kept. The ratings of as many users as fit into memory are brought together,
//! and each user's items marked in one table of the items; then come the next users, in another pass
//! over the ratings.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Rating, RawRatings};
use crate::error::Result;
use crate::spill::Spill;

/// What happens to an item that a user has rated more than once, and to an id that a table defines more than
/// once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// It is an error.
    #[default]
    Refuse,
    /// The first rating by time is kept, of equal times the first row; of a table the first row. Others are counted.
    First,
    /// The last rating by time is kept, of equal times the last row; of a table the last row. Others are counted.
    Last,
}

/// Ratings of items that their users have rated in an earlier row.
pub(super) struct Repeated {
    pub(super) count: u64,
    /// Row of the first of them, after that of the first rating of its item.
    pub(super) rows: [u32; 2],
    pub(super) ratings: [Rating; 2],
}

/// Finds the ratings of items that their users have rated in an earlier row.
pub(super) fn find(
    ratings: &RawRatings,
    users: usize,
    items: usize,
    spill: &Spill,
) -> Result<Option<Repeated>> {
    let mut marks = vec![(u32::MAX, 0); items];
    let (mut count, mut first): (u64, Option<[u32; 2]>) = (0, None);
    each_user(ratings, users, spill, |user, rated| {
        for Rated { item, row, .. } in rated {
            let Some(mark) = marks.get_mut(*item as usize) else { continue };
            if mark.0 != user {
                *mark = (user, *row);
                continue;
            }
            count += 1;
            if first.is_none_or(|[_, second]| *row < second) {
                first = Some([mark.1, *row]);
            }
        }
    })?;
    let Some(rows) = first else { return Ok(None) };
    Ok(Some(Repeated { count, rows, ratings: look_up(ratings, rows)? }))
}

/// The ratings with one of each user and item: the first or the last by time, and by row where times are
/// equal.
pub(super) fn keep_one(
    ratings: &RawRatings,
    users: usize,
    items: usize,
    spill: &Spill,
    last: bool,
) -> Result<RawRatings> {
    let mut marks = vec![(u32::MAX, 0, 0); items];
    let mut dropped = Rows(vec![0; ratings.len().div_ceil(64)]);
    each_user(ratings, users, spill, |user, rated| {
        for Rated { item, row, time } in rated {
            let Some(mark) = marks.get_mut(*item as usize) else { continue };
            let (owner, before, earlier) = *mark;
            let replaces = if last { *time >= earlier } else { *time < earlier };
            if owner != user || replaces {
                *mark = (user, *row, *time);
            }
            if owner == user {
                dropped.insert(if replaces { before } else { *row });
            }
        }
    })?;
    let (mut kept, mut row) = (RawRatings::within(spill), 0);
    ratings.for_each(|rating| {
        if !dropped.has(row) {
            kept.push(rating)?;
        }
        row += 1;
        Ok(())
    })?;
    Ok(kept)
}

/// A set of rows, a bit each.
struct Rows(Vec<u64>);

impl Rows {
    fn insert(&mut self, row: u32) {
        if let Some(bits) = self.0.get_mut(row as usize / 64) {
            *bits |= 1 << (row % 64);
        }
    }

    fn has(&self, row: u32) -> bool {
        self.0.get(row as usize / 64).is_some_and(|bits| bits >> (row % 64) & 1 == 1)
    }
}

/// A rating among those of one user.
#[derive(Clone, Copy, Default)]
struct Rated {
    item: u32,
    row: u32,
    time: i64,
}

/// Visits every user's ratings in the order of the rows.
fn each_user(
    ratings: &RawRatings,
    users: usize,
    spill: &Spill,
    mut visit: impl FnMut(u32, &[Rated]),
) -> Result<()> {
    let mut counts = vec![0_u32; users];
    ratings.for_each(|rating| {
        if let Some(count) = counts.get_mut(rating.user as usize) {
            *count += 1;
        }
        Ok(())
    })?;
    let room = spill.rows(4, size_of::<Rated>());
    let mut start = 0;
    while start < users {
        let group = Group::from(start, &counts, room);
        start += group.ends.len();
        group.read(ratings, &mut visit)?;
    }
    Ok(())
}

/// Users from `start` on whose ratings fit into memory together; at least one user.
struct Group {
    start: usize,
    /// Where each user's ratings end; where they start, before they are brought in.
    ends: Vec<usize>,
    rows: usize,
}

impl Group {
    fn from(start: usize, counts: &[u32], room: usize) -> Self {
        let (mut rows, mut ends) = (0, Vec::new());
        for count in counts.iter().skip(start).map(|c| *c as usize) {
            if !ends.is_empty() && rows + count > room {
                break;
            }
            ends.push(rows);
            rows += count;
        }
        Self { start, ends, rows }
    }

    /// Brings the ratings of each user together.
    fn read(mut self, ratings: &RawRatings, visit: &mut impl FnMut(u32, &[Rated])) -> Result<()> {
        let mut rated = vec![Rated::default(); self.rows];
        let mut row = 0;
        ratings.for_each(|rating| {
            let user = (rating.user as usize).checked_sub(self.start);
            if let Some(end) = user.and_then(|user| self.ends.get_mut(user)) {
                if let Some(place) = rated.get_mut(*end) {
                    *place = Rated { item: rating.item, row, time: rating.timestamp };
                }
                *end += 1;
            }
            row += 1;
            Ok(())
        })?;
        let mut from = 0;
        for (user, end) in (self.start as u32..).zip(&self.ends) {
            visit(user, rated.get(from..*end).unwrap_or_default());
            from = *end;
        }
        Ok(())
    }
}

fn look_up(ratings: &RawRatings, rows: [u32; 2]) -> Result<[Rating; 2]> {
    let (mut row, mut found) = (0, Vec::new());
    ratings.for_each(|rating| {
        if rows.contains(&row) {
            found.push(rating);
        }
        row += 1;
        Ok(())
    })?;
    let nothing = Rating { user: u32::MAX, item: u32::MAX, level: 0, timestamp: 0 };
    let at = |i: usize| found.get(i).copied().unwrap_or(nothing);
    Ok([at(0), at(1)])
}
