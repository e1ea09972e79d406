//! BookCrossing, GoodReads, CSV and Parquet: what the readers make of small files, and of bad ones.

mod bookcrossing;
mod containers;
mod crafted;
mod csv;
mod detect;
mod goodreads;
mod inspect;
mod look;
mod parquet;
mod peers;

use reclora_storage::raw::{RawEntities, RawTables};

/// A column of fields.
fn field<'a>(entities: &'a RawEntities, name: &str) -> &'a [String] {
    &entities.fields.iter().find(|c| c.name == name).unwrap().values
}

/// A column of texts.
fn text<'a>(entities: &'a RawEntities, name: &str) -> &'a [String] {
    &entities.texts.iter().find(|c| c.name == name).unwrap().values
}

fn names(entities: &RawEntities) -> Vec<&str> {
    entities.fields.iter().map(|f| f.name.as_str()).collect()
}

/// The ratings as (user, item, stars, time in seconds).
fn rows(raw: &RawTables) -> Vec<(&str, &str, f32, i64)> {
    let rows = raw.ratings.in_memory().iter();
    rows.map(|r| {
        let user = raw.users.keys[r.user as usize].as_str();
        let item = raw.items.keys[r.item as usize].as_str();
        let time = r.timestamp.div_euclid(1_000_000_000);
        (user, item, raw.rating_levels[usize::from(r.level)], time)
    })
    .collect()
}

/// What was dropped, as (what, count).
fn dropped(raw: &RawTables) -> Vec<(&str, u64)> {
    raw.dropped.iter().map(|d| (d.what.as_str(), d.count)).collect()
}

/// An error's text, which must say all of `words`.
#[track_caller]
fn refused<T>(result: reclora_storage::Result<T>, words: &[&str]) {
    let error = result.map(|_| ()).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}
