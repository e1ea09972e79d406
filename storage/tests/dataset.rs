//! The dataset on disk: what it says, and that nothing damaged or inconsistent is opened (S-1).

use crate::common::{config, movielens_1m, movietweetings};
use reclora_storage::dataset::{self, Dataset, FieldOwner, KIND, Split};
use reclora_storage::protocol::{Prepared, prepare};
use reclora_storage::raw::DatasetFormat;

fn prepared() -> Prepared {
    let raw = movietweetings().read(DatasetFormat::Movietweetings).unwrap();
    prepare(&raw, &config(0, 0)).unwrap()
}

fn written(prepared: &Prepared) -> (tempfile::TempDir, reclora_storage::Result<Dataset>) {
    let dir = tempfile::tempdir().unwrap();
    dataset::write(prepared, "small", &dir.path().join("dataset")).unwrap();
    let dataset = Dataset::open(&dir.path().join("dataset"));
    (dir, dataset)
}

#[test]
fn everything_is_found_again() {
    let (_dir, dataset) = written(&prepared());
    let dataset = dataset.unwrap();
    assert_eq!(dataset.name(), "small");
    assert_eq!((dataset.num_users(), dataset.num_items()), (3, 3));
    assert_eq!((dataset.num_samples(), dataset.num_interactions()), (4, 4));
    assert_eq!((dataset.user_field(), dataset.item_field()), (0, 1));
    assert_eq!(dataset.num_features(), 3 + 3 + 3 + 3 + 11);
    assert_eq!((dataset.rating_offset(), dataset.rating_feature(10)), (12, 22));
    assert_eq!(dataset.rating_levels().len(), 11);
    assert_eq!(dataset.fields()[1].owner, FieldOwner::Item);

    // Order: 7 rates 10 at 50; then at 100 users 7 and 9 rate 2, and 10 rates 3.
    assert_eq!(dataset.user_key(0), "7");
    assert_eq!(dataset.item_key(0), "0000010");
    assert_eq!(dataset.user_index("10"), Some(2));
    assert_eq!(dataset.item_index("0000003"), Some(2));
    assert_eq!((dataset.user_index("3"), dataset.item_index("")), (None, None));
    assert_eq!(dataset.item_text(1, "year"), Some("2001"));
    assert_eq!(dataset.item_text(1, "title"), Some("Amélie \"Le Fabuleux\", destin (2001)"));
    assert_eq!(dataset.item_text(2, "genres"), Some(""));
    assert_eq!(dataset.item_text_columns(), ["title", "genres", "year"]);
    assert!(dataset.user_text_columns().is_empty());

    let sample = dataset.sample(1).unwrap();
    assert_eq!((sample.user, sample.item, sample.position), (0, 1, 1));
    assert_eq!((sample.rating, sample.label, sample.timestamp), (8, true, 100));
    let history = dataset.history(0, 1);
    assert_eq!((history.items, history.ratings), (&[0][..], &[10][..]));
    assert_eq!(history.timestamps.iter().collect::<Vec<_>>(), [50]);
    assert_eq!((history.timestamps.len(), history.timestamps.get(1)), (1, None));
    let mut ids = vec![99];
    dataset.feature_ids(0, 1, &mut ids);
    // user 0, item 1 (offset 3), its title (offset 6), its genre: the second seen (offset 9).
    assert_eq!(ids, [99, 0, 4, 7, 10]);
    assert_eq!(dataset.item_feature(1), 4);
    assert_eq!(dataset.split(Split::Train), 0..3);
    assert_eq!(dataset.split(Split::Valid), 3..3);
    assert_eq!(dataset.split(Split::Test), 3..4);
}

#[test]
fn user_texts_are_words() {
    let raw = movielens_1m().read(DatasetFormat::Movielens1m).unwrap();
    let (_dir, dataset) = written(&prepare(&raw, &config(0, 0)).unwrap());
    let dataset = dataset.unwrap();
    let user = dataset.user_index("2").unwrap();
    assert_eq!(dataset.user_text(user, "gender"), Some("male"));
    assert_eq!(dataset.user_text(user, "occupation"), Some("self-employed"));
    assert_eq!(dataset.user_text(user, "zip"), None);
    let mut ids = Vec::new();
    dataset.feature_ids(user, dataset.item_index("2").unwrap(), &mut ids);
    assert_eq!(ids.len(), 8);
    for (id, field) in ids.iter().zip(dataset.fields()) {
        assert!((field.offset..field.offset + field.cardinality).contains(id), "{}", field.name);
    }
}

#[test]
fn what_does_not_exist_is_an_error_or_nothing() {
    let (_dir, dataset) = written(&prepared());
    let dataset = dataset.unwrap();
    let error = dataset.sample(4).unwrap_err().to_string();
    assert!(error.contains("sample 4 does not exist: the dataset has 4"), "{error}");
    assert!(dataset.sample(u64::MAX).is_err());
    assert_eq!(dataset.history(0, u32::MAX).items.len(), 2);
    assert!(dataset.history(u32::MAX, 1).items.is_empty());
    assert_eq!((dataset.user_len(0), dataset.user_len(3), dataset.user_len(u32::MAX)), (2, 0, 0));
    assert_eq!((dataset.user_key(3), dataset.item_key(u32::MAX)), ("", ""));
    assert_eq!(dataset.item_text(3, "title"), None);
    assert_eq!(dataset.item_text(0, "plot"), None);
    assert!(!dataset.is_like(255));
    let _ = (dataset.item_feature(u32::MAX), dataset.rating_feature(255));
}

#[test]
fn is_shared_between_threads() {
    fn check<T: Send + Sync>(_: &T) {}
    check(&written(&prepared()).1.unwrap());
}

#[test]
fn s1_missing_truncated_and_damaged_files_are_refused() {
    let (dir, dataset) = written(&prepared());
    drop(dataset);
    let dir = dir.path().join("dataset");
    let path = dir.join(dataset::FILE);
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        let error = Dataset::open(&dir).unwrap_err().to_string();
        assert!(error.contains(dataset::FILE), "{error}");
    }
    for len in [0, 1, 16, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(Dataset::open(&dir).is_err(), "{len} bytes");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(Dataset::open(&dir).unwrap_err().to_string().contains(dataset::FILE));
}

/// Intact files whose content is inconsistent: as a faulty or hostile writer would leave them.
#[test]
fn s1_inconsistent_indices_are_refused() {
    type Change = fn(&mut Prepared);
    let changes: [(&str, Change); 20] = [
        ("item that does not exist", |p| p.item.in_memory_mut()[0] = 3),
        ("level that does not exist", |p| p.rating.in_memory_mut()[0] = 11),
        ("a rating that does not exist", |p| p.sample.in_memory_mut()[0] = 4),
        ("a rating that does not exist", |p| p.sample.in_memory_mut()[3] = u32::MAX),
        ("samples are not in time order", |p| p.sample.in_memory_mut()[..2].reverse()),
        ("not in time order", |p| p.timestamp.in_memory_mut()[0] = 200),
        ("not in time order", |p| p.timestamp.in_memory_mut()[0] = i64::MAX),
        ("offsets", |p| p.user_offsets[1] = 5),
        ("offsets", |p| p.user_offsets[0] = 1),
        ("offsets", |p| p.user_offsets[1] = u64::MAX),
        ("number of offsets", |p| p.user_offsets.clear()),
        ("offsets", |p| p.user_offsets[3] = 3),
        ("ratings differ in length", |p| p.timestamp.in_memory_mut().truncate(3)),
        ("`item.field1`", |p| p.items.fields[0][0] = 3),
        ("`item.field2`", |p| p.items.fields[1].truncate(1)),
        ("splits", |p| p.split = [4, 3]),
        ("splits", |p| p.split = [0, 5]),
        ("fields", |p| p.fields[1].offset = 2),
        ("ids", |p| p.users.keys[1] = p.users.keys[0].clone()),
        ("levels", |p| p.likes.truncate(2)),
    ];
    for (words, change) in changes {
        let mut prepared = prepared();
        change(&mut prepared);
        let error = written(&prepared).1.unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
    let more: [Change; 7] = [
        |p| p.fields.clear(),
        |p| p.fields.truncate(1),
        |p| p.fields.reverse(),
        |p| p.fields[3].cardinality = u32::MAX,
        |p| p.rating_levels.clear(),
        |p| p.users.keys.push("more".into()),
        |p| p.items.texts[0].values.truncate(1),
    ];
    for (i, change) in more.into_iter().enumerate() {
        let mut prepared = prepared();
        change(&mut prepared);
        assert!(written(&prepared).1.is_err(), "change {i}");
    }
}

#[test]
fn other_schema_versions_are_refused() {
    use reclora_storage::shard::{Column, write_shard};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(dataset::FILE);
    for (schema, words) in [
        (r#"{"version": 9}"#, "schema version Some(9)"),
        (r#"{"version": 1}"#, "schema version Some(1); this build reads 2"),
        (r#"{"version": 2}"#, "unreadable schema"),
        ("[]", "schema version None"),
        ("", "schema version None"),
    ] {
        write_shard(&path, KIND, &[("schema", Column::U8(schema.as_bytes()))]).unwrap();
        let error = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    write_shard(&path, KIND, &[]).unwrap();
    assert!(Dataset::open(dir.path()).unwrap_err().to_string().contains("no column `schema`"));
}
