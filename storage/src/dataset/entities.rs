//! Users or items inside the dataset's shard: ids, field values, text.

use crate::error::{Result, StorageError};
use crate::shard::{Handle, Shard};

/// A column of strings: offsets and UTF-8 bytes.
#[derive(Clone, Copy, Debug)]
struct Strings {
    offsets: Handle<u64>,
    bytes: Handle<u8>,
}

impl Strings {
    fn open(shard: &Shard, name: &str, rows: usize) -> Result<Self> {
        let offsets = shard.u64(&format!("{name}.offsets"))?;
        let bytes = shard.u8(&format!("{name}.bytes"))?;
        let bad = |problem: &str| {
            StorageError::corrupt(shard.path(), format!("strings `{name}`: {problem}"))
        };
        check_offsets(offsets, rows, bytes.len()).map_err(bad)?;
        let text = std::str::from_utf8(bytes).map_err(|_| bad("not UTF-8"))?;
        if !offsets.iter().all(|o| text.is_char_boundary(*o as usize)) {
            return Err(bad("an offset inside a character"));
        }
        Ok(Self { offsets: shard.handle(offsets), bytes: shard.handle(bytes) })
    }

    fn get<'a>(&self, shard: &'a Shard, row: u32) -> Option<&'a str> {
        let offsets = shard.get(self.offsets);
        let start = *offsets.get(row as usize)? as usize;
        let end = *offsets.get(row as usize + 1)? as usize;
        std::str::from_utf8(shard.get(self.bytes).get(start..end)?).ok()
    }
}

/// Offsets of `rows` rows must start at 0, never fall, and end at `len`.
pub(super) fn check_offsets(offsets: &[u64], rows: usize, len: usize) -> Result<(), &'static str> {
    if offsets.len().checked_sub(1) != Some(rows) {
        return Err("wrong number of offsets");
    }
    if offsets.first() != Some(&0) || offsets.last() != Some(&(len as u64)) || !offsets.is_sorted()
    {
        return Err("offsets outside the column or not ascending");
    }
    Ok(())
}

/// Users or items of a dataset.
#[derive(Debug)]
pub(super) struct EntityStore {
    keys: Strings,
    /// Indices sorted by key, for look-up.
    by_key: Handle<u32>,
    /// Per field after the id: index in the field's vocabulary.
    fields: Vec<Handle<u32>>,
    texts: Vec<Strings>,
}

impl EntityStore {
    /// Checks the columns under `prefix`: `rows` entities, fields with these cardinalities (the id
    /// field's first), and text columns.
    pub(super) fn open(
        shard: &Shard,
        prefix: &str,
        rows: usize,
        cardinalities: &[u32],
        texts: usize,
    ) -> Result<Self> {
        let bad = |problem: String| StorageError::corrupt(shard.path(), problem);
        let keys = Strings::open(shard, &format!("{prefix}.key"), rows)?;
        let by_key = shard.u32(&format!("{prefix}.by_key"))?;
        let key_at = |i: &u32| keys.get(shard, *i);
        let ascending = by_key.windows(2).all(|pair| match pair {
            [a, b] => key_at(a) < key_at(b),
            _ => true,
        });
        if by_key.len() != rows || !ascending || by_key.iter().any(|i| *i as usize >= rows) {
            return Err(bad(format!("`{prefix}.by_key` is no index of distinct ids")));
        }
        let mut fields = Vec::new();
        for (i, cardinality) in cardinalities.iter().enumerate().skip(1) {
            let name = format!("{prefix}.field{i}");
            let column = shard.u32(&name)?;
            if column.len() != rows || column.iter().any(|v| v >= cardinality) {
                return Err(bad(format!("`{name}` has values outside its vocabulary")));
            }
            fields.push(shard.handle(column));
        }
        let texts = (0..texts).map(|i| Strings::open(shard, &format!("{prefix}.text{i}"), rows));
        let texts = texts.collect::<Result<_>>()?;
        Ok(Self { keys, by_key: shard.handle(by_key), fields, texts })
    }

    /// The entity's value in each field, the id field first.
    pub(super) fn indices<'a>(
        &'a self,
        shard: &'a Shard,
        entity: u32,
    ) -> impl Iterator<Item = u32> + 'a {
        let value = move |field: &Handle<u32>| shard.get(*field).get(entity as usize).copied();
        std::iter::once(entity).chain(self.fields.iter().map(move |f| value(f).unwrap_or_default()))
    }

    pub(super) fn key<'a>(&self, shard: &'a Shard, entity: u32) -> &'a str {
        self.keys.get(shard, entity).unwrap_or_default()
    }

    pub(super) fn find(&self, shard: &Shard, key: &str) -> Option<u32> {
        let by_key = shard.get(self.by_key);
        let place = by_key.binary_search_by(|i| self.key(shard, *i).cmp(key)).ok()?;
        by_key.get(place).copied()
    }

    pub(super) fn text<'a>(&self, shard: &'a Shard, entity: u32, column: usize) -> Option<&'a str> {
        self.texts.get(column)?.get(shard, entity)
    }
}
