//! The data protocol on small hand-made and on random data.

use std::collections::{HashMap, HashSet};

use crate::common::{Raw, config, movielens_1m, movielens_25m, movielens_100k, shipped};
use proptest::prelude::*;
use reclora_storage::StorageError;
use reclora_storage::dataset::{self, Dataset, Split};
use reclora_storage::protocol::{LabelRule, Prepared, ProtocolConfig, prepare, prepare_within};
use reclora_storage::raw::{self, ColumnMapping, DatasetFormat, Duplicates, RawTables};
use reclora_storage::spill::Spill;

const SECOND: i64 = 1_000_000_000;

/// A MovieTweetings directory with these (user, item, rating, timestamp in seconds) rows.
fn tables(rows: &[(u32, u32, u8, i64)]) -> RawTables {
    let nanos: Vec<_> = rows.iter().map(|(u, i, r, t)| (*u, *i, *r, t * SECOND)).collect();
    tables_within(&nanos, &Spill::never())
}

/// The same of times in nanoseconds, within a limit of memory.
fn tables_within(rows: &[(u32, u32, u8, i64)], spill: &Spill) -> RawTables {
    let items: HashSet<u32> = rows.iter().map(|r| r.1).collect();
    let movies: String = items.iter().map(|i| format!("{i}::Film {i} (2000)::Drama\n")).collect();
    let line = |(user, item, rating, time): &(u32, u32, u8, i64)| {
        let (seconds, nanos) = (time / SECOND, time % SECOND);
        format!("{user}::{item}::{rating}::{seconds}.{nanos:09}\n")
    };
    let ratings: String = rows.iter().map(line).collect();
    let raw = Raw::new(&[("movies.dat", &movies), ("ratings.dat", &ratings)]);
    let (format, columns) = (DatasetFormat::Movietweetings, ColumnMapping::default());
    raw::read_within(format, raw.path(), &columns, Duplicates::Refuse, spill).unwrap()
}

/// The samples as (user key, item key, position) in global order.
fn samples(prepared: &Prepared) -> Vec<(&str, &str, u32)> {
    let rows = prepared.sample.in_memory().iter().map(|row| *row as usize);
    rows.map(|row| {
        let user = prepared.user_offsets.iter().rposition(|start| *start as usize <= row).unwrap();
        let item = &prepared.items.keys[prepared.item.in_memory()[row] as usize];
        let position = row as u32 - prepared.user_offsets[user] as u32;
        (prepared.users.keys[user].as_str(), item.as_str(), position)
    })
    .collect()
}

#[test]
fn sorts_by_time_then_user_then_item_as_numbers() {
    let raw = tables(&[(10, 5, 1, 7), (9, 30, 2, 7), (9, 4, 3, 7), (9, 100, 4, 1), (10, 6, 1, 6)]);
    let prepared = prepare(&raw, &config(0, 0)).unwrap();
    let expected = [("9", "100", 0), ("10", "6", 0), ("9", "4", 1), ("9", "30", 2), ("10", "5", 1)];
    assert_eq!(samples(&prepared), expected);
    // Vocabularies in that order.
    assert_eq!(prepared.users.keys, ["9", "10"]);
    assert_eq!(prepared.items.keys, ["100", "6", "4", "30", "5"]);
    assert_eq!(prepared.users.keys.len(), prepared.user_offsets.len() - 1);
}

#[test]
fn sorts_ids_as_strings_when_one_is_no_number() {
    let raw = Raw::new(&[
        ("movies.dat", "1::A::\n"),
        ("ratings.dat", "9::1::1::5\nx::1::1::5\n10::1::1::5\n"),
    ]);
    let raw = raw.read(DatasetFormat::Movietweetings).unwrap();
    let prepared = prepare(&raw, &config(0, 0)).unwrap();
    assert_eq!(prepared.users.keys, ["10", "9", "x"]);
}

#[test]
fn the_k_core_is_repeated_until_stable() {
    // Users 1..3 and items 1..3 are a 2-core; user 4 has two ratings until item 9 goes.
    let mut rows = vec![(4, 9, 5, 0), (4, 1, 5, 0)];
    for user in 1..=3 {
        rows.extend([(user, user, 5, 1), (user, user % 3 + 1, 5, 2)]);
    }
    let prepared = prepare(&tables(&rows), &config(2, 0)).unwrap();
    assert_eq!((prepared.users.keys.len(), prepared.items.keys.len()), (3, 3));
    assert_eq!(prepared.item.len(), 6);
    assert_eq!(prepare(&tables(&rows), &config(1, 0)).unwrap().item.len(), 8);
}

#[test]
fn samples_with_short_histories_are_dropped_but_stay_in_histories() {
    let rows: Vec<_> = (0..7).map(|i| (1, i, 5, i64::from(i))).collect();
    let mut with_lone = rows.clone();
    with_lone.push((2, 0, 5, 3));
    let prepared = prepare(&tables(&with_lone), &config(0, 5)).unwrap();
    assert_eq!(samples(&prepared), [("1", "5", 5), ("1", "6", 6)]);
    assert_eq!(prepared.item.len(), 8);
    // A user with one rating: no sample of it, but it is in the vocabulary.
    assert_eq!(prepared.users.keys, ["1", "2"]);
    assert_eq!(prepared.split, [1, 1]);
}

#[test]
fn no_samples_left_says_what_dropped_them() {
    let rows: Vec<_> = (0..20).map(|i| (i, i, 5, i64::from(i))).collect();
    let error = prepare(&tables(&rows), &config(0, 5)).unwrap_err();
    assert!(matches!(error, StorageError::NoSamples { culprit: "min_history", .. }), "{error}");
    let text = error.to_string();
    for words in ["20 ratings of 20 users on 20 items", "longest history has 0", "min_history = 5"]
    {
        assert!(text.contains(words), "{text}");
    }
    let error = prepare(&tables(&rows), &config(5, 5)).unwrap_err();
    assert!(matches!(error, StorageError::NoSamples { culprit: "k_core", .. }), "{error}");
    assert!(
        error.to_string().contains("k_core = 5 left 0 ratings of 0 users on 0 items"),
        "{error}"
    );
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let raw = tables(&[(1, 1, 1, 1)]);
    for split in [[0.8, 0.1, 0.2], [1.5, -0.5, 0.0], [f64::NAN, 0.5, 0.5], [0.0; 3]] {
        let config = ProtocolConfig { split, ..config(0, 0) };
        assert!(prepare(&raw, &config).unwrap_err().to_string().starts_with("data.split: "));
    }
    let bad = ProtocolConfig { label: LabelRule::Greater(f32::NAN), ..config(0, 0) };
    assert!(prepare(&raw, &bad).unwrap_err().to_string().starts_with("data.label: "));
}

#[test]
fn labels_follow_the_rule() {
    assert!(!LabelRule::Greater(3.0).is_like(3.0) && LabelRule::Greater(3.0).is_like(3.5));
    assert!(LabelRule::AtLeast(8.0).is_like(8.0) && !LabelRule::AtLeast(8.0).is_like(7.0));
    let raw = tables(&[(1, 1, 8, 1), (1, 2, 7, 2), (1, 3, 10, 3)]);
    let config = ProtocolConfig { label: LabelRule::AtLeast(8.0), ..config(0, 0) };
    let prepared = prepare(&raw, &config).unwrap();
    assert_eq!(prepared.likes, [[false; 8].as_slice(), &[true; 3]].concat());
    assert_eq!(prepared.counts.positive_samples, 2);
}

#[test]
fn splits_are_whole_numbers_as_published() {
    // ML-1M: 970,009 samples -> 776,007 / 97,000 / 97,002; here the same rule on few.
    for (n, expected) in [(10, [8, 9]), (19, [15, 16]), (101, [80, 90]), (1, [0, 0])] {
        let rows: Vec<_> = (0..n).map(|i| (1, i, 5, i64::from(i))).collect();
        let prepared = prepare(&tables(&rows), &config(0, 0)).unwrap();
        assert_eq!(prepared.split, expected, "{n}");
        let no_test = ProtocolConfig { split: [0.9, 0.1, 0.0], ..config(0, 0) };
        assert_eq!(prepare(&tables(&rows), &no_test).unwrap().split[1], u64::from(n));
    }
}

/// Features are the vocabularies of the fields one after another, and the rating levels.
#[test]
fn features_of_the_layouts() {
    let names = |prepared: &Prepared| -> Vec<(String, u32, u32)> {
        let fields = prepared.fields.iter();
        fields.map(|f| (f.name.clone(), f.offset, f.cardinality)).collect()
    };
    let field = |name: &str, offset, cardinality| (name.to_owned(), offset, cardinality);

    let raw = movielens_1m().read(DatasetFormat::Movielens1m).unwrap();
    let prepared = prepare(&raw, &config(0, 0)).unwrap();
    // Three films are in the file and two are rated; user 3 has rated nothing.
    let expected = [
        field("user", 0, 2),
        field("gender", 2, 2),
        field("age", 4, 2),
        field("occupation", 6, 2),
        field("zip", 8, 2),
        field("item", 10, 2),
        field("title", 12, 2),
        field("genre", 14, 2),
    ];
    assert_eq!(names(&prepared), expected);
    let dir = tempfile::tempdir().unwrap();
    let counts = dataset::write(&prepared, "one", dir.path()).unwrap();
    assert_eq!(counts["features"], 16 + 5);
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!((dataset.num_features(), dataset.rating_offset()), (21, 16));
    assert_eq!((dataset.user_field(), dataset.item_field()), (0, 5));
    assert_eq!(dataset.user_text_columns(), ["gender", "age", "occupation"]);

    let raw = movielens_100k().read(DatasetFormat::Movielens100k).unwrap();
    let prepared = prepare(&raw, &config(0, 0)).unwrap();
    let order = ["user", "gender", "age", "occupation", "zip", "item", "title", "genre"];
    assert_eq!(prepared.fields.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), order);

    let raw = movielens_25m().read(DatasetFormat::Movielens25m).unwrap();
    let prepared = prepare(&raw, &config(0, 0)).unwrap();
    let expected =
        [field("user", 0, 2), field("item", 2, 3), field("title", 5, 3), field("genre", 8, 3)];
    assert_eq!(names(&prepared), expected);
}

/// The files that ship with the repository, against counts found independently.
#[test]
fn movietweetings_100k_as_shipped() {
    let raw =
        raw::read(DatasetFormat::Movietweetings, &shipped(), &ColumnMapping::default()).unwrap();
    assert_eq!((raw.ratings.len(), raw.users.keys.len()), (100_000, 16_554));
    assert_eq!(raw.items.keys.len(), 10_506);
    let config = ProtocolConfig { label: LabelRule::AtLeast(8.0), ..config(5, 5) };
    let prepared = prepare(&raw, &config).unwrap();
    assert_eq!(prepared.item.len(), 68_055);
    assert_eq!((prepared.users.keys.len(), prepared.items.keys.len()), (4_333, 2_414));
    let likes =
        prepared.rating.in_memory().iter().filter(|r| prepared.likes[usize::from(**r)]).count();
    let share = likes as f64 / prepared.rating.len() as f64;
    assert!((share - 0.478).abs() < 0.0005, "{share}");

    let dir = tempfile::tempdir().unwrap();
    let counts = dataset::write(&prepared, "movietweetings", dir.path()).unwrap();
    println!("{counts:#?}");
    // Every user of a 5-core has five ratings that are too early to be samples.
    assert_eq!(counts["samples"], 68_055 - 5 * 4_333);
    let dataset = Dataset::open(dir.path()).unwrap();
    let train = dataset.split(Split::Train);
    assert_eq!(train.end, (0.8 * counts["samples"] as f64) as u64);
    check_against_the_definition(&raw, &config, &dataset);
}

/// D-4 and the rest of the protocol, against its definition on the raw ratings: every sample's
/// history is exactly the user's earlier ratings in (timestamp, user, item) order, timestamps as given.
fn check_against_the_definition(raw: &RawTables, config: &ProtocolConfig, dataset: &Dataset) {
    type Moment = (i64, u64, u64);
    let number = |key: &str| key.parse::<u64>().unwrap();
    let mut by_user: HashMap<&str, Vec<(Moment, u8)>> = HashMap::new();
    let mut given: HashMap<(u64, u64), i64> = HashMap::new();
    for rating in raw.ratings.in_memory() {
        let user = raw.users.keys[rating.user as usize].as_str();
        let item = raw.items.keys[rating.item as usize].as_str();
        if dataset.user_index(user).is_some() && dataset.item_index(item).is_some() {
            let moment = (rating.timestamp, number(user), number(item));
            given.insert((moment.1, moment.2), moment.0);
            by_user.entry(user).or_default().push((moment, rating.level));
        }
    }
    by_user.values_mut().for_each(|rows| rows.sort_unstable());
    let mut last: Option<Moment> = None;
    let mut seen = HashSet::new();
    for index in 0..dataset.num_samples() {
        let sample = dataset.sample(index).unwrap();
        let user = dataset.user_key(sample.user);
        let moment_of = |item: u32, seconds: i64| {
            let (user, item) = (number(user), number(dataset.item_key(item)));
            assert_eq!(seconds, given[&(user, item)].div_euclid(SECOND));
            (given[&(user, item)], user, item)
        };
        let moment = moment_of(sample.item, sample.timestamp);
        assert!(last.is_none_or(|l| l < moment), "samples are in time order, each once");
        last = Some(moment);
        assert!(seen.insert((sample.user, sample.item)));

        let history = dataset.history(sample.user, sample.position);
        let got: Vec<(Moment, u8)> = (0..history.items.len())
            .map(|i| {
                let seconds = history.timestamps.get(i).unwrap();
                (moment_of(history.items[i], seconds), history.ratings[i])
            })
            .collect();
        let all = &by_user[user];
        let earlier: Vec<_> = all.iter().copied().filter(|(m, _)| *m < moment).collect();
        assert_eq!(got, earlier, "D-4");
        assert!(history.items.iter().all(|i| *i != sample.item), "the target is in its history");
        assert!(history.items.len() >= config.min_history as usize);
        assert_eq!(all[got.len()], (moment, sample.rating));
        let stars = dataset.rating_levels()[usize::from(sample.rating)];
        assert_eq!(sample.label, config.label.is_like(stars));
    }
    let expected: usize =
        by_user.values().map(|rows| rows.len().saturating_sub(config.min_history as usize)).sum();
    assert_eq!(dataset.num_samples(), expected as u64);
    let splits = [Split::Train, Split::Valid, Split::Test].map(|s| dataset.split(s));
    assert_eq!((splits[0].start, splits[0].end), (0, splits[1].start));
    assert_eq!((splits[1].end, splits[2].end), (splits[2].start, dataset.num_samples()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// D-4 on random data with many equal timestamps, some of which differ by nanoseconds, through the file
    /// and back, in memory and beyond its limit.
    #[test]
    fn d4_histories_hold_nothing_of_the_target_or_later(
        rows in proptest::collection::hash_map(
            (0_u32..12, 0_u32..15),
            (0_u8..11, 0_i64..20, prop_oneof![Just(0), 0_i64..4, 0_i64..SECOND]),
            1..120,
        ),
        k_core in 0_u32..4,
        min_history in 0_u32..4,
        // Of the ratings none fits into memory, or some do, or all.
        limit in prop_oneof![Just(0_usize), 500_usize..20_000, Just(usize::MAX)],
        threads in 1_usize..4,
    ) {
        let rows: Vec<_> =
            rows.into_iter().map(|((u, i), (r, t, nanos))| (u, i, r, t * SECOND + nanos)).collect();
        let temporary = tempfile::tempdir().unwrap();
        let spill = Spill::within(limit, temporary.path(), threads);
        let raw = tables_within(&rows, &Spill::never());
        let config = config(k_core, min_history);
        match prepare_within(&tables_within(&rows, &spill), &config, &spill) {
            Err(StorageError::NoSamples { .. }) => {}
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
            Ok(prepared) => {
                let mut degrees: HashMap<(bool, u32), u32> = HashMap::new();
                let mut items = Vec::new();
                prepared
                    .item
                    .for_each_piece(|piece| {
                        items.extend_from_slice(piece);
                        Ok(())
                    })
                    .unwrap();
                for (user, window) in prepared.user_offsets.windows(2).enumerate() {
                    let rows = window[0] as usize..window[1] as usize;
                    *degrees.entry((true, user as u32)).or_default() += rows.len() as u32;
                    for item in &items[rows] {
                        *degrees.entry((false, *item)).or_default() += 1;
                    }
                }
                prop_assert!(degrees.values().all(|d| *d >= k_core));
                let dir = tempfile::tempdir().unwrap();
                dataset::write(&prepared, "random", dir.path()).unwrap();
                check_against_the_definition(&raw, &config, &Dataset::open(dir.path()).unwrap());
            }
        }
    }

    /// The same ratings in another order of lines give the same bytes but for the order in which
    /// nothing is defined: there is none.
    #[test]
    fn the_order_of_the_lines_does_not_matter(seed in 0_u64..1000) {
        let mut rows: Vec<_> = (0_u32..40).map(|i| (i % 5, i / 5, (i % 11) as u8, i64::from(i % 7))).collect();
        let write = |rows: &[(u32, u32, u8, i64)]| {
            let dir = tempfile::tempdir().unwrap();
            dataset::write(&prepare(&tables(rows), &config(2, 1)).unwrap(), "x", dir.path()).unwrap();
            std::fs::read(dir.path().join(dataset::FILE)).unwrap()
        };
        let before = write(&rows);
        let order = reclora_storage::permutation::EpochOrder::new(40, seed, 0);
        rows = (0..40).map(|i| rows[order.at(i) as usize]).collect();
        prop_assert_eq!(before, write(&rows));
    }
}
