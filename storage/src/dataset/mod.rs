//! A prepared dataset on disk, read through a memory map.
//!
//! Each interaction is stored once, user by user in time order, in 9 bytes (13 where the times span
//! more than 136 years). A sample is the row of its interaction, in 4 bytes, and its history the
//! slice of the user's columns before it (D-4). Opening verifies the
//! file's hashes and the bounds of every index in it, so that no later access can fail (S-1).

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Result, StorageError};
use crate::mmap::Pattern;
pub use crate::protocol::{FieldInfo, FieldOwner};
use crate::shard::{Handle, Shard};

mod check;
mod entities;
mod times;
mod write;

use entities::EntityStore;
use times::TimeColumn;
pub use times::Timestamps;
pub use write::write;

/// Name of the dataset's file in its directory.
pub const FILE: &str = "dataset.shard";
/// Kind of the dataset's shard.
pub const KIND: &str = "dataset";
/// Version of the schema inside the shard.
const SCHEMA_VERSION: u32 = 2;

/// What a part of the samples is for. They follow each other in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Training.
    Train,
    /// Selection between models.
    Valid,
    /// The final measure.
    Test,
}

/// One rating to be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Place in global time order: the key of the sample everywhere.
    pub index: u64,
    /// The user.
    pub user: u32,
    /// Position in the user's ratings: how many come before.
    pub position: u32,
    /// The item.
    pub item: u32,
    /// Level of the rating.
    pub rating: u8,
    /// Whether the rating counts as "like".
    pub label: bool,
    /// Seconds since 1970.
    pub timestamp: i64,
}

/// A user's ratings before a position, in time order; three slices of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History<'a> {
    /// Items.
    pub items: &'a [u32],
    /// Levels of the ratings.
    pub ratings: &'a [u8],
    /// Seconds since 1970.
    pub timestamps: Timestamps<'a>,
}

/// What the shard's columns are, kept in it as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Schema {
    version: u32,
    name: String,
    users: u32,
    items: u32,
    interactions: u64,
    samples: u64,
    split: [u64; 2],
    /// What the times count from; `None` where they are whole.
    first_time: Option<i64>,
    rating_levels: Vec<f32>,
    likes: Vec<bool>,
    fields: Vec<FieldInfo>,
    user_texts: Vec<String>,
    item_texts: Vec<String>,
}

/// A prepared dataset. Shared freely between threads.
#[derive(Debug)]
pub struct Dataset {
    shard: Shard,
    schema: Schema,
    user_field: usize,
    item_field: usize,
    num_features: usize,
    users: EntityStore,
    items: EntityStore,
    user_offsets: Handle<u64>,
    item: Handle<u32>,
    rating: Handle<u8>,
    timestamp: TimeColumn,
    sample: Handle<u32>,
}

impl Dataset {
    /// Opens the dataset in directory `dir`, verifying its hashes and every index in it.
    ///
    /// # Errors
    /// The file is missing, incomplete, damaged, or of another version.
    pub fn open(dir: &Path) -> Result<Self> {
        let shard = Shard::open(&dir.join(FILE), KIND)?;
        shard.verify()?;
        let dataset = check::build(shard)?;
        // From here on users come in no order: what lies around a history is of no use.
        dataset.shard.advise(Pattern::Random);
        Ok(dataset)
    }

    /// The dataset's name.
    pub fn name(&self) -> &str {
        &self.schema.name
    }

    /// Number of users.
    pub fn num_users(&self) -> usize {
        self.schema.users as usize
    }

    /// Number of items.
    pub fn num_items(&self) -> usize {
        self.schema.items as usize
    }

    /// Number of ratings, of which the samples are a part.
    pub fn num_interactions(&self) -> u64 {
        self.schema.interactions
    }

    /// The categorical fields, in the order of [`Dataset::feature_ids`].
    pub fn fields(&self) -> &[FieldInfo] {
        &self.schema.fields
    }

    /// Index of the item-id field in [`Dataset::fields`].
    pub fn item_field(&self) -> usize {
        self.item_field
    }

    /// Index of the user-id field in [`Dataset::fields`].
    pub fn user_field(&self) -> usize {
        self.user_field
    }

    /// Rows of the shared table of features, the rating levels included.
    pub fn num_features(&self) -> usize {
        self.num_features
    }

    /// Feature id of rating level 0.
    pub fn rating_offset(&self) -> u32 {
        (self.num_features - self.schema.rating_levels.len()) as u32
    }

    /// The star value of each rating level, ascending.
    pub fn rating_levels(&self) -> &[f32] {
        &self.schema.rating_levels
    }

    /// Whether a rating level counts as "like"; false for a level that does not exist.
    pub fn is_like(&self, level: u8) -> bool {
        self.schema.likes.get(usize::from(level)) == Some(&true)
    }

    /// Number of samples.
    pub fn num_samples(&self) -> u64 {
        self.schema.samples
    }

    /// The samples of a split, as indices for [`Dataset::sample`].
    pub fn split(&self, split: Split) -> Range<u64> {
        let [valid, test] = self.schema.split;
        match split {
            Split::Train => 0..valid,
            Split::Valid => valid..test,
            Split::Test => test..self.schema.samples,
        }
    }

    /// The sample at `index` in global time order.
    ///
    /// # Errors
    /// There is no such sample.
    pub fn sample(&self, index: u64) -> Result<Sample> {
        self.find_sample(index).ok_or_else(|| StorageError::OutOfRange {
            path: self.shard.path().to_path_buf(),
            index,
            len: self.schema.samples,
        })
    }

    fn find_sample(&self, index: u64) -> Option<Sample> {
        let row = *self.shard.get(self.sample).get(usize::try_from(index).ok()?)?;
        let at = row as usize;
        // The last user whose ratings start at the row or before it.
        let offsets = self.shard.get(self.user_offsets);
        let user = offsets.partition_point(|start| *start <= u64::from(row)).checked_sub(1)?;
        let start = *offsets.get(user)?;
        let rating = *self.shard.get(self.rating).get(at)?;
        Some(Sample {
            index,
            user: user as u32,
            position: (u64::from(row) - start) as u32,
            item: *self.shard.get(self.item).get(at)?,
            rating,
            label: self.is_like(rating),
            timestamp: self.timestamp.all(&self.shard).get(at)?,
        })
    }

    /// Everything the user rated before position `position`, in time order. A position past the
    /// user's last rating gives all of them; an unknown user has none.
    pub fn history(&self, user: u32, position: u32) -> History<'_> {
        let mut rows = self.rows(user);
        rows.end = rows.end.min(rows.start.saturating_add(position as usize));
        History {
            items: self.shard.get(self.item).get(rows.clone()).unwrap_or_default(),
            ratings: self.shard.get(self.rating).get(rows.clone()).unwrap_or_default(),
            timestamps: self.timestamp.all(&self.shard).range(rows),
        }
    }

    /// Number of ratings of the user; 0 for an unknown one.
    pub fn user_len(&self, user: u32) -> u32 {
        self.rows(user).len() as u32
    }

    fn rows(&self, user: u32) -> Range<usize> {
        let offsets = self.shard.get(self.user_offsets);
        match (offsets.get(user as usize), offsets.get(user as usize + 1)) {
            (Some(start), Some(end)) => *start as usize..*end as usize,
            _ => 0..0,
        }
    }

    /// Appends the feature ids of a user and an item to `out`, one per field, in the order of
    /// [`Dataset::fields`].
    ///
    /// # Panics
    /// `user` or `item` is not one of this dataset (those of its samples and histories are).
    pub fn feature_ids(&self, user: u32, item: u32, out: &mut Vec<u32>) {
        assert!((user as usize) < self.num_users(), "user {user} of {}", self.num_users());
        assert!((item as usize) < self.num_items(), "item {item} of {}", self.num_items());
        let indices =
            self.users.indices(&self.shard, user).chain(self.items.indices(&self.shard, item));
        out.extend(
            self.schema.fields.iter().zip(indices).map(|(field, index)| field.offset + index),
        );
    }

    /// Feature id of an item in the item-id field.
    pub fn item_feature(&self, item: u32) -> u32 {
        self.schema.fields.get(self.item_field).map_or(0, |f| f.offset).saturating_add(item)
    }

    /// Feature id of a rating level.
    pub fn rating_feature(&self, level: u8) -> u32 {
        self.rating_offset().saturating_add(u32::from(level))
    }

    /// An item's text in a column; `None` where item or column do not exist.
    pub fn item_text(&self, item: u32, column: &str) -> Option<&str> {
        let column = self.schema.item_texts.iter().position(|c| c == column)?;
        self.items.text(&self.shard, item, column)
    }

    /// Names of the items' text columns, e.g. `title`, `genres`, `year`.
    pub fn item_text_columns(&self) -> &[String] {
        &self.schema.item_texts
    }

    /// A user's text in a column; `None` where user or column do not exist.
    pub fn user_text(&self, user: u32, column: &str) -> Option<&str> {
        let column = self.schema.user_texts.iter().position(|c| c == column)?;
        self.users.text(&self.shard, user, column)
    }

    /// Names of the users' text columns, e.g. `gender`, `age`, `occupation`; empty where the format
    /// says nothing of its users.
    pub fn user_text_columns(&self) -> &[String] {
        &self.schema.user_texts
    }

    /// A user's id in the raw files; empty for an unknown index.
    pub fn user_key(&self, user: u32) -> &str {
        self.users.key(&self.shard, user)
    }

    /// The user with this id in the raw files.
    pub fn user_index(&self, key: &str) -> Option<u32> {
        self.users.find(&self.shard, key)
    }

    /// An item's id in the raw files; empty for an unknown index.
    pub fn item_key(&self, item: u32) -> &str {
        self.items.key(&self.shard, item)
    }

    /// The item with this id in the raw files.
    pub fn item_index(&self, key: &str) -> Option<u32> {
        self.items.find(&self.shard, key)
    }
}
