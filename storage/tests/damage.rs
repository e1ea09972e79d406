//! S-1, S-3: manifests, datasets and remembered checks of any content: refused or right, no panic.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use crate::common;
use proptest::prelude::*;
use reclora_storage::dataset::{self, Dataset};
use reclora_storage::manifest::{FileEntry, StageDir, StageManifest};
use reclora_storage::protocol;
use reclora_storage::raw::DatasetFormat;
use reclora_storage::verify::{STATE, Work};

/// The bytes of a small dataset.
static DATASET: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let tables = common::movietweetings().read(DatasetFormat::Movietweetings).unwrap();
    let prepared = protocol::prepare(&tables, &common::config(1, 1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    dataset::write(&prepared, "small", dir.path()).unwrap();
    fs::read(dir.path().join(dataset::FILE)).unwrap()
});

fn stage(dir: &Path) -> StageDir {
    StageDir::new(dir.join("stage"), "prepare", "f")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_dataset_with_any_change_is_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = DATASET.clone();
        for (at, change) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= change;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        // Two changes of one byte may undo each other.
        prop_assume!(bytes != *DATASET);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(dataset::FILE), bytes).unwrap();
        let error = Dataset::open(dir.path()).unwrap_err().to_string();
        prop_assert!(error.contains("dataset.shard"), "{}", error);
    }

    #[test]
    fn any_manifest_comes_back_and_any_change_of_it_is_refused(
        counts in prop::collection::btree_map(".{0,8}", any::<u64>(), 0..4),
        inputs in prop::collection::btree_map(".{0,8}", ".{0,12}", 0..4),
        seconds in any::<f64>().prop_filter("a time", |s| s.is_finite()),
        change in (any::<prop::sample::Index>(), 1_u8..),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let stage = stage(dir.path());
        stage.prepare().unwrap();
        fs::write(stage.path().join("a"), "a").unwrap();
        let written = stage.complete(counts, inputs, seconds).unwrap();
        prop_assert_eq!(stage.manifest().unwrap(), Some(written));
        let path = stage.path().join("manifest.json");
        let mut bytes = fs::read(&path).unwrap();
        let at = change.0.index(bytes.len());
        bytes[at] ^= change.1;
        fs::write(&path, bytes).unwrap();
        let error = stage.manifest().unwrap_err().to_string();
        prop_assert!(error.contains("manifest.json"), "{}", error);
    }

    #[test]
    fn a_manifest_lists_nothing_outside_its_directory(name in "(\\.\\./|/|\\./|a/|a){1,4}\\PC{0,4}") {
        let dir = tempfile::tempdir().unwrap();
        let stage = stage(dir.path());
        stage.prepare().unwrap();
        let manifest = StageManifest {
            files: [(name.clone(), FileEntry { bytes: 1, xxh3: String::new() })].into(),
            xxh3: String::new(),
            ..stage.complete(BTreeMap::new(), BTreeMap::new(), 0.0).unwrap()
        };
        let text = serde_json::to_vec(&manifest).unwrap();
        fs::write(stage.path().join("manifest.json"), text).unwrap();
        if let Ok(Some(manifest)) = stage.manifest() {
            for name in manifest.files.keys() {
                prop_assert!(!name.starts_with('/') && name.split('/').all(|part| part != ".."));
            }
        }
    }

    #[test]
    fn any_bytes_for_a_manifest_a_plan_or_a_memory(
        manifest in prop::collection::vec(any::<u8>(), 0..100),
        plan in prop::collection::vec(any::<u8>(), 0..100),
        state in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let stage = stage(dir.path());
        fs::create_dir_all(stage.path()).unwrap();
        fs::write(stage.path().join("manifest.json"), manifest).unwrap();
        fs::write(stage.path().join("plan.json"), plan).unwrap();
        fs::write(dir.path().join(STATE), state).unwrap();
        prop_assert!(stage.manifest().is_err());
        let report = Work::of(dir.path()).unwrap().run(2, false, &|_| None, &|_| {});
        prop_assert!(!report.damaged.is_empty());
        prop_assert_eq!(report.remembered, 0);
    }
}
