//! Preparing within a limit of memory: the same result and the same errors, and nothing left behind.

use std::fmt::Write;
use std::path::Path;

use crate::common::{FIRST_TIME, LAST_TIME, Mount, Raw, config, may_mount};
use crate::skip::skip;
use reclora_storage::permutation::EpochOrder;
use reclora_storage::protocol::prepare_within;
use reclora_storage::raw::{self, ColumnMapping, DatasetFormat, Duplicates, RawTables};
use reclora_storage::spill::Spill;
use reclora_storage::synth::{self, RATINGS, SynthSpec, Titles};
use reclora_storage::{Result, dataset};

use DatasetFormat::Movielens25m;

/// Bytes of memory and threads, from what leaves a run for every rating to what leaves none.
const LIMITS: [(usize, usize); 6] =
    [(0, 1), (3_000, 1), (16_000, 2), (16_000, 5), (500_000, 3), (usize::MAX, 2)];

/// The dataset's file, made of the ratings in `raw` within a limit.
fn prepared(raw: &Path, limit: usize, threads: usize) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let spill = Spill::within(limit, dir.path(), threads);
    let written = read(raw, &spill)
        .and_then(|tables| prepare_within(&tables, &config(5, 5), &spill))
        .and_then(|prepared| dataset::write(&prepared, "x", dir.path()));
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), usize::from(written.is_ok()), "{names:?}");
    written.map(|_| std::fs::read(dir.path().join(dataset::FILE)).unwrap())
}

fn synthetic(ratings: u64) -> Raw {
    let raw = Raw::new(&[]);
    let spec = SynthSpec { users: 100, items: 90, ratings, seed: 8, titles: Titles::Plain };
    synth::write(raw.path(), &spec, false).unwrap();
    raw
}

/// Changes the lines after the header.
fn change_lines(raw: &Raw, change: impl FnOnce(&mut Vec<String>)) {
    let text = std::fs::read_to_string(raw.path().join(RATINGS)).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let header = lines.remove(0);
    change(&mut lines);
    let text = lines.iter().fold(header, |mut text, line| {
        write!(text, "\n{line}").unwrap();
        text
    });
    raw.put(RATINGS, format!("{text}\n").as_bytes());
}
/// Reads ratings with as much in memory as `spill` says.
fn read(dir: &Path, spill: &Spill) -> Result<RawTables> {
    let columns = ColumnMapping::default();
    raw::read_within(Movielens25m, dir, &columns, Duplicates::Refuse, spill)
}

#[test]
fn every_limit_and_number_of_threads_writes_the_same_bytes() {
    let raw = synthetic(4_000);
    let expected = prepared(raw.path(), usize::MAX, 1).unwrap();
    for (limit, threads) in LIMITS {
        let bytes = prepared(raw.path(), limit, threads).unwrap();
        assert!(bytes == expected, "{limit} bytes, {threads} threads");
    }
    // Users one after another or all at once: the order of the lines does not matter.
    let order = EpochOrder::new(4_000, 1, 1);
    change_lines(&raw, |lines| {
        *lines = (0..4_000).map(|i| lines[order.at(i) as usize].clone()).collect();
    });
    for (limit, threads) in LIMITS {
        let bytes = prepared(raw.path(), limit, threads).unwrap();
        assert!(bytes == expected, "shuffled: {limit} bytes, {threads} threads");
    }
}

#[test]
fn sixteen_bytes_hold_a_rating() {
    let raw = Raw::new(&[]);
    let spec =
        SynthSpec { users: 200, items: 300, ratings: 50_000, seed: 8, titles: Titles::Plain };
    synth::write(raw.path(), &spec, false).unwrap();
    let bytes = prepared(raw.path(), usize::MAX, 1).unwrap().len();
    assert!(bytes < 16 * 50_000, "{bytes} bytes");
}

#[test]
fn times_too_far_apart_for_32_bits_are_kept() {
    let raw = synthetic(2_000);
    change_lines(&raw, |lines| {
        lines[0] = format!("999,1,3.0,{FIRST_TIME}");
        lines[1] = format!("999,5,3.0,{LAST_TIME}");
    });
    let dir = tempfile::tempdir().unwrap();
    let spill = Spill::within(3_000, dir.path(), 2);
    let tables = read(raw.path(), &spill).unwrap();
    let prepared = prepare_within(&tables, &config(0, 0), &spill).unwrap();
    dataset::write(&prepared, "x", dir.path()).unwrap();
    let dataset = dataset::Dataset::open(dir.path()).unwrap();
    assert_eq!(dataset.sample(0).unwrap().timestamp, FIRST_TIME);
    let last = dataset.sample(1_999).unwrap();
    assert_eq!((last.timestamp, last.user), (LAST_TIME, dataset.user_index("999").unwrap()));
    let history = dataset.history(last.user, u32::MAX);
    let times: Vec<i64> = history.timestamps.iter().collect();
    assert!(times.is_sorted() && times.len() == history.items.len());
}

/// A file that is cut into parts anywhere reads as one that is not: lines that can't be used are counted,
/// and the first of each kind is reported.
#[test]
fn errors_do_not_depend_on_limit_and_threads() {
    type Change = fn(&mut Vec<String>);
    let cases: [(&str, Change); 14] = [
        (":3002: line: 3 columns", |l| l[3_000] = "1,2,3".into()),
        (":3002: rating: \"x\"", |l| l[3_000] = "1,1,x,5".into()),
        ("1 row: not a rating of this format (first: line 1002, rating: 7", |l| {
            (l[3_000], l[1_000]) = ("1".into(), "1,1,7,5".into())
        }),
        (":2: item: \"-\" is not in", |l| (l[0], l[2]) = ("1,-,x,5".into(), "".into())),
        (":3002: user: empty", |l| l[3_000] = ",1,3.0,5".into()),
        (":4001: timestamp: missing", |l| l[3_999] = "1,1,3.0,".into()),
        // Quotes from line 2002 on, the second with a line end between them; line 3003 as in the file.
        (":3003: line: 1 columns", |l| {
            l[2_000] = "\"100\",\"1\",3.0,\"7\"".into();
            l[2_001] = "\"1\n00\",\"5\",3.0,\"7\"".into();
            l[3_000] = "1".into();
        }),
        ("2 rows: another number of columns (first: line 12: 1 columns", |l| {
            (l[10], l[2_000]) = ("1".into(), "\"1\"".into())
        }),
        (":503: rating", |l| (l[1], l[500]) = (format!("\n{}", l[1]), "1,1,,5".into())),
        (":503: line: the same line as line 3", |l| l[501] = l[1].clone()),
        ("2 ratings given twice (first: line 2001: the same line as line 3", |l| {
            (l[1_999], l[2_999]) = (l[1].clone(), l[2].clone())
        }),
        ("2 ratings given twice (first: line 3001: the same line as line 4", |l| {
            (l[3_999], l[2_999]) = (l[1].clone(), l[2].clone())
        }),
        (" has rated item ", |l| {
            let (start, last) = l[7].split_at(l[7].len() - 1);
            l[3_999] = format!("{start}{}", if last == "9" { 8 } else { 9 });
        }),
        (":4001: line: the same line as line 3999", |l| l[3_999] = l[3_997].clone()),
    ];
    for (words, change) in cases {
        let raw = synthetic(4_000);
        change_lines(&raw, change);
        let expected = prepared(raw.path(), usize::MAX, 1).unwrap_err().to_string();
        assert!(expected.contains(words), "{expected:?} does not say {words:?}");
        for (limit, threads) in LIMITS {
            let error = prepared(raw.path(), limit, threads).unwrap_err().to_string();
            assert_eq!(error, expected, "{limit} bytes, {threads} threads");
        }
    }
    // Cut off while being compressed: what was read is checked first.
    let raw = synthetic(4_000);
    let text = std::fs::read(raw.path().join(RATINGS)).unwrap();
    raw.remove(RATINGS);
    let whole = raw.put_gz("ratings.csv.gz", &text);
    raw.put("ratings.csv.gz", &whole[..whole.len() / 2]);
    for (limit, threads) in LIMITS {
        let error = prepared(raw.path(), limit, threads).unwrap_err().to_string();
        assert!(error.contains("ratings.csv.gz: after line "), "{error}");
    }
}

#[test]
fn the_rating_that_is_kept_does_not_depend_on_limit_and_threads() {
    let raw = synthetic(4_000);
    // Later and earlier times and equal ones, beside each other and far apart.
    change_lines(&raw, |lines| {
        for (i, shift) in [(10, 0), (700, 5), (2_000, -5), (2_001, 0), (3_990, 1)] {
            let line = lines[i].clone();
            let (head, time) = line.rsplit_once(',').unwrap();
            let (pair, _) = head.rsplit_once(',').unwrap();
            lines.push(format!("{pair},0.5,{}", time.parse::<i64>().unwrap() + shift));
            lines.insert((i + 100).min(lines.len()), format!("{pair},5.0,{time}"));
        }
    });
    for duplicates in [Duplicates::First, Duplicates::Last] {
        let read = |limit, threads| {
            let dir = tempfile::tempdir().unwrap();
            let spill = Spill::within(limit, dir.path(), threads);
            let columns = ColumnMapping::default();
            let tables =
                raw::read_within(Movielens25m, raw.path(), &columns, duplicates, &spill).unwrap();
            assert_eq!(tables.dropped.iter().map(|d| d.count).collect::<Vec<_>>(), [10]);
            let prepared = prepare_within(&tables, &config(0, 0), &spill).unwrap();
            assert_eq!(tables.ratings.len(), 4_000);
            dataset::write(&prepared, "x", dir.path()).unwrap();
            std::fs::read(dir.path().join(dataset::FILE)).unwrap()
        };
        let expected = read(usize::MAX, 1);
        for (limit, threads) in LIMITS {
            assert!(read(limit, threads) == expected, "{limit} bytes, {threads} threads");
        }
    }
}

/// Lines are read as the CSV parser reads them, which the same rows with quotes are left to.
#[test]
fn quotes_line_ends_and_blank_lines_change_nothing() {
    let raw = synthetic(4_000);
    let expected = raw::read(Movielens25m, raw.path(), &ColumnMapping::default()).unwrap();
    let good = std::fs::read_to_string(raw.path().join(RATINGS)).unwrap();
    let quoted = |line: &str| format!("\"{}\"", line.replace(',', "\",\""));
    let mut variants =
        vec![good.replace('\n', "\r\n"), good.replace('\n', "\n\n"), good.replace('\n', "\r")];
    for from in [0, 1, 2_000, 3_999] {
        let lines = good.lines().enumerate();
        variants.push(
            lines.map(|(i, l)| if i < from { l.to_owned() } else { quoted(l) } + "\n").collect(),
        );
    }
    for (i, text) in variants.iter().enumerate() {
        raw.put(RATINGS, text.as_bytes());
        for threads in [1, 3] {
            let dir = tempfile::tempdir().unwrap();
            // Small parts of the file, and room for all ratings.
            let spill = Spill::within(600_000, dir.path(), threads);
            let tables = read(raw.path(), &spill).unwrap();
            assert!(tables == expected, "variant {i}");
        }
    }
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let raw = synthetic(4_000);
    change_lines(&raw, |lines| lines[3_000] = "1".repeat(3 << 20));
    let error = prepared(raw.path(), 16_000, 2).unwrap_err().to_string();
    assert!(error.contains(":3002: line: longer than"), "{error}");
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    if !may_mount() {
        return skip("needs root: a small file system is mounted");
    }
    let raw = synthetic(8_000);
    // Too small for the ratings, for the runs of the sort as well, and for the dataset.
    for size in ["32k", "160k", "320k"] {
        let mount = Mount::new(size);
        let spill = Spill::within(16_000, mount.path(), 2);
        let error = read(raw.path(), &spill)
            .and_then(|tables| prepare_within(&tables, &config(5, 5), &spill))
            .and_then(|prepared| dataset::write(&prepared, "x", mount.path()))
            .unwrap_err()
            .to_string();
        let words = ["No space left", "free some space", mount.path().to_str().unwrap()];
        assert!(words.iter().all(|word| error.contains(word)), "{size}: {error}");
        assert_eq!(std::fs::read_dir(mount.path()).unwrap().count(), 0, "{size}");
        std::fs::write(mount.path().join("x"), vec![1; 16 << 10]).unwrap();
    }
}
