//! `count`: of every sample what is known of its user, its item and the two together from the ratings before it.
//!
//! All ratings are in one order: by time, then user, then place in the user's history. A sample's counters are of what
//! comes strictly before it (D-4), so those of a train sample do not hold its label, and those of a test sample hold
//! ratings up to its moment, as a service that counts along would have them. What the CRM is trained on is train all
//! the same.

use std::ops::Range;

use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::dataset::{Dataset, FieldOwner, Sample, Split};
use serde_json::json;

use super::inputs::{dataset, samples};
use super::{Counts, Description, RunContext, Stage, retrieve};
use crate::config::{Counting, CrmConfig, ItemVectors};
use crate::error::Result;
use crate::prompt::{Counted, Known};
use crate::retriever::ItemEmbeddings;
use crate::scoring::chunks::{Chunks, Values};
use crate::scoring::sigmoid;
use crate::telemetry::progress::Progress;

/// Counters of a sample, in the order of their values: log-odds of the user's likes so far, how many ratings the user
/// has given, the same two of the item, and affinities. An affinity is the mean over the user's history of how much
/// more an item was liked than others like it, of the items that are like the target: that share a category with it,
/// or in text, by a softmax of the cosine at two temperatures.
pub const COUNTERS: usize = 7;
/// Those of the user, the item and their categories.
pub const OF_COUNTS: Range<usize> = 0..5;
/// Those that read the items' embeddings.
const OF_TEXTS: Range<usize> = 5..COUNTERS;
/// Ratings of everyone that a user's or an item's share of likes begins with.
const PRIOR: f64 = 5.0;
/// Ratings of a category without an opinion that its affinity begins with.
const CATEGORY_PRIOR: f32 = 2.0;
/// Temperatures of the two text affinities.
const TEMPERATURES: [f32; 2] = [0.1, 0.03];
/// What brings affinities to the size of the other counters.
const AFFINITY_SCALE: f32 = 4.0;
/// The latest items of a history that affinities are of.
const LATEST: usize = 500;
/// Samples per file of `counters/`.
const CHUNK: u64 = 1 << 14;

/// Which counters the CRM of these settings reads.
pub fn read_by(config: &CrmConfig) -> Range<usize> {
    let start = if config.counters == Counting::None { OF_TEXTS.start } else { OF_COUNTS.start };
    let texts = config.item_vectors.contains(&ItemVectors::Affinity);
    let end = if texts { OF_TEXTS.end } else { OF_COUNTS.end };
    start.min(end)..end
}

/// What templates see of a sample's counters.
pub fn known(counters: &[f32]) -> Known {
    let counted = |odds: usize, ratings: usize| {
        let of = |place: usize| counters.get(place).copied().unwrap_or_default();
        Counted { mean: sigmoid(of(odds)), count: (4.0 * of(ratings)).exp_m1().round() as u32 }
    };
    Known { user: counted(0, 1), item: counted(2, 3) }
}

/// The chunks of `counters/`.
pub fn counter_chunks(ctx: &RunContext, dataset: &Dataset) -> Chunks {
    Chunks::new(&ctx.path(Stage::Count), "counters", 0..dataset.num_samples(), CHUNK)
}

pub(super) const STAGE: Description = Description {
    name: "count",
    directory: "counters",
    what: "count what came before each sample",
    reads: &[Stage::Prepare, Stage::Embed],
    settings: |config| Ok(json!([config.crm.counters == Counting::Train])),
    run,
    ..Description::BASE
};

fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let dataset = dataset(ctx)?;
    let before = Before::count(ctx, &dataset)?;
    let read = |range| samples(&dataset, range);
    counter_chunks(ctx, &dataset).run("count", comm, progress, read, |_, samples| {
        let of_sample = |s: &Sample| before.counters(&dataset, s.user, s.position, s.item);
        let counters: Vec<[f32; COUNTERS]> = samples.par_iter().map(of_sample).collect();
        Ok(vec![("counters", Values::F32(counters.concat()))])
    })?;
    Ok([("samples".to_owned(), dataset.num_samples())].into())
}

/// Ratings so far, of which some are likes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tally {
    likes: u32,
    ratings: u32,
}

impl Tally {
    fn add(&mut self, like: bool) {
        self.likes += u32::from(like);
        self.ratings += 1;
    }

    /// The share of likes, drawn toward that of everyone.
    fn share(self, everyone: f64) -> f64 {
        (f64::from(self.likes) + PRIOR * everyone) / (f64::from(self.ratings) + PRIOR)
    }

    /// Log-odds of that share, and the number of ratings on a scale of about 1.
    fn counters(self, everyone: f64) -> [f32; 2] {
        let share = self.share(everyone);
        let ratings = f64::from(self.ratings).ln_1p() / 4.0;
        [(share / (1.0 - share)).ln() as f32, ratings as f32]
    }
}

/// What was known before each rating.
pub struct Before {
    embeddings: Option<ItemEmbeddings>,
    /// First rating of each user, in the order of users.
    starts: Vec<usize>,
    /// Before each rating: log-odds and number of its user and of its item.
    known: Vec<[f32; 4]>,
    /// How much more each rating says than its item's share of likes before it: 1 or 0, less that share.
    surprise: Vec<f32>,
    /// After all ratings.
    users: Vec<Tally>,
    items: Vec<Tally>,
    everyone: f64,
    /// Which of an item's fields are its categories, and the fields of all items.
    categories: Vec<u32>,
    per_item: usize,
}

impl Before {
    /// Counts all ratings of a run's dataset in their order, or those of train.
    pub fn count(ctx: &RunContext, dataset: &Dataset) -> Result<Self> {
        let embeddings = retrieve::embeddings(ctx)?;
        let last = match (ctx.config.crm.counters, dataset.split(Split::Train).last()) {
            (Counting::Train, Some(last)) => {
                let Sample { timestamp, user, position, .. } = dataset.sample(last)?;
                Some((timestamp, user, position))
            }
            _ => None,
        };
        Ok(Self::of(dataset, embeddings, |place| last.is_none_or(|last| place <= last)))
    }

    /// Counts the ratings whose (time, user, position) `counts` says so of.
    fn of(
        dataset: &Dataset,
        embeddings: Option<ItemEmbeddings>,
        counts: impl Fn((i64, u32, u32)) -> bool,
    ) -> Self {
        let mut starts = vec![0];
        let mut order = Vec::new();
        for user in 0..dataset.num_users() as u32 {
            let times = dataset.history(user, u32::MAX).timestamps;
            order.extend(times.iter().zip(0..).map(|(time, position)| (time, user, position)));
            starts.push(order.len());
        }
        order.par_sort_unstable();
        let (mut known, mut surprise) = (vec![[0.0; 4]; order.len()], vec![0.0; order.len()]);
        let mut users = vec![Tally::default(); dataset.num_users()];
        let mut items = vec![Tally::default(); dataset.num_items()];
        let mut all = Tally::default();
        let everyone = |all: Tally| (f64::from(all.likes) + 1.0) / (f64::from(all.ratings) + 2.0);
        for (time, user, position) in order {
            let history = dataset.history(user, position + 1);
            let last = history.items.last().zip(history.ratings.last());
            let Some((&item, &level)) = last else { continue };
            let (row, like) = (starts[user as usize] + position as usize, dataset.is_like(level));
            let (of_user, of_item) = (&mut users[user as usize], &mut items[item as usize]);
            let ([a, b], [c, d]) =
                (of_user.counters(everyone(all)), of_item.counters(everyone(all)));
            known[row] = [a, b, c, d];
            if counts((time, user, position)) {
                let share = of_item.share(everyone(all));
                surprise[row] = (f64::from(u8::from(like)) - share) as f32;
                [of_user, of_item, &mut all].into_iter().for_each(|tally| tally.add(like));
            }
        }
        let (categories, per_item) = categories(dataset);
        let everyone = everyone(all);
        Self { embeddings, starts, known, surprise, users, items, everyone, categories, per_item }
    }

    /// The counters of a user and an item at a place of the user's history: what was known before that rating, or after
    /// all ratings where it is another one's place.
    pub fn counters(
        &self,
        dataset: &Dataset,
        user: u32,
        position: u32,
        item: u32,
    ) -> [f32; COUNTERS] {
        let start = self.starts[user as usize];
        let history = dataset.history(user, position.saturating_add(1));
        let is_rated = history.items.get(position as usize) == Some(&item);
        let [a, b, c, d] = if is_rated {
            self.known[start + position as usize]
        } else {
            let of_user = self.users[user as usize].counters(self.everyone);
            let [c, d] = self.items[item as usize].counters(self.everyone);
            [of_user[0], of_user[1], c, d]
        };
        let seen = &history.items[..history.items.len().min(position as usize)];
        let surprise = &self.surprise[start..start + seen.len()];
        let first = seen.len().saturating_sub(LATEST);
        let (seen, surprise) = (&seen[first..], &surprise[first..]);
        let [close, closer] = TEMPERATURES.map(|t| self.text_affinity(item, seen, surprise, t));
        let affinities = [self.category_affinity(item, seen, surprise), close, closer];
        let [e, f, g] = affinities.map(|affinity| AFFINITY_SCALE * affinity);
        [a, b, c, d, e, f, g]
    }

    fn category_affinity(&self, item: u32, seen: &[u32], surprise: &[f32]) -> f32 {
        let target = self.categories_of(item);
        let (mut sum, mut count) = (0.0, CATEGORY_PRIOR);
        for (seen, surprise) in seen.iter().zip(surprise) {
            let shared = target.iter().zip(self.categories_of(*seen)).filter(|(a, b)| a == b);
            let shared = shared.count() as f32;
            sum += shared * surprise;
            count += shared;
        }
        sum / count
    }

    fn categories_of(&self, item: u32) -> &[u32] {
        &self.categories[item as usize * self.per_item..(item as usize + 1) * self.per_item]
    }

    fn text_affinity(&self, item: u32, seen: &[u32], surprise: &[f32], temperature: f32) -> f32 {
        let Some(embeddings) = &self.embeddings else { return 0.0 };
        // A cosine is at most 1: no exponent overflows.
        let weight = |seen: &u32| ((embeddings.similarity(item, *seen) - 1.0) / temperature).exp();
        let (mut sum, mut all) = (0.0, 0.0);
        for (seen, surprise) in seen.iter().zip(surprise) {
            let weight = weight(seen);
            sum += weight * surprise;
            all += weight;
        }
        if all > 0.0 { sum / all } else { 0.0 }
    }
}

/// The features of each item that are no id, one after the other, and how many an item has.
fn categories(dataset: &Dataset) -> (Vec<u32>, usize) {
    let is_category = |field: usize| {
        dataset.fields()[field].owner == FieldOwner::Item && field != dataset.item_field()
    };
    let fields: Vec<usize> = (0..dataset.fields().len()).filter(|f| is_category(*f)).collect();
    let (mut all, mut row) = (Vec::new(), Vec::new());
    for item in 0..dataset.num_items() as u32 {
        row.clear();
        dataset.feature_ids(0, item, &mut row);
        all.extend(fields.iter().map(|field| row[*field]));
    }
    (all, fields.len())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use reclora_storage::dataset;
    use reclora_storage::protocol::{LabelRule, ProtocolConfig, prepare};
    use reclora_storage::raw::{self, ColumnMapping, DatasetFormat};

    use super::*;

    /// Ratings (user, item, stars, time).
    type Row = (u32, u32, u32, i64);

    const ITEMS: u32 = 8;

    fn dataset_of(rows: &[Row], dir: &Path) -> Dataset {
        let mut ratings = "user,item,rating,timestamp\n".to_owned();
        for (user, item, stars, time) in rows {
            ratings += &format!("u{user:02},i{item},{stars},{time}\n");
        }
        let items = (0..ITEMS).map(|item| format!("i{item},genre {}\n", item % 3));
        std::fs::write(dir.join("ratings.csv"), ratings).unwrap();
        let items: String = std::iter::once("item,genre\n".to_owned()).chain(items).collect();
        std::fs::write(dir.join("items.csv"), items).unwrap();
        let columns = ColumnMapping {
            items: "items.csv".into(),
            item_fields: vec!["genre".into()],
            ..ColumnMapping::default()
        };
        let raw = raw::read(DatasetFormat::Csv, dir, &columns).unwrap();
        let label = LabelRule::AtLeast(3.0);
        let config = ProtocolConfig { k_core: 0, min_history: 0, label, split: [0.8, 0.1, 0.1] };
        dataset::write(&prepare(&raw, &config).unwrap(), "counted", dir).unwrap();
        Dataset::open(dir).unwrap()
    }

    /// Vectors of items in a plane.
    fn vectors(dataset: &Dataset) -> ItemEmbeddings {
        let of_item = |item: u32| {
            let key: f32 = dataset.item_key(item)[1..].parse().unwrap();
            [key.sin(), key.cos(), 0.1 * key]
        };
        let rows: Vec<[f32; 3]> = (0..dataset.num_items() as u32).map(of_item).collect();
        ItemEmbeddings::from_states(rows.as_flattened(), 3, 2).unwrap()
    }

    /// The counters of every sample before `end`, by names that don't depend on the order of ids.
    fn counters(rows: &[Row], end: i64) -> Vec<(String, String, [u32; COUNTERS])> {
        let dir = tempfile::tempdir().unwrap();
        let dataset = dataset_of(rows, dir.path());
        // The principal components depend on all items: with the same items they are the same.
        let before = Before::of(&dataset, Some(vectors(&dataset)), |_| true);
        let samples = (0..dataset.num_samples()).map(|index| dataset.sample(index).unwrap());
        let early = samples.filter(|sample| sample.timestamp < end);
        let counters = early.map(|s| {
            let counters = before.counters(&dataset, s.user, s.position, s.item);
            assert!(counters.iter().all(|counter| counter.is_finite()));
            let (user, item) = (dataset.user_key(s.user), dataset.item_key(s.item));
            (user.to_owned(), item.to_owned(), counters.map(f32::to_bits))
        });
        counters.collect()
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let all = prop::collection::hash_map((0u32..10, 0..ITEMS), (1u32..6, 0i64..20), 20..70);
        all.prop_map(|all| {
            let mut rows: Vec<Row> = all.into_iter().map(|((u, i), (s, t))| (u, i, s, t)).collect();
            rows.sort_unstable();
            rows
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// D-4: what is said later changes nothing of what was known before.
        #[test]
        fn d4_changing_any_later_rating_changes_no_earlier_counter(rows in rows(), end in 0i64..20) {
            let flipped: Vec<Row> = rows
                .iter()
                .map(|&(u, i, stars, time)| (u, i, if time < end { stars } else { 6 - stars }, time))
                .collect();
            prop_assert_eq!(counters(&rows, end), counters(&flipped, end));
        }

        /// Counts are those of a loop over everything that came before.
        #[test]
        fn counts_are_those_of_the_definition(rows in rows()) {
            let dir = tempfile::tempdir().unwrap();
            let dataset = dataset_of(&rows, dir.path());
            let before = Before::of(&dataset, None, |_| true);
            let mut all: Vec<(i64, u32, u32, u32, bool)> = Vec::new();
            for user in 0..dataset.num_users() as u32 {
                let history = dataset.history(user, u32::MAX);
                let ratings = history.items.iter().zip(history.ratings).zip(history.timestamps.iter());
                all.extend(ratings.zip(0..).map(|(((item, level), time), position)| {
                    (time, user, position, *item, dataset.is_like(*level))
                }));
            }
            all.sort_unstable();
            for (place, &(_, user, position, item, _)) in all.iter().enumerate() {
                let tally = |of: &dyn Fn(u32, u32) -> bool| {
                    let mut tally = Tally::default();
                    let earlier = all[..place].iter().filter(|(_, u, _, i, _)| of(*u, *i));
                    earlier.for_each(|rating| tally.add(rating.4));
                    tally
                };
                let everyone = tally(&|_, _| true);
                let everyone = (f64::from(everyone.likes) + 1.0) / (f64::from(everyone.ratings) + 2.0);
                let [a, b] = tally(&|u, _| u == user).counters(everyone);
                let [c, d] = tally(&|_, i| i == item).counters(everyone);
                let counters = before.counters(&dataset, user, position, item);
                prop_assert_eq!(&counters[..4], &[a, b, c, d]);
                prop_assert_eq!(&counters[5..], &[0.0; 2]);
            }
        }
    }

    #[test]
    fn liking_what_is_like_the_target_shows() {
        // Items 0 and 3 share a genre; user 0 likes both and nothing else, the others like nothing.
        let mut rows: Vec<Row> = (1..6).flat_map(|u| (0..6).map(move |i| (u, i, 1, 0))).collect();
        rows.push((9, 6, 5, 9));
        rows.extend([(0, 0, 5, 1), (0, 1, 1, 2), (0, 2, 1, 3), (0, 3, 5, 4), (0, 4, 1, 5)]);
        let dir = tempfile::tempdir().unwrap();
        let dataset = dataset_of(&rows, dir.path());
        let before = Before::of(&dataset, Some(vectors(&dataset)), |_| true);
        let item = |key: &str| dataset.item_index(key).unwrap();
        let user = dataset.user_index("u00").unwrap();
        let of = |position, key| before.counters(&dataset, user, position, item(key));
        let (same, other) = (of(3, "i3"), of(4, "i4"));
        assert!(same[4] > 0.5 && other[4] < 0.0, "{same:?} {other:?}");
        // What was never rated is seen from the end.
        let never = of(5, "i6");
        let history = dataset.history(user, u32::MAX);
        assert_eq!(history.items.len(), 5);
        let once = Tally { likes: 1, ratings: 1 };
        assert_eq!(never[2..4], once.counters(before.everyone));
    }

    #[test]
    fn templates_see_shares_and_numbers() {
        for ratings in [0, 1, 7, 500, 100_000] {
            let tally = Tally { likes: ratings / 3, ratings };
            let [odds, number] = tally.counters(0.4);
            let Known { user, item } = known(&[odds, number, odds, number, 0.0, 0.0, 0.0]);
            assert_eq!((user, user.count), (item, ratings));
            assert!((f64::from(user.mean) - tally.share(0.4)).abs() < 1e-6);
        }
    }

    #[test]
    fn a_crm_reads_the_counters_it_is_told_to() {
        let of = |counters, item_vectors| {
            read_by(&CrmConfig { counters, item_vectors, ..CrmConfig::default() })
        };
        assert!(of(Counting::None, vec![ItemVectors::Attention]).is_empty());
        assert_eq!(of(Counting::Online, vec![]), 0..5);
        assert_eq!(of(Counting::Train, vec![ItemVectors::Affinity]), 0..7);
        assert_eq!(of(Counting::None, vec![ItemVectors::Input, ItemVectors::Affinity]), 5..7);
    }
}
