//! What is said of ratings before a run.

use reclora_storage::dataset;
use reclora_storage::inspect::{Bin, Counts, Role, inspect};
use reclora_storage::protocol::{FieldOwner, LabelRule, ProtocolConfig, prepare};
use reclora_storage::raw::DatasetFormat::{Csv, Movietweetings};
use reclora_storage::raw::{self, ColumnMapping};

use crate::common::{Raw, config, shipped};

#[test]
fn numbers_are_those_of_the_dataset_that_is_written() {
    let raw = raw::read(Movietweetings, &shipped(), &ColumnMapping::default()).unwrap();
    let config = ProtocolConfig { label: LabelRule::AtLeast(8.0), ..config(5, 5) };
    let found = inspect(&raw, &config).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let counts = dataset::write(&prepare(&raw, &config).unwrap(), "x", dir.path()).unwrap();
    let protocol = &found.protocol;
    let splits: Vec<(&str, u64)> = protocol.splits.iter().map(|s| (s.name, s.samples)).collect();
    let split = |name| (name, counts[name]);
    assert_eq!(splits, [split("train"), split("valid"), split("test")]);
    assert_eq!(protocol.samples, counts["samples"]);
    assert_eq!(protocol.features, counts["features"]);
    assert_eq!(protocol.core.users, counts["users"]);
    assert_eq!(protocol.core.items, counts["items"]);
    assert_eq!(protocol.core.ratings, counts["interactions"]);
    let likes: u64 = protocol.splits.iter().map(|s| s.likes).sum();
    assert_eq!(likes, counts["positive_samples"]);
    assert_eq!(found.read.users, counts["raw_users"]);
    assert_eq!(found.levels.iter().map(|l| l.ratings).sum::<u64>(), counts["raw_ratings"]);
    assert_eq!(found.activity.histogram.iter().map(|b| b.users).sum::<u64>(), counts["raw_users"]);
}

fn small() -> Raw {
    // User a has 1 rating, b 3, c 7.
    let mut text = "user,item,rating,timestamp,title\n".to_owned();
    let mut time = 86_400;
    for (user, count) in [("a", 1), ("b", 3), ("c", 7)] {
        for item in 0..count {
            let title = if item == 2 { String::new() } else { format!("T{item}") };
            text += &format!("{user},{item},{},{time},{title}\n", item % 3);
            time += 1;
        }
    }
    Raw::new(&[("ratings.csv", &text)])
}

#[test]
fn a_small_table_in_numbers() {
    let columns = ColumnMapping { item_texts: vec!["title".into()], ..ColumnMapping::default() };
    let raw = raw::read(Csv, small().path(), &columns).unwrap();
    let config = ProtocolConfig { label: LabelRule::Greater(1.0), ..config(0, 1) };
    let found = inspect(&raw, &config).unwrap();
    assert_eq!(found.read, Counts { ratings: 11, users: 3, items: 7 });
    assert_eq!(
        found.time,
        Some(["1970-01-02T00:00:00Z", "1970-01-02T00:00:10Z"].map(str::to_owned))
    );
    let levels: Vec<(f32, u64, bool)> =
        found.levels.iter().map(|l| (l.stars, l.ratings, l.like)).collect();
    assert_eq!(levels, [(0.0, 5, false), (1.0, 3, false), (2.0, 3, true)]);
    assert_eq!((found.activity.median, found.activity.most), (3, 7));
    let bins = [(1, 1, 1), (2, 2, 0), (3, 5, 1), (6, 10, 1)];
    assert_eq!(found.activity.histogram, bins.map(|(from, to, users)| Bin { from, to, users }));
    let title = found.columns.last().unwrap();
    assert_eq!(
        (title.owner, title.role, title.name.as_str()),
        (FieldOwner::Item, Role::Text, "title")
    );
    assert_eq!((title.values, title.empty), (7, 1));
    assert_eq!(title.examples, ["T0", "T1", "T3"]);
    // Samples: two of b, six of c; train is the first six, test the last.
    assert_eq!(found.protocol.samples, 8);
    let splits: Vec<(u64, u64)> =
        found.protocol.splits.iter().map(|s| (s.samples, s.new_items)).collect();
    assert_eq!(splits, [(6, 0), (0, 0), (2, 2)]);
    assert_eq!(found.protocol.splits[1].time, None);
}

#[test]
fn without_time_there_is_none_to_show() {
    let columns = ColumnMapping { timestamp: String::new(), ..ColumnMapping::default() };
    let raw = raw::read(Csv, small().path(), &columns).unwrap();
    let found = inspect(&raw, &config(0, 1)).unwrap();
    assert_eq!(found.time, None);
    assert_eq!(found.protocol.samples, 2);
    assert!(found.protocol.splits.iter().all(|s| s.time.is_none()));
}

#[test]
fn that_nothing_is_left_is_said_and_no_error() {
    let raw = raw::read(Csv, small().path(), &ColumnMapping::default()).unwrap();
    let found = inspect(&raw, &config(0, 7)).unwrap();
    assert!(found.protocol.problem.unwrap().contains("Lower data.min_history"));
    assert_eq!(found.protocol.core, Counts { ratings: 11, users: 3, items: 7 });
    assert!(found.protocol.splits.is_empty());
    let bad = ProtocolConfig { split: [2.0, 0.0, 0.0], ..config(0, 0) };
    assert!(inspect(&raw, &bad).is_err());
}
