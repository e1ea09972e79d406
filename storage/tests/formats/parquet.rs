//! Any Parquet by a mapping of its columns: types, row groups, directories, damage.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, Encoding, GzipLevel};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type, Int96,
    Int96Type,
};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use reclora_storage::raw::DatasetFormat::Parquet;
use reclora_storage::raw::{self, ColumnMapping, RawTables, TimeUnit, Unusable};

use super::{dropped, field, refused, rows, text};
use crate::common::{Raw, ratings, seconds};

/// Values of a column; null where levels say 0.
#[derive(Clone)]
enum Column {
    Bool(Vec<bool>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    I96(Vec<Int96>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Text(Vec<&'static str>),
    /// Of an optional column.
    Maybe(Vec<Option<&'static str>>),
    /// Values with levels of definition and of repetition.
    List(Vec<&'static str>, Vec<i16>, Vec<i16>),
}

/// Writes a file of row groups.
fn write(path: &Path, schema: &str, codec: Compression, groups: &[Vec<Column>]) {
    write_as(path, schema, WriterProperties::builder().set_compression(codec).build(), groups);
}

fn write_as(path: &Path, schema: &str, properties: WriterProperties, groups: &[Vec<Column>]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(properties);
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let bytes = |v: &&str| ByteArray::from(v.as_bytes().to_vec());
    for group in groups {
        let mut rows = writer.next_row_group().unwrap();
        for column in group {
            let mut out = rows.next_column().unwrap().unwrap();
            match column {
                Column::Bool(v) => out.typed::<BoolType>().write_batch(v, None, None),
                Column::I32(v) => out.typed::<Int32Type>().write_batch(v, None, None),
                Column::I64(v) => out.typed::<Int64Type>().write_batch(v, None, None),
                Column::I96(v) => out.typed::<Int96Type>().write_batch(v, None, None),
                Column::F32(v) => out.typed::<FloatType>().write_batch(v, None, None),
                Column::F64(v) => out.typed::<DoubleType>().write_batch(v, None, None),
                Column::Text(v) => {
                    let v: Vec<ByteArray> = v.iter().map(bytes).collect();
                    out.typed::<ByteArrayType>().write_batch(&v, None, None)
                }
                Column::Maybe(v) => {
                    let levels: Vec<i16> = v.iter().map(|v| i16::from(v.is_some())).collect();
                    let v: Vec<ByteArray> = v.iter().flatten().map(bytes).collect();
                    out.typed::<ByteArrayType>().write_batch(&v, Some(&levels), None)
                }
                Column::List(v, defined, repeated) => {
                    let v: Vec<ByteArray> = v.iter().map(bytes).collect();
                    out.typed::<ByteArrayType>().write_batch(&v, Some(defined), Some(repeated))
                }
            }
            .unwrap();
            out.close().unwrap();
        }
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

const RATINGS: &str = "message ratings { required binary user (UTF8); required int64 item; \
                       required double rating; required int64 timestamp; }";

/// One row group of ratings: user, item, rating, time.
fn group(rows: &[(&'static str, i64, f64, i64)]) -> Vec<Column> {
    vec![
        Column::Text(rows.iter().map(|r| r.0).collect()),
        Column::I64(rows.iter().map(|r| r.1).collect()),
        Column::F64(rows.iter().map(|r| r.2).collect()),
        Column::I64(rows.iter().map(|r| r.3).collect()),
    ]
}

fn read(raw: &Raw, columns: &ColumnMapping) -> reclora_storage::Result<RawTables> {
    raw::read(Parquet, raw.path(), columns)
}

fn mapping(change: impl FnOnce(&mut ColumnMapping)) -> ColumnMapping {
    let mut columns = ColumnMapping::default();
    change(&mut columns);
    columns
}

fn gzip() -> Compression {
    Compression::GZIP(GzipLevel::default())
}

#[test]
fn one_file_of_several_row_groups_is_read() {
    for codec in [Compression::UNCOMPRESSED, Compression::SNAPPY, gzip()] {
        let raw = Raw::new(&[]);
        let groups = [group(&[("u", 10, 4.5, 7), ("v", 11, 1.0, 8)]), group(&[("u", 11, 3.0, 9)])];
        write(&raw.path().join("ratings.parquet"), RATINGS, codec, &groups);
        let tables = raw.read(Parquet).unwrap();
        assert_eq!(rows(&tables), [("u", "10", 4.5, 7), ("v", "11", 1.0, 8), ("u", "11", 3.0, 9)]);
        assert_eq!(tables.rating_levels, [1.0, 3.0, 4.5]);
    }
}

/// Pages of version 2, in which text is delta-encoded in both ways, and long enough for several blocks.
#[test]
fn delta_encoded_text_is_read() {
    let raw = Raw::new(&[]);
    let path = raw.path().join("ratings.parquet");
    let rows_of: Vec<(&'static str, i64, f64, i64)> = (0..700)
        .map(|i| {
            (&*format!("user {}{}", i * i, "x".repeat(i % 90)).leak(), i as i64, 1.0, i as i64)
        })
        .collect();
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for encoding in [Encoding::DELTA_BYTE_ARRAY, Encoding::DELTA_LENGTH_BYTE_ARRAY] {
            let properties = WriterProperties::builder()
                .set_writer_version(version)
                .set_dictionary_enabled(false)
                .set_column_encoding("user".into(), encoding)
                .set_compression(Compression::SNAPPY);
            write_as(&path, RATINGS, properties.build(), &[group(&rows_of)]);
            let tables = raw.read(Parquet).unwrap();
            let expected: Vec<_> =
                rows_of.iter().map(|r| (r.0, r.1.to_string(), 1.0, r.3)).collect();
            let found = rows(&tables).into_iter().map(|r| (r.0, r.1.to_owned(), r.2, r.3));
            assert!(found.eq(expected), "{version:?} {encoding:?}");
        }
    }
}

/// Lists as writers have them: with two groups around the values, with one, and with none.
#[test]
fn lists_are_joined_whatever_writes_them() {
    let kinds = [
        "optional group genre (LIST) { repeated group list { optional binary element (UTF8); } }",
        "optional group genre (LIST) { repeated binary array (UTF8); }",
        "repeated binary genre (UTF8);",
    ];
    // Two values, null, none, one, and (where values may be null) one beside a null. Levels that a schema
    // lacks become those of the nearest that it has.
    let lists: [(&[&str], &[i16], &[i16]); 3] = [
        (&["a", "b", "c", "d"], &[3, 3, 0, 1, 3, 2, 3], &[0, 1, 0, 0, 0, 0, 1]),
        (&["a", "b", "c", "d"], &[2, 2, 0, 1, 2, 2], &[0, 1, 0, 0, 0, 0]),
        (&["a", "b", "c", "d"], &[1, 1, 0, 0, 1, 1], &[0, 1, 0, 0, 0, 0]),
    ];
    for (kind, (values, defined, repeated)) in kinds.into_iter().zip(lists) {
        let raw = Raw::new(&[]);
        let schema = format!(
            "message r {{ required int32 user; required int32 item; required int32 rating; {kind} }}"
        );
        let rows = Column::I32((0..5).collect());
        let list = Column::List(values.to_vec(), defined.to_vec(), repeated.to_vec());
        let path = raw.path().join("ratings.parquet");
        write(&path, &schema, Compression::SNAPPY, &[vec![rows.clone(), rows.clone(), rows, list]]);
        let columns = mapping(|c| {
            c.timestamp.clear();
            c.item_fields = vec!["genre".into()];
        });
        let tables = read(&raw, &columns).unwrap();
        assert_eq!(field(&tables.items, "genre"), ["a|b", "", "", "c", "d"], "{kind}");
    }
}

/// One long text in a dictionary, and many rows that are no more than its number.
#[test]
fn text_that_is_larger_than_its_pages_is_refused() {
    let raw = Raw::new(&[]);
    let long: &'static str = "x".repeat(1 << 18).leak();
    let rows: Vec<_> = (0..400).map(|i| (long, i, 1.0, i)).collect();
    let path = raw.path().join("ratings.parquet");
    write(&path, RATINGS, Compression::SNAPPY, &[group(&rows)]);
    assert!(std::fs::metadata(&path).unwrap().len() < 4 << 20);
    raw.refused(Parquet, &["ratings.parquet", "400 values take more than 64 MiB; leave"]);
}

#[test]
fn batches_join_without_a_seam() {
    let raw = Raw::new(&[]);
    let rows_of = |from: i64, n: i64| -> Vec<_> {
        (from..from + n).map(|i| ("u", i, (i % 7) as f64, i)).collect()
    };
    let groups =
        [group(&rows_of(0, 10_000)), group(&rows_of(10_000, 1)), group(&rows_of(10_001, 5_000))];
    write(&raw.path().join("ratings.parquet"), RATINGS, Compression::SNAPPY, &groups);
    let tables = raw.read(Parquet).unwrap();
    assert_eq!(seconds(&tables), (0..15_001).collect::<Vec<_>>());
    assert_eq!(
        ratings(&tables, |r| i64::from(r.level)).iter().sum::<i64>(),
        (0..15_001).map(|i| i % 7).sum::<i64>()
    );
}

#[test]
fn types_are_read_as_text_and_times() {
    let schema = "message ratings { required int32 user; optional binary item (UTF8); required float rating; \
                  required int64 timestamp (TIMESTAMP(MILLIS,true)); required boolean flag; \
                  required int32 day (DATE); required int96 old; required int32 small (INTEGER(8,false)); \
                  required int64 nano (TIMESTAMP(NANOS,false)); required int64 micro (TIMESTAMP_MICROS); }";
    let mut old = Int96::new();
    // 2 s after noon of 1970-01-02; Julian days begin at noon, Spark counts them from midnight.
    old.set_data(2_000_000_000, 0, 2_440_589);
    let group = vec![
        Column::I32(vec![-5, 6]),
        Column::Maybe(vec![Some("é"), Some("b")]),
        Column::F32(vec![0.1, 4.0]),
        Column::I64(vec![1_312_231_317_999, -1]),
        Column::Bool(vec![true, false]),
        Column::I32(vec![1, -1]),
        Column::I96(vec![old, old]),
        Column::I32(vec![-1, 5]),
        Column::I64(vec![1_999_999_999, -1]),
        Column::I64(vec![1_999_999, -1]),
    ];
    let raw = Raw::new(&[]);
    write(&raw.path().join("ratings.parquet"), schema, Compression::SNAPPY, &[group]);
    let columns = mapping(|c| {
        // A unit that Parquet's own timestamps do not need.
        c.time_unit = TimeUnit::Iso8601;
        c.item_texts = ["flag", "day", "old", "small", "nano", "micro"].map(str::to_owned).to_vec();
    });
    let tables = read(&raw, &columns).unwrap();
    assert_eq!(rows(&tables), [("-5", "é", 0.1, 1_312_231_317), ("6", "b", 4.0, -1)]);
    let values = |name| text(&tables.items, name).to_vec();
    assert_eq!(values("flag"), ["true", "false"]);
    // As people write them, where they are no times of ratings.
    assert_eq!(values("day"), ["1970-01-02", "1969-12-31"]);
    assert_eq!(values("old"), ["1970-01-02T00:00:02Z"; 2]);
    assert_eq!(values("small"), ["4294967295", "5"]);
    let ends = ["1970-01-01T00:00:01.999999999Z", "1969-12-31T23:59:59.999999999Z"];
    assert_eq!(values("nano"), ends);
    assert_eq!(values("micro"), ends.map(|end| end.replace("999999999Z", "999999Z")));
    assert_eq!(ratings(&tables, |r| r.timestamp), [1_312_231_317_999_000_000, -1_000_000]);
    // Every type of times, to its last tick.
    for (column, expected) in [
        ("day", [86_400_000_000_000, -86_400_000_000_000]),
        ("old", [86_402_000_000_000, 86_402_000_000_000]),
        ("nano", [1_999_999_999, -1]),
        ("micro", [1_999_999_000, -1_000]),
    ] {
        let columns = mapping(|c| c.timestamp = column.into());
        assert_eq!(ratings(&read(&raw, &columns).unwrap(), |r| r.timestamp), expected, "{column}");
    }
}

/// As pandas writes a column of integers that has a gap.
#[test]
fn numbers_that_are_none_are_missing() {
    let schema = "message r { required double user; required float item; required float rating; \
                  required int64 timestamp; }";
    let raw = Raw::new(&[]);
    let group = vec![
        Column::F64(vec![f64::NAN, 2.0, 3.0]),
        Column::F32(vec![1.0, f32::NAN, 1.0]),
        Column::F32(vec![1.0, 1.0, 1.0]),
        Column::I64(vec![1, 1, 1]),
    ];
    write(&raw.path().join("ratings.parquet"), schema, Compression::SNAPPY, &[group]);
    let refused = read(&raw, &mapping(|_| {})).unwrap_err().to_string();
    assert!(refused.contains("column \"user\": missing"), "{refused}");
    let tables = read(&raw, &mapping(|c| c.missing = Unusable::Drop)).unwrap();
    assert_eq!(rows(&tables), [("3", "1", 1.0, 1)]);
    assert_eq!(tables.dropped[0].count, 2);
}

#[test]
fn nulls_are_empty_in_texts_and_missing_in_ids() {
    let schema = "message r { required int32 user; optional binary item (UTF8); required int32 rating; \
                  required int64 timestamp; optional binary title (UTF8); }";
    let write_items = |items: Vec<Option<&'static str>>| {
        let raw = Raw::new(&[]);
        let group = vec![
            Column::I32(vec![1, 2, 3]),
            Column::Maybe(items),
            Column::I32(vec![1, 1, 1]),
            Column::I64(vec![1, 1, 1]),
            Column::Maybe(vec![None, Some("B"), None]),
        ];
        write(&raw.path().join("ratings.parquet"), schema, Compression::SNAPPY, &[group]);
        raw
    };
    let columns = mapping(|c| c.item_texts = vec!["title".into()]);
    let tables = read(&write_items(vec![Some("a"), Some("b"), Some("c")]), &columns).unwrap();
    assert_eq!(text(&tables.items, "title"), ["", "B", ""]);
    let gap = write_items(vec![Some("a"), None, Some("c")]);
    refused(read(&gap, &columns), &["ratings.parquet:2: column \"item\": missing; data.columns.m"]);
    let tables = read(&gap, &ColumnMapping { missing: Unusable::Drop, ..columns }).unwrap();
    assert_eq!(rows(&tables), [("1", "a", 1.0, 1), ("3", "c", 1.0, 1)]);
    assert_eq!(dropped(&tables), [("ratings without a value", 1)]);
}

#[test]
fn a_directory_of_a_spark_job_is_one_table() {
    let raw = Raw::new(&[]);
    let dir = raw.path().join("ratings.parquet");
    write(
        &dir.join("part-00001-x.snappy.parquet"),
        RATINGS,
        Compression::SNAPPY,
        &[group(&[("w", 3, 3.0, 3)])],
    );
    write(
        &dir.join("part-00000-x.snappy.parquet"),
        RATINGS,
        Compression::SNAPPY,
        &[group(&[("u", 1, 1.0, 1)]), group(&[("v", 2, 2.0, 2)])],
    );
    raw.put("ratings.parquet/_SUCCESS", b"");
    raw.put("ratings.parquet/.part-00000-x.snappy.parquet.crc", b"crc");
    let tables = raw.read(Parquet).unwrap();
    assert_eq!(rows(&tables), [("u", "1", 1.0, 1), ("v", "2", 2.0, 2), ("w", "3", 3.0, 3)]);
    let files = raw.files(Parquet).unwrap();
    let names: Vec<&str> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["part-00000-x.snappy.parquet", "part-00001-x.snappy.parquet"]);
    // Errors name the part and its row; of two rows that repeat each other, rows of the whole table.
    write(
        &dir.join("part-00002.parquet"),
        RATINGS,
        Compression::SNAPPY,
        &[group(&[("w", 4, 3.0, 3), ("", 3, 3.0, 3)])],
    );
    raw.refused(Parquet, &["part-00002.parquet:2: column \"user\": missing"]);
    write(
        &dir.join("part-00002.parquet"),
        RATINGS,
        Compression::SNAPPY,
        &[group(&[("w", 4, 3.0, 3), ("w", 3, 3.0, 3)])],
    );
    raw.refused(Parquet, &["ratings.parquet:5: line: the same line as line 3"]);
    raw.remove("ratings.parquet/part-00002.parquet");
    raw.put("ratings.parquet/notes.txt", b"");
    raw.refused(Parquet, &["notes.txt", "move it away"]);
}

#[test]
fn directories_called_key_and_value_are_columns() {
    let schema =
        "message r { required binary user (UTF8); required int64 item; required int64 timestamp; }";
    let raw = Raw::new(&[]);
    let part = |dir: &str, user: &'static str| {
        let group = vec![Column::Text(vec![user]), Column::I64(vec![1]), Column::I64(vec![1])];
        let path = raw.path().join("table").join(dir).join("part-0.parquet");
        write(&path, schema, Compression::SNAPPY, &[group]);
    };
    part("rating=3/place=a%3Ab", "u");
    part("rating=4/place=__HIVE_DEFAULT_PARTITION__", "v");
    let columns = mapping(|c| {
        c.ratings = "table".into();
        c.user_fields = vec!["place".into()];
    });
    let tables = read(&raw, &columns).unwrap();
    assert_eq!(rows(&tables), [("u", "1", 3.0, 1), ("v", "1", 4.0, 1)]);
    assert_eq!(field(&tables.users, "place"), ["a:b", ""]);
    assert_eq!(raw::files(Parquet, raw.path(), &columns).unwrap().len(), 2);
    let wrong = ColumnMapping { user_fields: vec!["town".into()], ..columns.clone() };
    refused(
        read(&raw, &wrong),
        &[
            "data.columns.user_fields names the column \"town\"",
            "\"user\", \"item\", \"timestamp\", \"rating\", \"place\"",
        ],
    );
    let constant = ColumnMapping {
        user: "place".into(),
        item: "place".into(),
        timestamp: String::new(),
        user_fields: Vec::new(),
        ..columns.clone()
    };
    refused(read(&raw, &constant), &["every column of data.columns is a directory's name"]);
    std::fs::create_dir(raw.path().join("table/elsewhere")).unwrap();
    refused(read(&raw, &columns), &["elsewhere", "key=value"]);
}

#[test]
fn missing_and_unreadable_columns_are_named() {
    let raw = Raw::new(&[]);
    raw.refused(Parquet, &["ratings.parquet", "data.columns.ratings"]);
    std::fs::create_dir(raw.path().join("ratings.parquet")).unwrap();
    raw.refused(Parquet, &["no *.parquet file"]);
    std::fs::remove_dir(raw.path().join("ratings.parquet")).unwrap();
    let schema = "message r { required int32 user; required int32 item (TIME(MILLIS,true)); \
                  required int32 rating; required group nested { required int32 user_id; } }";
    let four = vec![Column::I32(vec![1]); 4];
    write(&raw.path().join("ratings.parquet"), schema, Compression::SNAPPY, &[four]);
    raw.refused(
        Parquet,
        &["the column \"item\" (data.columns.item) is of type TIME(MILLIS), which"],
    );
    let columns = mapping(|c| c.item = "nested".into());
    refused(read(&raw, &columns), &["the column \"nested\" (data.columns.item) is of type struct"]);
    let columns = mapping(|c| c.item = "user_id".into());
    refused(read(&raw, &columns), &["\"user\", \"item\", \"rating\", \"nested\""]);
    let sample =
        raw::sample(Parquet, &raw.path().join("ratings.parquet"), &ColumnMapping::default())
            .unwrap();
    let found: Vec<_> =
        sample.columns.iter().map(|c| (c.name.as_str(), c.readable, c.examples().len())).collect();
    assert_eq!(
        found,
        [("user", true, 1), ("item", false, 0), ("rating", true, 1), ("nested", false, 0)]
    );
}

#[test]
fn empty_and_foreign_files_are_refused() {
    let raw = Raw::new(&[]);
    for bytes in [&b""[..], b"PAR1", b"PAR1PAR1", b"user,item\n1,2\n", &[0; 64]] {
        raw.put("ratings.parquet", bytes);
        raw.refused(Parquet, &["ratings.parquet", "no Parquet file"]);
    }
    raw.put("ratings.parquet", b"PAR1\x15\0\0\0\0PARE");
    raw.refused(Parquet, &["ratings.parquet", "encrypted"]);
    write(&raw.path().join("ratings.parquet"), RATINGS, Compression::SNAPPY, &[]);
    raw.refused(Parquet, &["ratings.parquet", "no rows"]);
}

/// A file with everything that a damaged byte can be in.
fn whole(codec: Compression) -> Vec<u8> {
    let raw = Raw::new(&[]);
    let path = raw.path().join("ratings.parquet");
    let groups = [group(&[("u", 10, 4.5, 7), ("v", 11, 1.0, 8)]), group(&[("u", 11, 3.0, 9)])];
    write(&path, RATINGS, codec, &groups);
    std::fs::read(path).unwrap()
}

#[test]
fn truncated_files_are_refused() {
    let raw = Raw::new(&[]);
    let bytes = whole(Compression::SNAPPY);
    for len in 0..bytes.len() {
        raw.put("ratings.parquet", &bytes[..len]);
        raw.refused(Parquet, &["ratings.parquet"]);
    }
}

#[test]
fn damaged_files_never_panic() {
    let raw = Raw::new(&[]);
    for codec in [Compression::UNCOMPRESSED, Compression::SNAPPY, gzip()] {
        let bytes = whole(codec);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= if at % 2 == 0 { 0xff } else { 0x81 };
            raw.put("ratings.parquet", &damaged);
            // A changed value may be a value too; a panic or a huge allocation may not be.
            let _ = raw.read(Parquet);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_damage_never_panics(
        damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let raw = Raw::new(&[]);
        let mut bytes = whole(Compression::SNAPPY);
        for (at, byte) in damage {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        raw.put("ratings.parquet", &bytes);
        let _ = raw.read(Parquet);
        raw.put("ratings.parquet", &[b"PAR1", &tail[..], b"PAR1"].concat());
        let _ = raw.read(Parquet);
    }
}
