//! The protocol for ratings without time, as published for BookCrossing.
//!
//! There is no "earlier" here, so one order is drawn and kept: users in the order of their first rating
//! in the file; each user's ratings shuffled; one sample per user, the last of the shuffled ratings, its
//! history all the others (D-4: never the target); samples of users with fewer than `min_history` other
//! ratings dropped; the samples shuffled, and cut into train, valid and test.
//!
//! Every shuffle is Python's with seed 42, begun afresh, as in the published code: the same test set
//! comes out. The seed is part of the protocol, not the experiment's, so that runs with other seeds are
//! measured on the same samples.
//!
//! Without a k-core (`k_core` 0 or 1), vocabularies hold every user and item of the tables, rated or
//! not, in the order of the tables: the published numbers of features count them. With one, they hold
//! the users and items of the core, as they do for ratings with time.

use super::columns::Columns;
use super::core::{Appearances, Core, at};
use super::shuffle::PythonRandom;
use super::{Arranged, ProtocolConfig};
use crate::error::Result;
use crate::raw::{Rating, RawTables};
use crate::spill::Spill;

/// Seed of every shuffle of the published protocol.
const SEED: u32 = 42;

/// Draws order and samples. All ratings are in memory.
pub(super) fn arrange(
    raw: &RawTables,
    core: &Core,
    likes: &[bool],
    config: &ProtocolConfig,
) -> Result<Arranged> {
    let mut ratings = Vec::with_capacity(core.ratings);
    raw.ratings.for_each(|rating| {
        if core.has(&rating) {
            ratings.push(rating);
        }
        Ok(())
    })?;
    let by_rating = in_order_of(raw.users.keys.len(), ratings.iter().map(|r| r.user));
    let (users, items) = if config.k_core <= 1 {
        let everyone = |len: usize| in_order_of(len, 0..len as u32);
        (everyone(raw.users.keys.len()), everyone(raw.items.keys.len()))
    } else {
        let items = in_order_of(raw.items.keys.len(), ratings.iter().map(|r| r.item));
        (by_rating.clone(), items)
    };

    // Ratings user by user in the order of the file, which is what is shuffled.
    let mut by_user = vec![Vec::new(); users.kept.len()];
    for rating in ratings {
        if let Some(rows) = by_user.get_mut(at(&users.index, rating.user) as usize) {
            rows.push(rating);
        }
    }
    for rows in &mut by_user {
        PythonRandom::new(SEED).shuffle(rows);
    }
    let mut columns = Columns::new(&Spill::never());
    let mut samples = Vec::new();
    for rows in &by_user {
        for rating in rows {
            columns.item.push(at(&items.index, rating.item))?;
            columns.rating.push(rating.level)?;
            columns.timestamp.push(rating.timestamp)?;
        }
        columns.user_offsets.push(columns.item.len() as u64);
    }
    // The order of the users' first ratings, which is what is shuffled here.
    for user in by_rating.kept.iter().map(|user| at(&users.index, *user) as usize) {
        let rows: &[Rating] = by_user.get(user).map_or(&[], Vec::as_slice);
        let others = rows.len().saturating_sub(1) as u32;
        if let (Some(last), Some(end)) = (rows.last(), columns.user_offsets.get(user + 1))
            && others >= config.min_history
        {
            samples.push((*end as u32 - 1, last.level));
        }
    }
    PythonRandom::new(SEED).shuffle(&mut samples);
    for (row, level) in samples {
        columns.sample.push(row)?;
        columns.positive += u64::from(likes.get(usize::from(level)) == Some(&true));
    }
    Ok(Arranged { users, items, columns })
}

/// New indices in the order in which the old ones first come. (Ranks, which sort ratings by time, are
/// of no use here.)
fn in_order_of(len: usize, old: impl Iterator<Item = u32>) -> Appearances {
    let (mut index, mut kept) = (vec![u32::MAX; len], Vec::new());
    for old in old {
        if let Some(slot) = index.get_mut(old as usize).filter(|slot| **slot == u32::MAX) {
            *slot = kept.len() as u32;
            kept.push(old);
        }
    }
    Appearances { index, kept, ranks: Vec::new() }
}
