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

use super::order::{Appearances, at, first_appearances, k_core};
use super::shuffle::PythonRandom;
use super::{Arranged, ProtocolConfig, Samples};
use crate::raw::RawTables;

/// Seed of every shuffle of the published protocol.
const SEED: u32 = 42;

/// Draws order and samples.
pub(super) fn arrange(raw: &RawTables, likes: &[bool], config: &ProtocolConfig) -> Arranged {
    let kept = k_core(raw, config.k_core);
    let rows: Vec<u32> =
        (0_u32..).zip(&kept).filter(|(_, kept)| **kept).map(|(row, _)| row).collect();
    let by_rating = first_appearances(raw.users.keys.len(), rows.iter().map(|r| raw.user(*r)));
    let (users, items) = if config.k_core <= 1 {
        (everyone(raw.users.keys.len()), everyone(raw.items.keys.len()))
    } else {
        let items = first_appearances(raw.items.keys.len(), rows.iter().map(|r| raw.item(*r)));
        (by_rating.clone(), items)
    };

    // Ratings user by user in the order of the file, which is what is shuffled.
    let mut by_user = vec![Vec::new(); by_rating.kept.len()];
    for row in rows {
        if let Some(rows) = by_user.get_mut(at(&by_rating.index, raw.user(row)) as usize) {
            rows.push(row);
        }
    }
    let mut samples = Vec::new();
    for (rows, user) in by_user.iter_mut().zip(&by_rating.kept) {
        PythonRandom::new(SEED).shuffle(rows);
        let others = rows.len().saturating_sub(1) as u32;
        if let Some(row) = rows.last().filter(|_| others >= config.min_history) {
            samples.push((at(&users.index, *user), others, *row));
        }
    }
    PythonRandom::new(SEED).shuffle(&mut samples);
    let like = |row: u32| {
        let level = raw.ratings.level.get(row as usize).copied().unwrap_or_default();
        likes.get(usize::from(level)) == Some(&true)
    };
    let samples = Samples {
        user: samples.iter().map(|(user, ..)| *user).collect(),
        position: samples.iter().map(|(_, position, _)| *position).collect(),
        positive: samples.iter().filter(|(.., row)| like(*row)).count() as u64,
    };
    Arranged { users, items, order: by_user.concat(), samples }
}

/// All of a table, in its order.
fn everyone(len: usize) -> Appearances {
    let all: Vec<u32> = (0..len as u32).collect();
    Appearances { index: all.clone(), kept: all }
}
