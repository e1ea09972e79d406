//! What one wants to know of ratings before a run: what is in them, and what the protocol would leave.
//!
//! The protocol itself is applied, in memory, so that the numbers are those a run would have.

use std::collections::HashSet;

use serde::Serialize;

use crate::error::{Result, StorageError};
use crate::protocol::{FieldOwner, Prepared, ProtocolConfig, prepare};
use crate::raw::{Dropped, RawEntities, RawTables, time};

/// Values shown of each column.
const EXAMPLES: usize = 3;

/// Ratings and what the protocol makes of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Ratings, and users and items that have one.
    pub read: Counts,
    /// Users in the tables, rated or not.
    pub users: u64,
    /// Items in the tables, rated or not.
    pub items: u64,
    /// Rows that could not be used.
    pub dropped: Vec<Dropped>,
    /// First and last time; none where ratings have no time.
    pub time: Option<[String; 2]>,
    /// The columns: ids, fields and texts of users, then of items.
    pub columns: Vec<ColumnSummary>,
    /// The rating levels, ascending.
    pub levels: Vec<LevelCount>,
    /// How many ratings users have.
    pub activity: Activity,
    /// What the protocol leaves.
    pub protocol: ProtocolSummary,
}

/// Numbers of ratings, users and items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Ratings.
    pub ratings: u64,
    /// Users with a rating.
    pub users: u64,
    /// Items with a rating.
    pub items: u64,
}

/// What a column is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The id, which is a category as well.
    Id,
    /// A category for the CRM.
    Field,
    /// Words for prompts.
    Text,
}

/// A column with some of its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnSummary {
    /// Whose it is.
    pub owner: FieldOwner,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Distinct values.
    pub values: u64,
    /// Rows where it is empty.
    pub empty: u64,
    /// The first distinct values.
    pub examples: Vec<String>,
}

/// A rating level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LevelCount {
    /// Its stars.
    pub stars: f32,
    /// Ratings of this level.
    pub ratings: u64,
    /// Whether it counts as "like".
    pub like: bool,
}

/// How many ratings users have.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Activity {
    /// Half of the users have at most this many.
    pub median: u64,
    /// Ratings per user.
    pub mean: f64,
    /// The most that a user has.
    pub most: u64,
    /// Users by their number of ratings, in bins that grow.
    pub histogram: Vec<Bin>,
}

/// Users whose number of ratings is in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// Fewest ratings.
    pub from: u64,
    /// Most ratings.
    pub to: u64,
    /// Users.
    pub users: u64,
}

/// What each step of the protocol leaves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProtocolSummary {
    /// What the k-core leaves.
    pub core: Counts,
    /// Samples among those ratings.
    pub samples: u64,
    /// Train, valid and test; empty where no sample is left.
    pub splits: Vec<SplitSummary>,
    /// Rows of the CRM's table of features.
    pub features: u64,
    /// Why a run with these settings would fail.
    pub problem: Option<String>,
}

/// A part of the samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitSummary {
    /// `train`, `valid` or `test`.
    pub name: &'static str,
    /// Samples.
    pub samples: u64,
    /// Those that count as "like".
    pub likes: u64,
    /// Those whose item is in no sample of train and in no history of one.
    pub new_items: u64,
    /// First and last time; none where it is empty or ratings have no time.
    pub time: Option<[String; 2]>,
}

/// Looks at ratings, and at what the protocol with these settings would leave.
///
/// # Errors
/// Settings that make no sense. That no sample is left is no error, but said in the result.
pub fn inspect(raw: &RawTables, config: &ProtocolConfig) -> Result<Inspection> {
    let ratings = raw.ratings.in_memory();
    let per_user = degrees(raw.users.keys.len(), ratings.iter().map(|r| r.user));
    let per_item = degrees(raw.items.keys.len(), ratings.iter().map(|r| r.item));
    let per_level = degrees(raw.rating_levels.len(), ratings.iter().map(|r| r.level.into()));
    let rated = |degrees: &[u64]| degrees.iter().filter(|d| **d > 0).count() as u64;
    let read =
        Counts { ratings: ratings.len() as u64, users: rated(&per_user), items: rated(&per_item) };
    let levels = raw.rating_levels.iter().zip(per_level).map(|(stars, ratings)| LevelCount {
        stars: *stars,
        ratings,
        like: config.label.is_like(*stars),
    });
    let times = ratings.iter().map(|r| r.timestamp.div_euclid(time::NANOS));
    let times = times.filter(|_| !raw.untimed);
    let mut columns = summaries(FieldOwner::User, &raw.users);
    columns.extend(summaries(FieldOwner::Item, &raw.items));
    Ok(Inspection {
        read,
        users: raw.users.keys.len() as u64,
        items: raw.items.keys.len() as u64,
        dropped: raw.dropped.clone(),
        time: range(times),
        columns,
        levels: levels.collect(),
        activity: activity(per_user),
        protocol: protocol(raw, config)?,
    })
}

/// How often each index occurs.
fn degrees(len: usize, values: impl Iterator<Item = u32>) -> Vec<u64> {
    let mut degrees = vec![0; len];
    for value in values {
        if let Some(degree) = degrees.get_mut(value as usize) {
            *degree += 1;
        }
    }
    degrees
}

fn range(times: impl Iterator<Item = i64>) -> Option<[String; 2]> {
    let ends = times.fold(None, |ends: Option<(i64, i64)>, t| {
        Some(ends.map_or((t, t), |(first, last)| (first.min(t), last.max(t))))
    });
    ends.map(|(first, last)| [time::utc(first), time::utc(last)])
}

fn summaries(owner: FieldOwner, entities: &RawEntities) -> Vec<ColumnSummary> {
    let summary = |name: &str, role, values: &[String]| {
        let mut seen = HashSet::new();
        let mut examples = Vec::new();
        for value in values {
            if seen.insert(value.as_str()) && examples.len() < EXAMPLES && !value.is_empty() {
                examples.push(value.clone());
            }
        }
        let empty = values.iter().filter(|v| v.is_empty()).count() as u64;
        ColumnSummary { owner, name: name.into(), role, values: seen.len() as u64, empty, examples }
    };
    let mut all = vec![summary(entities.name, Role::Id, &entities.keys)];
    all.extend(entities.fields.iter().map(|c| summary(&c.name, Role::Field, &c.values)));
    all.extend(entities.texts.iter().map(|c| summary(&c.name, Role::Text, &c.values)));
    all
}

fn activity(per_user: Vec<u64>) -> Activity {
    let mut counts: Vec<u64> = per_user.into_iter().filter(|count| *count > 0).collect();
    counts.sort_unstable();
    let most = counts.last().copied().unwrap_or_default();
    let mut histogram = Vec::new();
    // 1, 2, 3-5, 6-10, 11-20, 21-50, 51-100, ...
    let mut from = 1;
    let steps = (0..).flat_map(|power| {
        [1, 2, 5].map(|step: u64| step.saturating_mul(10_u64.saturating_pow(power)))
    });
    for to in steps {
        if from > most {
            break;
        }
        let below = |limit: u64| counts.partition_point(|count| *count < limit);
        let users = (below(to.saturating_add(1)) - below(from)) as u64;
        histogram.push(Bin { from, to, users });
        from = to.saturating_add(1);
    }
    Activity {
        median: counts.get(counts.len().saturating_sub(1) / 2).copied().unwrap_or_default(),
        mean: counts.iter().sum::<u64>() as f64 / counts.len().max(1) as f64,
        most,
        histogram,
    }
}

fn protocol(raw: &RawTables, config: &ProtocolConfig) -> Result<ProtocolSummary> {
    let error = match prepare(raw, config) {
        Ok(prepared) => return Ok(summary(&prepared, raw.untimed)),
        Err(error) => error,
    };
    let StorageError::NoSamples { core_ratings, core_users, core_items, .. } = error else {
        return Err(error);
    };
    let core = Counts { ratings: core_ratings, users: core_users, items: core_items };
    Ok(ProtocolSummary { core, problem: Some(error.to_string()), ..ProtocolSummary::default() })
}

fn summary(prepared: &Prepared, untimed: bool) -> ProtocolSummary {
    let items = prepared.item.in_memory();
    let rated: HashSet<u32> = items.iter().copied().collect();
    let users = prepared.user_offsets.windows(2).filter(|w| w.first() != w.last()).count();
    let samples = prepared.sample.len();
    let [valid, test] = prepared.split.map(|at| at as usize);
    let mut known = HashSet::new();
    for row in prepared.sample.in_memory().iter().take(valid) {
        // From the first rating of the sample's user on.
        let user = prepared.user_offsets.partition_point(|start| *start <= u64::from(*row));
        let start = user.checked_sub(1).and_then(|user| prepared.user_offsets.get(user));
        let rows = items.get(start.copied().unwrap_or_default() as usize..=*row as usize);
        known.extend(rows.unwrap_or_default());
    }
    let parts = [("train", 0..valid), ("valid", valid..test), ("test", test..samples)];
    let splits =
        parts.into_iter().map(|(name, range)| split(prepared, untimed, name, range, &known));
    let levels = prepared.rating_levels.len() as u64;
    ProtocolSummary {
        core: Counts {
            ratings: prepared.item.len() as u64,
            users: users as u64,
            items: rated.len() as u64,
        },
        samples: samples as u64,
        splits: splits.collect(),
        features: prepared.fields.iter().map(|f| u64::from(f.cardinality)).sum::<u64>() + levels,
        problem: None,
    }
}

fn split(
    prepared: &Prepared,
    untimed: bool,
    name: &'static str,
    samples: std::ops::Range<usize>,
    known: &HashSet<u32>,
) -> SplitSummary {
    let rows = prepared.sample.in_memory().get(samples.clone()).unwrap_or_default();
    let (items, times) = (prepared.item.in_memory(), prepared.timestamp.in_memory());
    let like = |row: &&u32| {
        let level = prepared.rating.in_memory().get(**row as usize).copied().unwrap_or_default();
        prepared.likes.get(usize::from(level)) == Some(&true)
    };
    let is_new = |row: &&u32| items.get(**row as usize).is_some_and(|item| !known.contains(item));
    let times = rows.iter().filter_map(|row| times.get(*row as usize).copied());
    SplitSummary {
        name,
        samples: samples.len() as u64,
        likes: rows.iter().filter(like).count() as u64,
        new_items: rows.iter().filter(is_new).count() as u64,
        time: range(times.filter(|_| !untimed)),
    }
}
