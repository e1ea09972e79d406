//! Writing a prepared dataset: column by column, each piece by piece.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::{FILE, KIND, SCHEMA_VERSION, Schema};
use crate::atomic::create_dir_all;
use crate::error::{Result, StorageError};
use crate::protocol::{Entities, Prepared};
use crate::shard::{Column, Pieces, write_shard};
use crate::spill::SpillVec;

/// Writes a dataset into directory `dir` (made if need be). Returns counts for the manifest: raw
/// ratings, users, items, interactions, features, samples, positive samples, train, valid, test.
///
/// # Errors
/// The file cannot be written.
pub fn write(prepared: &Prepared, name: &str, dir: &Path) -> Result<BTreeMap<String, u64>> {
    create_dir_all(dir)?;
    let path = dir.join(FILE);
    let samples = prepared.sample.len() as u64;
    let times = Times::new(&prepared.timestamp)?;
    let schema = Schema {
        version: SCHEMA_VERSION,
        name: name.to_owned(),
        users: prepared.users.keys.len() as u32,
        items: prepared.items.keys.len() as u32,
        interactions: prepared.item.len() as u64,
        samples,
        split: prepared.split,
        first_time: times.first,
        rating_levels: prepared.rating_levels.clone(),
        likes: prepared.likes.clone(),
        fields: prepared.fields.clone(),
        user_texts: prepared.users.texts.iter().map(|t| t.name.clone()).collect(),
        item_texts: prepared.items.texts.iter().map(|t| t.name.clone()).collect(),
    };
    let json = serde_json::to_vec(&schema).map_err(|e| StorageError::bad_input(&path, e))?;

    let mut owned = Vec::new();
    pack(&mut owned, "user", &prepared.users);
    pack(&mut owned, "item", &prepared.items);
    let mut columns = vec![
        ("schema", Column::U8(&json)),
        ("user_offsets", Column::U64(&prepared.user_offsets)),
        ("item", Column::Pieces(&prepared.item)),
        ("rating", Column::Pieces(&prepared.rating)),
        ("timestamp", Column::Pieces(&times)),
        ("sample", Column::Pieces(&prepared.sample)),
    ];
    columns.extend(owned.iter().map(|(name, column)| (name.as_str(), column.borrow())));
    write_shard(&path, KIND, &columns)?;
    Ok(counts(prepared, samples))
}

/// Numbers that a column may hold.
trait Element: bytemuck::Pod + std::fmt::Debug + 'static {
    fn column(rows: &[Self]) -> Column<'_>;
}

impl Element for u8 {
    fn column(rows: &[Self]) -> Column<'_> {
        Column::U8(rows)
    }
}

impl Element for u32 {
    fn column(rows: &[Self]) -> Column<'_> {
        Column::U32(rows)
    }
}

impl<T: Element> Pieces for SpillVec<T> {
    fn dtype(&self) -> Column<'static> {
        T::column(&[])
    }

    fn rows(&self) -> usize {
        self.len()
    }

    fn write(&self, write: &mut dyn FnMut(Column<'_>) -> io::Result<()>) -> io::Result<()> {
        self.visit(|piece| write(T::column(piece)))
    }
}

/// Seconds since 1970, in 32 bits since the first one where they fit.
#[derive(Debug)]
struct Times<'a> {
    times: &'a SpillVec<i64>,
    /// The first one, where they fit.
    first: Option<i64>,
}

impl<'a> Times<'a> {
    fn new(times: &'a SpillVec<i64>) -> Result<Self> {
        let (mut first, mut last) = (i64::MAX, i64::MIN);
        times.for_each_piece(|piece| {
            first = piece.iter().fold(first, |a, b| a.min(*b));
            last = piece.iter().fold(last, |a, b| a.max(*b));
            Ok(())
        })?;
        let fits = u32::try_from(last.abs_diff(first)).is_ok();
        Ok(Self { times, first: fits.then_some(first) })
    }
}

impl Pieces for Times<'_> {
    fn dtype(&self) -> Column<'static> {
        self.first.map_or(Column::I64(&[]), |_| Column::U32(&[]))
    }

    fn rows(&self) -> usize {
        self.times.len()
    }

    fn write(&self, write: &mut dyn FnMut(Column<'_>) -> io::Result<()>) -> io::Result<()> {
        let Some(first) = self.first else {
            return self.times.visit(|piece| write(Column::I64(piece)));
        };
        let mut offsets = Vec::new();
        self.times.visit(|piece| {
            offsets.clear();
            offsets.extend(piece.iter().map(|time| time.abs_diff(first) as u32));
            write(Column::U32(&offsets))
        })
    }
}

enum Owned<'a> {
    Bytes(Vec<u8>),
    Offsets(Vec<u64>),
    Indices(Cow<'a, [u32]>),
}

impl Owned<'_> {
    fn borrow(&self) -> Column<'_> {
        match self {
            Self::Bytes(v) => Column::U8(v),
            Self::Offsets(v) => Column::U64(v),
            Self::Indices(v) => Column::U32(v),
        }
    }
}

fn pack<'a>(columns: &mut Vec<(String, Owned<'a>)>, prefix: &str, entities: &'a Entities) {
    pack_strings(columns, &format!("{prefix}.key"), &entities.keys);
    let mut by_key: Vec<u32> = (0..entities.keys.len() as u32).collect();
    by_key.sort_by_key(|i| entities.keys.get(*i as usize));
    columns.push((format!("{prefix}.by_key"), Owned::Indices(by_key.into())));
    for (i, field) in entities.fields.iter().enumerate() {
        // Field 0 is the id, whose values are the entities themselves.
        columns.push((format!("{prefix}.field{}", i + 1), Owned::Indices(field.into())));
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
