//! Finding an item that a user has rated twice.
//!
//! No set of all pairs is kept. The ratings of as many users as fit into memory are brought together,
//! and each user's items marked in one table of the items; then come the next users, in another pass
//! over the ratings.

use super::{Rating, RawRatings};
use crate::error::Result;
use crate::spill::Spill;

/// Two ratings of one user and item.
pub(super) struct Duplicate {
    /// Their rows, ascending.
    pub(super) rows: [u32; 2],
    pub(super) ratings: [Rating; 2],
}

/// The first rating of an item that its user has rated before.
pub(super) fn first(
    ratings: &RawRatings,
    users: usize,
    items: usize,
    spill: &Spill,
) -> Result<Option<Duplicate>> {
    let mut counts = vec![0_u32; users];
    ratings.for_each(|rating| {
        if let Some(count) = counts.get_mut(rating.user as usize) {
            *count += 1;
        }
        Ok(())
    })?;
    let room = spill.rows(4, size_of::<(u32, u32)>());
    let mut marks = vec![(u32::MAX, 0); items];
    let mut found: Option<[u32; 2]> = None;
    let mut start = 0;
    while start < users {
        let group = Group::from(start, &counts, room);
        start = group.end;
        let earlier = group.find(ratings, &mut marks)?;
        found = match (found, earlier) {
            (Some(a), Some(b)) => Some(if a[1] < b[1] { a } else { b }),
            (a, b) => a.or(b),
        };
    }
    found.map(|rows| look_up(ratings, rows)).transpose()
}

/// Users from `start` on whose ratings fit into memory together; at least one user.
struct Group {
    start: usize,
    end: usize,
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
        Self { start, end: start + ends.len(), ends, rows }
    }

    /// The rows of the first rating that repeats one, and of that one. `marks` has, per item, the
    /// last user and row.
    fn find(mut self, ratings: &RawRatings, marks: &mut [(u32, u32)]) -> Result<Option<[u32; 2]>> {
        let mut rated = vec![(0_u32, 0_u32); self.rows];
        let mut row = 0;
        ratings.for_each(|rating| {
            let user = (rating.user as usize).checked_sub(self.start);
            if let Some(end) = user.and_then(|user| self.ends.get_mut(user)) {
                if let Some(place) = rated.get_mut(*end) {
                    *place = (rating.item, row);
                }
                *end += 1;
            }
            row += 1;
            Ok(())
        })?;
        let (mut found, mut from): (Option<[u32; 2]>, usize) = (None, 0);
        for (user, end) in (self.start as u32..).zip(&self.ends) {
            for (item, row) in rated.get(from..*end).unwrap_or_default() {
                let Some(mark) = marks.get_mut(*item as usize) else { continue };
                if mark.0 == user {
                    if found.is_none_or(|[_, second]| *row < second) {
                        found = Some([mark.1, *row]);
                    }
                } else {
                    *mark = (user, *row);
                }
            }
            from = *end;
        }
        Ok(found)
    }
}

fn look_up(ratings: &RawRatings, rows: [u32; 2]) -> Result<Duplicate> {
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
    Ok(Duplicate { rows, ratings: [at(0), at(1)] })
}
