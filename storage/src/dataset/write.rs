//! Writing a prepared dataset.

use std::collections::BTreeMap;
use std::path::Path;

use super::{FILE, KIND, SCHEMA_VERSION, Schema};
use crate::atomic::create_dir_all;
use crate::error::{Result, StorageError};
use crate::protocol::{Entities, Prepared};
use crate::shard::{Column, write_shard};

/// Writes a dataset into directory `dir` (made if need be). Returns counts for the manifest: raw
/// ratings, users, items, interactions, features, samples, positive samples, train, valid, test.
///
/// # Errors
/// The file cannot be written.
pub fn write(prepared: &Prepared, name: &str, dir: &Path) -> Result<BTreeMap<String, u64>> {
    create_dir_all(dir)?;
    let path = dir.join(FILE);
    let samples = prepared.sample_user.len() as u64;
    let schema = Schema {
        version: SCHEMA_VERSION,
        name: name.to_owned(),
        users: prepared.users.keys.len() as u32,
        items: prepared.items.keys.len() as u32,
        interactions: prepared.item.len() as u64,
        samples,
        split: prepared.split,
        rating_levels: prepared.rating_levels.clone(),
        likes: prepared.likes.clone(),
        fields: prepared.fields.clone(),
        user_texts: prepared.users.texts.iter().map(|t| t.name.clone()).collect(),
        item_texts: prepared.items.texts.iter().map(|t| t.name.clone()).collect(),
    };
    let json = serde_json::to_vec(&schema)
        .map_err(|e| StorageError::BadInput { path: path.clone(), problem: e.to_string() })?;

    let mut owned = Vec::new();
    pack(&mut owned, "user", &prepared.users);
    pack(&mut owned, "item", &prepared.items);
    let mut columns = vec![
        ("schema", Column::U8(&json)),
        ("user_offsets", Column::U64(&prepared.user_offsets)),
        ("item", Column::U32(&prepared.item)),
        ("rating", Column::U8(&prepared.rating)),
        ("timestamp", Column::I64(&prepared.timestamp)),
        ("sample_user", Column::U32(&prepared.sample_user)),
        ("sample_position", Column::U32(&prepared.sample_position)),
    ];
    columns.extend(owned.iter().map(|(name, column)| (name.as_str(), column.borrow())));
    write_shard(&path, KIND, &columns)?;
    Ok(counts(prepared, samples))
}

enum Owned<'a> {
    Bytes(Vec<u8>),
    Offsets(Vec<u64>),
    Indices(Vec<u32>),
    Borrowed(&'a [u32]),
}

impl Owned<'_> {
    fn borrow(&self) -> Column<'_> {
        match self {
            Self::Bytes(v) => Column::U8(v),
            Self::Offsets(v) => Column::U64(v),
            Self::Indices(v) => Column::U32(v),
            Self::Borrowed(v) => Column::U32(v),
        }
    }
}

fn pack<'a>(columns: &mut Vec<(String, Owned<'a>)>, prefix: &str, entities: &'a Entities) {
    pack_strings(columns, &format!("{prefix}.key"), &entities.keys);
    let mut by_key: Vec<u32> = (0..entities.keys.len() as u32).collect();
    by_key.sort_by_key(|i| entities.keys.get(*i as usize));
    columns.push((format!("{prefix}.by_key"), Owned::Indices(by_key)));
    for (i, field) in entities.fields.iter().enumerate() {
        // Field 0 is the id, whose values are the entities themselves.
        columns.push((format!("{prefix}.field{}", i + 1), Owned::Borrowed(field)));
    }
    for (i, text) in entities.texts.iter().enumerate() {
        pack_strings(columns, &format!("{prefix}.text{i}"), &text.values);
    }
}

fn pack_strings(columns: &mut Vec<(String, Owned<'_>)>, name: &str, values: &[String]) {
    let mut bytes = Vec::new();
    let mut offsets = vec![0];
    for value in values {
        bytes.extend_from_slice(value.as_bytes());
        offsets.push(bytes.len() as u64);
    }
    columns.push((format!("{name}.offsets"), Owned::Offsets(offsets)));
    columns.push((format!("{name}.bytes"), Owned::Bytes(bytes)));
}

fn counts(prepared: &Prepared, samples: u64) -> BTreeMap<String, u64> {
    let [valid, test] = prepared.split;
    let features = prepared.fields.iter().map(|f| u64::from(f.cardinality)).sum::<u64>()
        + prepared.rating_levels.len() as u64;
    [
        ("raw_ratings", prepared.counts.raw_ratings),
        ("raw_users", prepared.counts.raw_users),
        ("raw_items", prepared.counts.raw_items),
        ("users", prepared.users.keys.len() as u64),
        ("items", prepared.items.keys.len() as u64),
        ("interactions", prepared.item.len() as u64),
        ("features", features),
        ("samples", samples),
        ("positive_samples", prepared.counts.positive_samples),
        ("train", valid),
        ("valid", test.saturating_sub(valid)),
        ("test", samples.saturating_sub(test)),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), count))
    .collect()
}
