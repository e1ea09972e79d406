//! S-1: a stage directory is used only when it is complete and what it should be.

use std::collections::BTreeMap;
use std::fs;

use reclora_storage::StorageError;
use reclora_storage::manifest::{StageDir, StageManifest};

fn counts() -> BTreeMap<String, u64> {
    [("samples".to_owned(), 3)].into()
}

/// A finished stage with two files, one in a subdirectory.
fn finished(root: &tempfile::TempDir) -> StageDir {
    let stage = StageDir::new(root.path().join("crm"), "pretrain", "f1");
    stage.prepare().unwrap();
    fs::write(stage.path().join("a.shard"), b"aaa").unwrap();
    fs::create_dir_all(stage.path().join("sub")).unwrap();
    fs::write(stage.path().join("sub/b.json"), b"bb").unwrap();
    stage.complete(counts(), BTreeMap::new(), 1.5).unwrap();
    stage
}

#[test]
fn a_stage_from_nothing_to_complete() {
    let root = tempfile::tempdir().unwrap();
    let stage = StageDir::new(root.path().join("crm"), "pretrain", "f1");
    assert!(!stage.is_complete().unwrap());
    assert!(stage.manifest().unwrap().is_none());
    assert!(matches!(stage.content_hash(), Err(StorageError::Incomplete { .. })));
    let error = stage.verify().unwrap_err();
    assert!(
        matches!(&error, StorageError::Incomplete { stage, .. } if stage == "pretrain"),
        "{error}"
    );

    let stage = finished(&root);
    assert!(stage.is_complete().unwrap());
    stage.verify().unwrap();
    let manifest = stage.manifest().unwrap().unwrap();
    assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["a.shard", "sub/b.json"]);
    assert_eq!(manifest.files["a.shard"].bytes, 3);
    assert_eq!(manifest.counts, counts());
    let text = fs::read(stage.path().join("manifest.json")).unwrap();
    assert_eq!(serde_json::from_slice::<StageManifest>(&text).unwrap(), manifest);

    let other = StageDir::new(stage.path(), "pretrain", "f2");
    assert!(!other.is_complete().unwrap());
    assert!(!StageDir::new(stage.path(), "tune", "f1").is_complete().unwrap());
}

#[test]
fn working_files_are_not_part_of_the_stage() {
    let root = tempfile::tempdir().unwrap();
    let stage = finished(&root);
    let hash = stage.content_hash().unwrap();
    for dir in ["checkpoints", "parts"] {
        fs::create_dir_all(stage.path().join(dir)).unwrap();
        fs::write(stage.path().join(dir).join("x"), b"x").unwrap();
    }
    fs::write(stage.path().join("a.shard.tmp-1-0"), b"x").unwrap();
    let manifest = stage.complete(counts(), BTreeMap::new(), 9.0).unwrap();
    assert_eq!(manifest.files.len(), 2);
    assert_eq!(stage.content_hash().unwrap(), hash);
    // A directory of that name further down is the stage's own.
    fs::create_dir_all(stage.path().join("sub/parts")).unwrap();
    fs::write(stage.path().join("sub/parts/x"), b"x").unwrap();
    let manifest = stage.complete(counts(), BTreeMap::new(), 9.0).unwrap();
    assert!(manifest.files.contains_key("sub/parts/x"));
    assert_ne!(stage.content_hash().unwrap(), hash);
}

#[test]
fn damage_is_found_and_named_with_the_stage_that_repairs_it() {
    let root = tempfile::tempdir().unwrap();
    let stage = finished(&root);
    let path = stage.path().join("sub/b.json");
    fs::write(&path, b"bX").unwrap();
    assert!(stage.is_complete().unwrap());
    let error = stage.verify().unwrap_err();
    assert!(
        matches!(&error, StorageError::StageFile { stage, .. } if stage == "pretrain"),
        "{error}"
    );
    assert!(error.to_string().contains("sub/b.json"), "{error}");
    fs::write(&path, b"b").unwrap();
    assert!(!stage.is_complete().unwrap());
    assert!(stage.verify().unwrap_err().to_string().contains("1 bytes, not the 2"));
    fs::remove_file(&path).unwrap();
    assert!(!stage.is_complete().unwrap());
    assert!(stage.verify().unwrap_err().to_string().contains("sub/b.json"));
}

#[test]
fn corrupt_manifests_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let stage = finished(&root);
    let path = stage.path().join("manifest.json");
    let good = fs::read_to_string(&path).unwrap();
    let outside = good.replace("a.shard", "../../etc/passwd");
    let absolute = good.replace("a.shard", "/etc/passwd");
    for bad in ["", "{", "[]", "{\"stage\": 1}", &good[..good.len() / 2], &outside, &absolute] {
        fs::write(&path, bad).unwrap();
        for error in [stage.manifest().map(|_| ()), stage.is_complete().map(|_| ()), stage.verify()]
        {
            let error = error.unwrap_err();
            let of_stage = matches!(&error, StorageError::StageFile { .. });
            assert!(of_stage && error.to_string().contains("manifest.json"), "{error}");
        }
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(stage.manifest().is_err());
    stage.prepare().unwrap();
    assert!(stage.manifest().unwrap().is_none());
}

#[test]
fn the_same_plan_resumes() {
    let root = tempfile::tempdir().unwrap();
    let stage = finished(&root);
    fs::create_dir_all(stage.path().join("parts")).unwrap();
    fs::write(stage.path().join("parts/p0"), b"x").unwrap();
    fs::write(stage.path().join("parts/p1.tmp-99-0"), b"x").unwrap();
    fs::write(stage.path().join("a.shard.tmp-99-1"), b"x").unwrap();
    stage.prepare().unwrap();
    assert!(stage.path().join("a.shard").exists());
    assert!(stage.path().join("parts/p0").exists());
    assert!(!stage.path().join("parts/p1.tmp-99-0").exists());
    assert!(!stage.path().join("a.shard.tmp-99-1").exists());
    assert!(!stage.is_complete().unwrap(), "being written again, it is not complete");
}

#[test]
fn another_plan_empties_the_directory() {
    let root = tempfile::tempdir().unwrap();
    let outside = root.path().join("precious");
    fs::write(&outside, b"x").unwrap();
    for (stage, fingerprint) in [("pretrain", "f2"), ("tune", "f1")] {
        let old = finished(&root);
        #[cfg(unix)]
        std::os::unix::fs::symlink(root.path(), old.path().join("link")).unwrap();
        StageDir::new(old.path(), stage, fingerprint).prepare().unwrap();
        let left: Vec<_> =
            fs::read_dir(old.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["plan.json"]);
        assert!(outside.exists(), "a link is removed, not what it points to");
    }
}

#[test]
fn a_damaged_or_lost_plan_empties_the_directory_of_a_run() {
    let root = tempfile::tempdir().unwrap();
    for damage in [Some("{"), None] {
        let stage = finished(&root);
        let plan = stage.path().join("plan.json");
        match damage {
            Some(text) => fs::write(&plan, text).unwrap(),
            None => fs::remove_file(&plan).unwrap(),
        }
        stage.prepare().unwrap();
        assert!(!stage.path().join("a.shard").exists());
    }
}

#[test]
fn files_of_no_run_are_never_removed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("dataset");
    fs::create_dir_all(&dir).unwrap();
    let stage = StageDir::new(&dir, "prepare", "f");
    fs::write(dir.join("x.tmp-1-1"), b"").unwrap();
    stage.prepare().unwrap();
    fs::remove_file(dir.join("plan.json")).unwrap();
    fs::write(dir.join("thesis.tex"), b"years of work").unwrap();
    let error = stage.prepare().unwrap_err().to_string();
    assert!(error.contains("thesis.tex") && error.contains("another run directory"), "{error}");
    assert!(dir.join("thesis.tex").exists());
}

#[test]
fn a_file_in_the_way_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("dataset");
    fs::write(&path, b"").unwrap();
    let stage = StageDir::new(&path, "prepare", "f");
    assert!(stage.manifest().unwrap().is_none());
    assert!(!stage.is_complete().unwrap());
    assert!(stage.prepare().unwrap_err().to_string().contains("dataset"));
}
