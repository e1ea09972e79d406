//! S-1: whatever is changed in a directory, the check finds it and names the file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use reclora_storage::manifest::StageDir;
use reclora_storage::shard::{Column, write_shard};
use reclora_storage::verify::{Report, STATE, Work};

const NO_OTHER: &(dyn Fn(&Path) -> Option<Result<(), String>> + Sync) = &|_| None;

fn check(path: &Path) -> Report {
    Work::of(path).unwrap().run(3, false, NO_OTHER, &|_| {})
}

fn shard(path: &Path, value: u16) {
    let columns = [
        ("a", Column::U16(&[value; 40][..])),
        ("empty", Column::U8(&[])),
        ("b", Column::F32(&[f32::from(value)])),
        ("none", Column::U64(&[])),
    ];
    write_shard(path, "chunk", &columns).unwrap();
}

/// A run with two finished stages, one of which was made from the other.
fn run(root: &Path) -> [StageDir; 2] {
    let first = StageDir::new(root.join("one"), "first", "f1");
    first.prepare().unwrap();
    for (name, value) in [("chunk-0.shard", 1), ("chunk-1.shard", 2)] {
        shard(&first.path().join(name), value);
    }
    fs::write(first.path().join("text.json"), "{\"some\": \"text\"}").unwrap();
    first.complete(BTreeMap::new(), BTreeMap::new(), 1.25).unwrap();
    let second = StageDir::new(root.join("two"), "second", "f2");
    second.prepare().unwrap();
    fs::write(second.path().join("weights"), [9; 100]).unwrap();
    let inputs = [("first".to_owned(), first.content_hash().unwrap())].into();
    second.complete([("rows".to_owned(), 3)].into(), inputs, 0.1).unwrap();
    [first, second]
}

/// The check of `root` names `file` and nothing else, for this reason.
#[track_caller]
fn names(root: &Path, file: &Path, words: &str) {
    let report = check(root);
    let found: Vec<_> = report.damaged.iter().map(|f| (&f.path, &f.problem)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, file);
    assert!(found[0].1.contains(words), "{:?} does not say {words:?}", found[0].1);
}

#[test]
fn what_was_written_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let [first, second] = run(root.path());
    let report = check(root.path());
    assert_eq!((report.whole, report.remembered), (6, 0), "{report:?}");
    assert!(report.damaged.is_empty() && report.unfinished.is_empty(), "{report:?}");
    assert!(report.outdated.is_empty() && report.forgetful.is_none(), "{report:?}");
    assert!(!root.path().join(STATE).exists());
    // A stage, and single files: listed ones, a manifest, and a shard that no manifest lists.
    assert_eq!(check(first.path()).whole, 4);
    assert!(!first.path().join(STATE).exists() && !root.path().join(STATE).exists());
    for file in [first.path().join("chunk-1.shard"), second.path().join("weights")] {
        assert_eq!(check(&file).whole, 2, "the file and its manifest");
    }
    assert_eq!(check(&first.path().join("manifest.json")).whole, 1);
    let alone = root.path().join("alone.shard");
    shard(&alone, 3);
    assert_eq!(check(&alone).whole, 1);
    assert_eq!(check(root.path()).whole, 7);
}

#[test]
fn s1_changed_bytes_of_every_region_are_named() {
    let root = tempfile::tempdir().unwrap();
    let [first, second] = run(root.path());
    let files = [
        first.path().join("chunk-0.shard"),
        first.path().join("text.json"),
        first.path().join("manifest.json"),
        first.path().join("plan.json"),
        second.path().join("weights"),
        second.path().join("manifest.json"),
    ];
    for file in files {
        let good = fs::read(&file).unwrap();
        // Every few, in all regions: the shard's own tests go through every byte of one.
        let step =
            if file.extension().is_some_and(|extension| extension == "json") { 3 } else { 11 };
        for at in (0..good.len()).step_by(step) {
            let mut bytes = good.clone();
            bytes[at] ^= [0x01, 0x80, 0x20][at / step % 3];
            fs::write(&file, &bytes).unwrap();
            let work = Work::of(file.ancestors().nth(1).unwrap()).unwrap();
            let damaged = work.run(1, false, NO_OTHER, &|_| {}).damaged;
            // White space of the plan means nothing; all else does.
            let blank = file.ends_with("plan.json") && good[at].is_ascii_whitespace();
            let named: Vec<&PathBuf> = damaged.iter().map(|finding| &finding.path).collect();
            assert!(blank || named == [&file], "{}: byte {at}: {damaged:?}", file.display());
        }
        fs::write(&file, &good).unwrap();
    }
    assert!(check(root.path()).damaged.is_empty());
}

#[test]
fn s1_truncations_and_longer_files_are_named() {
    let root = tempfile::tempdir().unwrap();
    let [first, _] = run(root.path());
    for name in ["chunk-0.shard", "text.json", "manifest.json", "plan.json"] {
        let file = first.path().join(name);
        let good = fs::read(&file).unwrap();
        // The last byte of the plan is white space.
        for len in (0..good.len() - 1).step_by(7) {
            fs::write(&file, &good[..len]).unwrap();
            names(root.path(), &file, "");
        }
        fs::write(&file, [&good[..], b"x"].concat()).unwrap();
        names(root.path(), &file, "");
        fs::write(&file, &good).unwrap();
    }
}

#[test]
fn s1_reasons_are_told_apart() {
    let root = tempfile::tempdir().unwrap();
    let [first, _] = run(root.path());
    let chunk = |i| first.path().join(format!("chunk-{i}.shard"));
    let good = fs::read(chunk(0)).unwrap();

    // A byte of the last column with rows.
    let mut bytes = good.clone();
    let at = bytes.len() - 8 * 8 - 64;
    bytes[at] ^= 1;
    fs::write(chunk(0), &bytes).unwrap();
    names(root.path(), &chunk(0), "column `b` is damaged");
    // Another whole shard of the same kind and size.
    fs::copy(chunk(1), chunk(0)).unwrap();
    names(root.path(), &chunk(0), "put in the place of another");
    // The same by itself.
    let finding = &check(&chunk(0)).damaged[0];
    assert!(finding.problem.contains("put in the place of another"), "{finding:?}");
    assert_eq!(finding.stage.as_deref(), Some("first"));
    fs::write(chunk(0), vec![b'x'; good.len()]).unwrap();
    names(root.path(), &chunk(0), "not a reclora shard");
    fs::write(chunk(0), &good[..70]).unwrap();
    names(root.path(), &chunk(0), "has 70 bytes, not the");
    fs::remove_file(chunk(0)).unwrap();
    names(root.path(), &chunk(0), "is missing");
    fs::create_dir(chunk(0)).unwrap();
    names(root.path(), &chunk(0), "is a directory");
    fs::remove_dir(chunk(0)).unwrap();
    fs::write(chunk(0), &good).unwrap();

    let foreign = first.path().join("thesis.tex");
    fs::write(&foreign, "x").unwrap();
    names(root.path(), &foreign, "foreign file");
    names(&foreign, &foreign, "no file that can be checked");
    fs::remove_file(&foreign).unwrap();
    assert!(check(root.path()).damaged.is_empty());
}

#[test]
fn s1_two_files_that_were_swapped_are_both_named() {
    let root = tempfile::tempdir().unwrap();
    let [first, _] = run(root.path());
    let [a, b] = ["chunk-0.shard", "chunk-1.shard"].map(|name| first.path().join(name));
    let spare = root.path().join("spare");
    for (from, to) in [(&a, &spare), (&b, &a), (&spare, &b)] {
        fs::rename(from, to).unwrap();
    }
    let damaged = check(root.path()).damaged;
    let named: Vec<&PathBuf> = damaged.iter().map(|finding| &finding.path).collect();
    assert_eq!(named, [&a, &b]);
    assert!(damaged.iter().all(|finding| finding.problem.contains("in the place of another")));
    // Swapped manifests: each lists files that are not there, and has another's plan beside it.
    for (from, to) in [(&a, &spare), (&b, &a), (&spare, &b)] {
        fs::rename(from, to).unwrap();
    }
    let two = root.path().join("two");
    let [a, b] = [first.path(), &two].map(|dir| dir.join("manifest.json"));
    for (from, to) in [(&a, &spare), (&b, &a), (&spare, &b)] {
        fs::rename(from, to).unwrap();
    }
    let damaged = check(root.path()).damaged;
    let about = |file: PathBuf| damaged.iter().any(|finding| finding.path == file);
    for dir in [first.path(), &two] {
        assert!(about(dir.join("plan.json")), "{damaged:?}");
    }
    assert!(about(first.path().join("weights")) && about(two.join("weights")), "{damaged:?}");
}

#[test]
fn unfinished_and_outdated_stages_are_said_and_no_damage() {
    let root = tempfile::tempdir().unwrap();
    let [first, _] = run(root.path());
    let parts = first.path().join("parts");
    fs::create_dir_all(&parts).unwrap();
    shard(&parts.join("scores-0.shard"), 5);
    fs::write(parts.join("scores-1.shard.tmp-1-1"), "half").unwrap();
    fs::remove_file(first.path().join("manifest.json")).unwrap();
    let report = check(root.path());
    assert!(report.damaged.is_empty(), "{report:?}");
    assert_eq!(report.unfinished, [first.path()]);
    // Its shards are checked by their own hashes: three, beside the other stage's two files.
    assert_eq!(report.whole, 5);
    let mut bytes = fs::read(parts.join("scores-0.shard")).unwrap();
    bytes[200] ^= 1;
    fs::write(parts.join("scores-0.shard"), bytes).unwrap();
    names(root.path(), &parts.join("scores-0.shard"), "is damaged");
    fs::remove_dir_all(&parts).unwrap();

    shard(&first.path().join("chunk-0.shard"), 7);
    first.complete(BTreeMap::new(), BTreeMap::new(), 1.0).unwrap();
    let report = check(root.path());
    assert!(report.damaged.is_empty(), "{report:?}");
    assert_eq!(report.outdated, ["second was made from another first than is there now"]);
}

#[test]
fn what_an_interrupted_check_knew_is_taken_over_while_it_holds() {
    let root = tempfile::tempdir().unwrap();
    let [first, second] = run(root.path());
    let state = root.path().join(STATE);
    // The state as it was just before the check ended.
    let keep = |advance: &(dyn Fn(u64) + Sync)| {
        Work::of(root.path()).unwrap().run(1, false, NO_OTHER, advance)
    };
    let lines = std::sync::Mutex::new(Vec::new());
    keep(&|_| *lines.lock().unwrap() = fs::read(&state).unwrap());
    let lines = lines.into_inner().unwrap();
    assert_eq!(lines.iter().filter(|byte| **byte == b'{').count(), 3, "all but the last file");

    let again = |lines: &[u8], fresh| {
        fs::write(&state, lines).unwrap();
        let report = Work::of(root.path()).unwrap().run(2, fresh, NO_OTHER, &|_| {});
        assert!(report.damaged.is_empty() && !state.exists(), "{report:?}");
        (report.whole, report.remembered)
    };
    assert_eq!(again(&lines, false), (6, 3));
    assert_eq!(again(&lines, true), (6, 0));
    // A line that was cut off counts for nothing, and neither do bytes of something else.
    assert_eq!(again(&lines[..lines.len() - 2], false), (6, 2));
    assert_eq!(again(b"\xff\0{}\n[1]\n{\"path\": 3}\n", false), (6, 0));

    // A file that was changed after it was read is read again.
    fs::write(&state, &lines).unwrap();
    let file = first.path().join("text.json");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[2] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let later = modified + std::time::Duration::from_secs(1);
    fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    names(root.path(), &file, "its hash differs");
    // The next check reads everything, whatever the time of the file is.
    fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    names(root.path(), &file, "its hash differs");
    bytes[2] ^= 1;
    fs::write(&file, &bytes).unwrap();
    // Neither does it hold when the manifest says something else now.
    fs::write(&state, &lines).unwrap();
    fs::write(second.path().join("weights"), [8; 100]).unwrap();
    names(root.path(), &second.path().join("weights"), "its hash differs");
}

#[test]
fn a_directory_that_cannot_be_written_is_checked_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    run(root.path());
    // A directory in the place of the state file: root may write everywhere else.
    fs::create_dir(root.path().join(STATE)).unwrap();
    let report = check(root.path());
    assert_eq!(report.whole, 6);
    assert!(report.forgetful.unwrap().contains(STATE));
}

#[test]
fn nothing_and_what_does_not_exist() {
    let root = tempfile::tempdir().unwrap();
    assert!(Work::of(root.path()).unwrap().is_empty());
    let error = Work::of(&root.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
    let huge = root.path().join("manifest.json");
    let file = fs::File::create(&huge).unwrap();
    file.set_len(1 << 40).unwrap();
    names(root.path(), &huge, "too large");
}
