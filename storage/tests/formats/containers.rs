//! What a file is that is no table of text.

use reclora_storage::raw::DatasetFormat::{Csv, Movielens100k, Movietweetings, Parquet};
use reclora_storage::raw::{self, ColumnMapping, TimeUnit};

use super::{refused, rows};
use crate::common::{Raw, movietweetings};

const TABLE: &str = "user,item,rating,timestamp\nu,i,1,7\n";

#[test]
fn gzip_is_read_whatever_its_name() {
    let raw = Raw::new(&[]);
    raw.put_gz("ratings.csv", format!("\u{feff}{TABLE}").as_bytes());
    assert_eq!(rows(&raw.read(Csv).unwrap()), [("u", "i", 1.0, 7)]);
    // What is cut or false is said where it ends.
    let packed = raw.put_gz("ratings.csv", TABLE.as_bytes());
    raw.put("ratings.csv", &packed[..packed.len() - 9]);
    raw.refused(Csv, &["ratings.csv", "truncated or damaged"]);
    raw.remove("ratings.csv");
    raw.put("ratings.csv.gz", TABLE.as_bytes());
    raw.refused(Csv, &["ratings.csv.gz", "gzip"]);
}

#[test]
fn other_containers_are_named_with_what_to_do() {
    let raw = Raw::new(&[]);
    for (bytes, words) in [
        (&b"BZh91AY&SY\x1a\x00"[..], ["bzip2", "bunzip2 "]),
        (b"\xfd7zXZ\0\0\x04", ["xz", "unxz "]),
        (b"\x28\xb5\x2f\xfd\0", ["zstd", "unzstd "]),
        (b"PK\x03\x04\x14\0", ["zip", "unzip "]),
        (b"7z\xbc\xaf\x27\x1c\0", ["7z", "7z x "]),
        (b"\xff\xfeu\0s\0e\0r\0", ["UTF-16", "iconv"]),
        (b"\xfe\xff\0u\0s\0e\0r", ["UTF-16", "iconv"]),
        (b"<!DOCTYPE html>\n<html>", ["web page (HTML)", "download it again"]),
        (b"version https://git-lfs.github.com/spec/v1\noid", ["Git LFS pointer", "git lfs pull"]),
        (b"PAR1\x15\x04", ["Parquet", "data.format = \"parquet\""]),
    ] {
        raw.put("ratings.csv", bytes);
        raw.refused(Csv, &words);
        raw.refused(Csv, &["ratings.csv: "]);
        // In gzip as well.
        raw.put_gz("ratings.csv", bytes);
        raw.refused(Csv, &words);
    }
    // Where a Parquet file is expected, and where a layout's own file is.
    raw.put("ratings.parquet", b"BZh91AY&SY\x1a\x00");
    raw.refused(Parquet, &["ratings.parquet: bzip2", "bunzip2"]);
    raw.put("ratings.parquet", TABLE.as_bytes());
    raw.refused(Parquet, &["ratings.parquet: text", "data.format = \"csv\""]);
    let tweets = movietweetings();
    tweets.put("ratings.dat", b"PK\x03\x04\x14\0");
    tweets.refused(Movietweetings, &["ratings.dat: zip", "unzip"]);
}

#[test]
fn a_file_that_is_only_there_in_a_container_is_found() {
    let raw = Raw::new(&[]);
    raw.put("ratings.csv.bz2", b"BZh91AY&SY");
    raw.refused(Csv, &["ratings.csv.bz2: bzip2", "bunzip2"]);
    refused(raw.files(Csv), &["ratings.csv.bz2: bzip2"]);
    raw.put("u.item.zip", b"PK\x03\x04\x14\0");
    raw.refused(Movielens100k, &["u.item.zip: zip"]);
    // Its name says nothing of what it is.
    raw.put("ratings.csv.bz2", b"notes");
    raw.refused(Csv, &["has neither ratings.csv nor ratings.csv.gz"]);
}

#[test]
fn files_and_directories_are_told_apart() {
    let raw = Raw::new(&[]);
    std::fs::create_dir(raw.path().join("ratings.csv")).unwrap();
    raw.put("ratings.csv/part-00000.csv", TABLE.as_bytes());
    raw.refused(
        Csv,
        &["ratings.csv: is a directory", "awk 'FNR > 1 || NR == 1'", "ratings.csv/part-*"],
    );
    let file = raw.path().join("ratings.csv/part-00000.csv");
    for format in [Csv, Parquet, Movielens100k] {
        refused(
            raw::read(format, &file, &ColumnMapping::default()),
            &["part-00000.csv: is a file; data.path must be"],
        );
        refused(
            raw::files(format, &file, &ColumnMapping::default()),
            &["part-00000.csv: is a file; data.path must be"],
        );
    }
    // Whatever it is taken for.
    std::fs::create_dir(raw.path().join("ratings.parquet")).unwrap();
    raw.put("ratings.parquet/part-00000.csv", TABLE.as_bytes());
    raw.refused(Parquet, &["ratings.parquet: is a directory", "join its parts"]);
    let sample = raw::sample(Csv, &raw.path().join("ratings.csv"), &ColumnMapping::default());
    refused(sample, &["ratings.csv: is a directory"]);
    let columns = ColumnMapping {
        items: "ratings.csv".into(),
        time_unit: TimeUnit::S,
        ..ColumnMapping::default()
    };
    refused(raw::read(Csv, raw.path(), &columns), &["is a directory"]);
}
