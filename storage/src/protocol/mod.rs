//! The data protocol: from ratings to samples in global time order.
//!
//! 1. k-core: users and items with fewer than `k_core` ratings are dropped, repeatedly, until none
//!    is left;
//! 2. sort by (timestamp, user, item), timestamps to the nanosecond, ids compared as numbers where all of
//!    them are;
//! 3. one sample per rating, whose history is every earlier rating of the same user (D-4);
//! 4. samples with fewer than `min_history` earlier ratings are dropped (they stay in histories);
//! 5. split by global time: the first `int(split[0] n)` samples train, the next `int(split[1] n)`
//!    validate, the rest test;
//! 6. vocabularies per field over the k-core, in order of first appearance in the sorted ratings;
//!    one shared table of features with an offset per field, the rating levels last.
//!
//! Users and items are in memory; ratings are passed over, and sorted, within the limit of a
//! [`Spill`]. The result is the same for any limit. Ratings without time ([`RawTables::untimed`]) have
//! an order of their own, see `untimed`, and are arranged in memory.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Result, StorageError};
use crate::raw::{RawColumn, RawEntities, RawTables};
use crate::spill::{Spill, SpillVec};

mod columns;
mod core;
mod shuffle;
mod untimed;

use columns::{Columns, Order};
use core::{Appearances, Core, appearances};

/// When a rating counts as "like".
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LabelRule {
    /// Rating > value.
    Greater(f32),
    /// Rating >= value.
    AtLeast(f32),
}

impl LabelRule {
    /// Whether a rating of this many stars counts as "like".
    pub fn is_like(self, rating: f32) -> bool {
        match self {
            Self::Greater(value) => rating > value,
            Self::AtLeast(value) => rating >= value,
        }
    }
}

/// Settings of the protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtocolConfig {
    /// Keep users and items with at least this many ratings; 0 or 1 keeps all.
    pub k_core: u32,
    /// Drop samples with fewer earlier ratings of the user than this.
    pub min_history: u32,
    /// When a rating counts as "like".
    pub label: LabelRule,
    /// Shares of train, valid and test; they sum to 1.
    pub split: [f64; 3],
}

/// Whose property a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldOwner {
    /// The user's.
    User,
    /// The item's.
    Item,
}

/// A categorical field and its rows in the shared table of features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldInfo {
    /// Name, e.g. `user`, `gender`, `item`, `genre`.
    pub name: String,
    /// Feature id of the field's first value.
    pub offset: u32,
    /// Number of values.
    pub cardinality: u32,
    /// Whose property it is.
    pub owner: FieldOwner,
}

/// Users or items with at least one rating in the k-core, in order of first appearance.
#[derive(Clone, Debug, Default)]
pub struct Entities {
    /// Ids of the raw files.
    pub keys: Vec<String>,
    /// Per field after the id, the value's index in the field's vocabulary, per entity.
    pub fields: Vec<Vec<u32>>,
    /// Text columns for prompts.
    pub texts: Vec<RawColumn>,
}

/// Numbers for people: what was read and what each step left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProtocolCounts {
    /// Ratings read.
    pub raw_ratings: u64,
    /// Users with a rating.
    pub raw_users: u64,
    /// Items with a rating.
    pub raw_items: u64,
    /// Samples whose label is "like".
    pub positive_samples: u64,
}

/// A dataset ready to be written.
#[derive(Debug)]
pub struct Prepared {
    /// Users; the index is the user's value in the user field.
    pub users: Entities,
    /// Items; the index is the item's value in the item field.
    pub items: Entities,
    /// Fields in order: the user's, then the item's.
    pub fields: Vec<FieldInfo>,
    /// The star value of each rating level, ascending.
    pub rating_levels: Vec<f32>,
    /// Whether each level counts as "like".
    pub likes: Vec<bool>,
    /// Where each user's ratings start in the three columns below; one more at the end.
    pub user_offsets: Vec<u64>,
    /// Item of each rating, per user in time order.
    pub item: SpillVec<u32>,
    /// Level of each rating.
    pub rating: SpillVec<u8>,
    /// Time of each rating, seconds since 1970.
    pub timestamp: SpillVec<i64>,
    /// Row of each sample in the three columns above, in global time order.
    pub sample: SpillVec<u32>,
    /// Where valid and test start among the samples.
    pub split: [u64; 2],
    /// Numbers for people.
    pub counts: ProtocolCounts,
}

/// Applies the protocol, in memory.
///
/// # Errors
/// Settings that make no sense, more than 2^32 features, or no sample left: the error counts what
/// each step left and names the setting to lower.
pub fn prepare(raw: &RawTables, config: &ProtocolConfig) -> Result<Prepared> {
    prepare_within(raw, config, &Spill::never())
}

/// [`prepare`], with as many rows in memory as `spill` says.
///
/// # Errors
/// As [`prepare`]; also, a temporary file can't be written.
pub fn prepare_within(raw: &RawTables, config: &ProtocolConfig, spill: &Spill) -> Result<Prepared> {
    check(config)?;
    let likes: Vec<bool> = raw.rating_levels.iter().map(|r| config.label.is_like(*r)).collect();
    let core = Core::new(raw, config.k_core)?;
    let Arranged { users, items, columns } = if raw.untimed {
        untimed::arrange(raw, &core, &likes, config)?
    } else {
        in_time_order(raw, &core, &likes, config, spill)?
    };
    let [raw_users, raw_items] = core.raw;
    let counts = ProtocolCounts {
        raw_ratings: raw.ratings.len() as u64,
        raw_users,
        raw_items,
        positive_samples: columns.positive,
    };
    if columns.sample.is_empty() {
        return Err(no_samples(config, &counts, &columns.user_offsets, items.kept.len()));
    }

    let (user_entities, user_cardinalities) = encode_entities(&raw.users, &users.kept);
    let (item_entities, item_cardinalities) = encode_entities(&raw.items, &items.kept);
    let fields = layout(raw, &user_cardinalities, &item_cardinalities)?;
    Ok(Prepared {
        users: user_entities,
        items: item_entities,
        fields,
        rating_levels: raw.rating_levels.clone(),
        likes,
        user_offsets: columns.user_offsets,
        item: columns.item,
        rating: columns.rating,
        timestamp: columns.timestamp,
        split: split_points(columns.sample.len() as u64, config.split),
        sample: columns.sample,
        counts,
    })
}

fn check(config: &ProtocolConfig) -> Result<()> {
    let bad = |setting, problem: String| Err(StorageError::Protocol { setting, problem });
    let split = config.split;
    if split.iter().any(|s| !(0.0..=1.0).contains(s))
        || (split.iter().sum::<f64>() - 1.0).abs() > 1e-6
    {
        return bad("split", format!("{split:?} are not three shares that sum to 1"));
    }
    let (LabelRule::Greater(value) | LabelRule::AtLeast(value)) = config.label;
    if !value.is_finite() {
        return bad("label", format!("{value} is not a number of stars"));
    }
    Ok(())
}

/// Users and items with their new indices, and the ratings and samples.
struct Arranged {
    users: Appearances,
    items: Appearances,
    columns: Columns,
}

fn in_time_order(
    raw: &RawTables,
    core: &Core,
    likes: &[bool],
    config: &ProtocolConfig,
    spill: &Spill,
) -> Result<Arranged> {
    let (users, items) = appearances(raw, core)?;
    let min_history = config.min_history;
    let order = Order { raw, core, users: &users, items: &items, likes, min_history, spill };
    let columns = order.columns()?;
    Ok(Arranged { users, items, columns })
}

/// Picks and encodes the kept entities; also the number of values per field after the id.
fn encode_entities(raw: &RawEntities, kept: &[u32]) -> (Entities, Vec<u32>) {
    let pick = |values: &[String]| -> Vec<String> {
        kept.iter().map(|i| values.get(*i as usize).cloned().unwrap_or_default()).collect()
    };
    // The id field comes first: each entity is a value of its own.
    let mut cardinalities = vec![kept.len() as u32];
    let mut encode = |column: &RawColumn| -> Vec<u32> {
        let mut vocabulary: HashMap<&str, u32> = HashMap::new();
        let value = |i: &u32| column.values.get(*i as usize).map_or("", String::as_str);
        let indices = kept.iter().map(|i| {
            let next = vocabulary.len() as u32;
            *vocabulary.entry(value(i)).or_insert(next)
        });
        let indices: Vec<u32> = indices.collect();
        cardinalities.push(vocabulary.len() as u32);
        indices
    };
    let fields = raw.fields.iter().map(&mut encode).collect();
    let texts = raw.texts.iter();
    let texts =
        texts.map(|t| RawColumn { name: t.name.clone(), values: pick(&t.values) }).collect();
    (Entities { keys: pick(&raw.keys), fields, texts }, cardinalities)
}

/// The fields in order, each after the one before in the shared table, the rating levels last.
fn layout(raw: &RawTables, users: &[u32], items: &[u32]) -> Result<Vec<FieldInfo>> {
    let mut offset = 0_u32;
    let mut fields = Vec::new();
    let sides = [(FieldOwner::User, &raw.users, users), (FieldOwner::Item, &raw.items, items)];
    for (owner, entities, cardinalities) in sides {
        let fields_of = entities.fields.iter().map(|f| f.name.as_str());
        let names = std::iter::once(entities.name).chain(fields_of);
        for (name, cardinality) in names.zip(cardinalities.iter().copied()) {
            fields.push(FieldInfo { name: name.to_owned(), offset, cardinality, owner });
            offset = offset.checked_add(cardinality).ok_or_else(too_many_features)?;
        }
    }
    offset.checked_add(raw.rating_levels.len() as u32).ok_or_else(too_many_features)?;
    Ok(fields)
}

fn too_many_features() -> StorageError {
    let problem = "more than 2^32 feature values; raise it".to_owned();
    StorageError::Protocol { setting: "k_core", problem }
}

/// Where valid and test start: shares are cut down to whole samples, test takes the rest.
fn split_points(n: u64, split: [f64; 3]) -> [u64; 2] {
    let [train, valid, test] = split;
    let part = |share: f64| (share * n as f64) as u64;
    let train = part(train).min(n);
    // A test share of 0 leaves no stray sample to it.
    let valid = if test == 0.0 { n } else { (train + part(valid)).min(n) };
    [train, valid]
}

/// Says what each step left and which setting dropped the last sample.
fn no_samples(
    config: &ProtocolConfig,
    counts: &ProtocolCounts,
    user_offsets: &[u64],
    core_items: usize,
) -> StorageError {
    let core_ratings = user_offsets.last().copied().unwrap_or_default();
    let lengths = user_offsets.windows(2).filter_map(|w| Some(w.get(1)? - w.first()?));
    StorageError::NoSamples {
        ratings: counts.raw_ratings,
        users: counts.raw_users,
        items: counts.raw_items,
        k_core: config.k_core,
        core_ratings,
        core_users: user_offsets.len() as u64 - 1,
        core_items: core_items as u64,
        min_history: config.min_history,
        longest_history: lengths.max().unwrap_or_default().saturating_sub(1),
        culprit: if core_ratings == 0 { "k_core" } else { "min_history" },
    }
}
