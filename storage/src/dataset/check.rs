//! Validation of an opened dataset: every index is checked once, so that accesses need no check.

use super::entities::{EntityStore, check_offsets};
use super::times::{TimeColumn, Timestamps};
use super::{Dataset, FieldInfo, FieldOwner, SCHEMA_VERSION, Schema};
use crate::error::{Result, StorageError};
use crate::shard::Shard;

/// Builds the dataset over a shard whose hashes have been verified.
pub(super) fn build(shard: Shard) -> Result<Dataset> {
    let schema = read_schema(&shard)?;
    let bad = |problem: &str| StorageError::corrupt(shard.path(), problem);
    let num_features = check_fields(&schema).map_err(bad)?;
    let cardinalities = |owner| -> Vec<u32> {
        schema.fields.iter().filter(|f| f.owner == owner).map(|f| f.cardinality).collect()
    };
    let users = EntityStore::open(
        &shard,
        "user",
        schema.users as usize,
        &cardinalities(FieldOwner::User),
        schema.user_texts.len(),
    )?;
    let items = EntityStore::open(
        &shard,
        "item",
        schema.items as usize,
        &cardinalities(FieldOwner::Item),
        schema.item_texts.len(),
    )?;
    let timestamp = TimeColumn::open(&shard, schema.first_time)?;
    check_interactions(&shard, &schema, timestamp.all(&shard))?;
    check_samples(&shard, &schema, timestamp.all(&shard))?;
    let dataset = Dataset {
        user_field: 0,
        item_field: schema.fields.iter().take_while(|f| f.owner == FieldOwner::User).count(),
        num_features,
        users,
        items,
        user_offsets: shard.handle(shard.u64("user_offsets")?),
        item: shard.handle(shard.u32("item")?),
        rating: shard.handle(shard.u8("rating")?),
        timestamp,
        sample: shard.handle(shard.u32("sample")?),
        schema,
        shard,
    };
    Ok(dataset)
}

fn read_schema(shard: &Shard) -> Result<Schema> {
    let json = shard.u8("schema")?;
    let bad = |problem: String| StorageError::corrupt(shard.path(), problem);
    let version = serde_json::from_slice::<serde_json::Value>(json)
        .ok()
        .and_then(|v| v.get("version").and_then(serde_json::Value::as_u64));
    if version != Some(u64::from(SCHEMA_VERSION)) {
        return Err(bad(format!(
            "dataset schema version {version:?}; this build reads {SCHEMA_VERSION}"
        )));
    }
    serde_json::from_slice(json).map_err(|e| bad(format!("unreadable schema: {e}")))
}

/// Fields lie one after another, the user's first, with the ids at the head of each side. Returns
/// the number of features.
fn check_fields(schema: &Schema) -> Result<usize, &'static str> {
    let mut offset = 0_u32;
    for field in &schema.fields {
        if field.offset != offset {
            return Err("the fields overlap or leave a gap");
        }
        offset = offset.checked_add(field.cardinality).ok_or("too many features")?;
    }
    let levels = schema.rating_levels.len();
    if levels == 0 || levels > 256 || schema.likes.len() != levels {
        return Err("the rating levels are none, or too many");
    }
    let total = offset.checked_add(levels as u32).ok_or("too many features")?;
    let is_user = |f: &FieldInfo| f.owner == FieldOwner::User;
    let first_item = schema.fields.iter().find(|f| !is_user(f));
    if !schema.fields.is_sorted_by_key(|f| !is_user(f))
        || schema.fields.first().filter(|f| is_user(f)).map(|f| f.cardinality) != Some(schema.users)
        || first_item.map(|f| f.cardinality) != Some(schema.items)
    {
        return Err("the fields are not the user's, then the item's, ids first");
    }
    let [valid, test] = schema.split;
    if valid > test || test > schema.samples {
        return Err("the splits are not ranges of the samples");
    }
    Ok(total as usize)
}

fn check_interactions(shard: &Shard, schema: &Schema, timestamp: Timestamps<'_>) -> Result<()> {
    let bad = |problem| Err(StorageError::corrupt(shard.path(), problem));
    let (item, rating) = (shard.u32("item")?, shard.u8("rating")?);
    let offsets = shard.u64("user_offsets")?;
    let n = item.len();
    if n as u64 != schema.interactions || rating.len() != n || timestamp.len() != n {
        return bad("the columns of the ratings differ in length");
    }
    check_offsets(offsets, schema.users as usize, n).or_else(bad)?;
    if item.iter().any(|i| *i >= schema.items) {
        return bad("a rating of an item that does not exist");
    }
    if rating.iter().any(|r| usize::from(*r) >= schema.rating_levels.len()) {
        return bad("a rating level that does not exist");
    }
    let in_order = offsets.windows(2).all(|pair| match pair {
        [a, b] => timestamp.range(*a as usize..*b as usize).is_sorted(),
        _ => true,
    });
    if in_order { Ok(()) } else { bad("a user's ratings are not in time order") }
}

fn check_samples(shard: &Shard, schema: &Schema, timestamp: Timestamps<'_>) -> Result<()> {
    let bad = |problem| Err(StorageError::corrupt(shard.path(), problem));
    let samples = shard.u32("sample")?;
    if samples.len() as u64 != schema.samples {
        return bad("the column of the samples has another length");
    }
    let mut last = i64::MIN;
    for row in samples {
        let Some(time) = timestamp.get(*row as usize) else {
            return bad("a sample of a rating that does not exist");
        };
        if time < last {
            return bad("the samples are not in time order");
        }
        last = time;
    }
    Ok(())
}
