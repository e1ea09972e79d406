//! Any CSV by a mapping of its columns.

use proptest::prelude::*;
use reclora_storage::raw::DatasetFormat::Csv;
use reclora_storage::raw::{self, ColumnMapping, RawTables, TextEncoding, TimeUnit, Unmatched};

use crate::common::Raw;
use crate::{dropped, field, names, refused, rows, text};

fn read(raw: &Raw, columns: &ColumnMapping) -> reclora_storage::Result<RawTables> {
    raw::read_mapped(Csv, raw.path(), columns)
}

/// A mapping with some columns of its own.
fn mapping(change: impl FnOnce(&mut ColumnMapping)) -> ColumnMapping {
    let mut columns = ColumnMapping::default();
    change(&mut columns);
    columns
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn the_default_mapping_reads_columns_of_those_names() {
    let raw = Raw::new(&[(
        "ratings.csv",
        "item,timestamp,user,note,rating\nb,7,u,\"x, y\",4.5\na,-3,v,,-1\n",
    )]);
    let tables = raw.read(Csv).unwrap();
    assert_eq!(rows(&tables), [("u", "b", 4.5, 7), ("v", "a", -1.0, -3)]);
    assert_eq!(tables.rating_levels, [-1.0, 4.5]);
    assert!(names(&tables.users).is_empty() && names(&tables.items).is_empty());
    let files = raw::files(Csv, raw.path()).unwrap();
    assert_eq!(files, [raw.path().join("ratings.csv")]);
}

#[test]
fn columns_can_be_anywhere_under_any_name() {
    let raw = Raw::new(&[
        (
            "log.tsv",
            "who\twhen\twhat\tstars\n1\t2011-08-01T20:41:57Z\tx\t3\n2\t2011-08-01\ty\t3.0\n",
        ),
        (
            "things.tsv",
            "id\tname\tkind\nx\tThe X\tbook\ny\t\"Y \"\"why\"\"\"\tfilm\nz\tUnseen\tfilm\n",
        ),
        ("people.tsv", "who\tcity\n1\tOslo\n2\tRome\n"),
    ]);
    let columns = mapping(|c| {
        c.ratings = "log.tsv".into();
        c.users = "people.tsv".into();
        c.items = "things.tsv".into();
        (c.user, c.item) = ("who".into(), "what".into());
        (c.rating, c.timestamp) = ("stars".into(), "when".into());
        c.item_key = "id".into();
        c.time_unit = TimeUnit::Iso8601;
        c.delimiter = "\t".into();
        c.user_fields = list(&["city"]);
        c.item_fields = list(&["kind", "name"]);
        c.item_texts = list(&["name"]);
    });
    let tables = read(&raw, &columns).unwrap();
    assert_eq!(rows(&tables), [("1", "x", 3.0, 1_312_231_317), ("2", "y", 3.0, 1_312_156_800)]);
    assert_eq!(names(&tables.items), ["kind", "name"]);
    assert_eq!(field(&tables.items, "kind"), ["book", "film", "film"]);
    assert_eq!(text(&tables.items, "name"), ["The X", "Y \"why\"", "Unseen"]);
    assert_eq!(field(&tables.users, "city"), ["Oslo", "Rome"]);
    let files = raw::files_mapped(Csv, raw.path(), &columns).unwrap();
    let expected = ["people.tsv", "things.tsv", "log.tsv"].map(|name| raw.path().join(name));
    assert_eq!(files, expected);
}

#[test]
fn what_is_known_of_items_may_stand_in_the_ratings() {
    let text_of = "user,item,rating,timestamp,title\n1,a,1,1,A\n2,b,2,2,B\n1,b,1,3,B\n";
    let raw = Raw::new(&[("ratings.csv", text_of)]);
    let columns = mapping(|c| {
        c.item_fields = list(&["title"]);
        c.item_texts = list(&["title"]);
    });
    let tables = read(&raw, &columns).unwrap();
    assert_eq!(field(&tables.items, "title"), ["A", "B"]);
    assert_eq!(text(&tables.items, "title"), ["A", "B"]);
    raw.put("ratings.csv", text_of.replace("3,B", "3,C").as_bytes());
    refused(
        read(&raw, &columns),
        &["ratings.csv:4: column \"title\": \"C\" where line 3 has \"B\"", "data.columns.items"],
    );
}

#[test]
fn without_a_header_columns_are_numbers() {
    let raw = Raw::new(&[("ratings.csv", "u;i;2;1000500\nv;i;1;-1\n")]);
    let columns = mapping(|c| {
        (c.user, c.item, c.rating, c.timestamp) = ("1".into(), "2".into(), "3".into(), "4".into());
        c.header = false;
        c.delimiter = ";".into();
        c.time_unit = TimeUnit::Ms;
    });
    let tables = read(&raw, &columns).unwrap();
    assert_eq!(rows(&tables), [("u", "i", 2.0, 1000), ("v", "i", 1.0, -1)]);
    let wrong = ColumnMapping { item: "5".into(), ..columns };
    refused(
        read(&raw, &wrong),
        &[
            "ratings.csv: data.columns.item names the column \"5\"",
            "without a header",
            "\"1\", \"2\", \"3\", \"4\"",
        ],
    );
}

#[test]
fn without_a_time_ratings_are_untimed() {
    let raw = Raw::new(&[("ratings.csv", "user,item,rating\nu,i,2\n")]);
    refused(
        read(&raw, &ColumnMapping::default()),
        &["data.columns.timestamp names the column \"timestamp\""],
    );
    let tables = read(&raw, &mapping(|c| c.timestamp.clear())).unwrap();
    assert!(tables.untimed);
    assert_eq!(rows(&tables), [("u", "i", 2.0, 0)]);
}

#[test]
fn encodings_are_what_the_mapping_says() {
    let raw = Raw::new(&[]);
    raw.put("ratings.csv", b"user,item,rating,timestamp\nJos\xe9,i,1,1\n");
    refused(raw.read(Csv), &["ratings.csv:2: column \"user\": not valid UTF-8 (byte 3"]);
    let columns = mapping(|c| c.encoding = TextEncoding::Latin1);
    assert_eq!(read(&raw, &columns).unwrap().users.keys, ["José"]);
    raw.put("ratings.csv", "\u{feff}user,item,rating,timestamp\r\nJosé,i,1,1\r\n".as_bytes());
    assert_eq!(raw.read(Csv).unwrap().users.keys, ["José"]);
    raw.put("ratings.csv", b"\xff\xfeu\0s\0e\0r\0");
    refused(raw.read(Csv), &["ratings.csv:1: column \"1\": not valid UTF-8"]);
}

#[test]
fn ratings_of_unknown_items_are_refused_or_counted() {
    let raw = Raw::new(&[
        ("ratings.csv", "user,item,rating,timestamp\nu,a,1,1\nu,b,1,1\nv,c,1,1\n"),
        ("items.csv", "item,name\na,A\n"),
    ]);
    let columns = mapping(|c| c.items = "items.csv".into());
    refused(
        read(&raw, &columns),
        &["ratings.csv:3: column \"item\": \"b\" is not in ", "items.csv"],
    );
    let tables = read(&raw, &ColumnMapping { unmatched: Unmatched::Drop, ..columns }).unwrap();
    assert_eq!(rows(&tables), [("u", "a", 1.0, 1)]);
    assert_eq!(dropped(&tables), [("ratings of items that the table of items lacks", 2)]);
}

#[test]
fn bad_values_are_named_by_line_and_column() {
    let raw = Raw::new(&[]);
    let check = |line: &str, words: &[&str]| {
        raw.put("ratings.csv", format!("user,item,rating,timestamp\nu,i,1,1\n{line}\n").as_bytes());
        refused(raw.read(Csv), &[&["ratings.csv:3: "], words].concat());
    };
    check("u,i2,1", &["line: 3 columns where the layout has 4"]);
    check("u,i2,1,1,1", &["line: 5 columns"]);
    check(",i2,1,1", &["column \"user\": empty"]);
    check("u,,1,1", &["column \"item\": empty"]);
    check("u,i2,x,1", &["column \"rating\": \"x\" is not a number"]);
    check("u,i2,,1", &["column \"rating\": \"\" is not a number"]);
    check("u,i2,NaN,1", &["column \"rating\": \"NaN\" is not a finite number"]);
    check("u,i2,1e99,1", &["column \"rating\": \"1e99\" is not a finite number"]);
    check(
        "u,i2,1,1.5",
        &["column \"timestamp\": \"1.5\" is not a time", "time_unit = \"s\"", "whole seconds"],
    );
    check("u,i2,1,", &["column \"timestamp\": \"\" is not a time"]);
    check("u,i,1,1", &["line: the same line as line 2"]);
    check("u,i,1,2", &["has rated item i already, in line 2"]);
    let iso = mapping(|c| c.time_unit = TimeUnit::Iso8601);
    raw.put("ratings.csv", b"user,item,rating,timestamp\nu,i,1,2011-13-01\n");
    refused(
        read(&raw, &iso),
        &[
            "\"2011-13-01\" is not a time: data.columns.time_unit = \"iso8601\"",
            "2011-08-01T20:41:57Z",
        ],
    );
}

#[test]
fn too_many_levels_say_how_to_bin() {
    let lines = |n: u32| -> String {
        (0..n).map(|i| format!("u,{i},{},1\n", f64::from(i) / 8.0)).collect()
    };
    let raw = Raw::new(&[]);
    raw.put("ratings.csv", format!("user,item,rating,timestamp\n{}", lines(256)).as_bytes());
    assert_eq!(raw.read(Csv).unwrap().rating_levels.len(), 256);
    raw.put("ratings.csv", format!("user,item,rating,timestamp\n{}", lines(257)).as_bytes());
    refused(
        raw.read(Csv),
        &[
            "ratings.csv:258: column \"rating\"",
            "\"32\" is the 257th distinct rating",
            "round(2 * rating) / 2",
        ],
    );
}

#[test]
fn missing_and_doubled_columns_are_named() {
    let raw = Raw::new(&[("ratings.csv", "userId,item,rating,timestamp\nu,i,1,1\n")]);
    refused(
        raw.read(Csv),
        &[
            "data.columns.user names the column \"user\"",
            "\"userId\", \"item\", \"rating\", \"timestamp\"",
        ],
    );
    raw.put("ratings.csv", b"user,item,item,rating,timestamp\nu,i,j,1,1\n");
    refused(raw.read(Csv), &["two columns are called \"item\""]);
    raw.put("ratings.csv", b"");
    refused(raw.read(Csv), &["ratings.csv", "no rows"]);
    raw.put("ratings.csv", b"user,item,rating,timestamp\n");
    refused(raw.read(Csv), &["ratings.csv", "no rows"]);
    raw.remove("ratings.csv");
    refused(raw.read(Csv), &["has neither ratings.csv nor ratings.csv.gz"]);
}

#[test]
fn mappings_that_make_no_sense_are_named() {
    let raw = Raw::new(&[("ratings.csv", "user,item,rating,timestamp\nu,i,1,1\n")]);
    type Change = fn(&mut ColumnMapping);
    let cases: [(Change, &str); 10] = [
        (
            |c| c.ratings = "/etc/passwd".into(),
            "data.columns.ratings: \"/etc/passwd\" is not a path inside",
        ),
        (|c| c.items = "../items.csv".into(), "data.columns.items: "),
        (|c| c.user.clear(), "data.columns.user: "),
        (
            |c| c.delimiter = "::".into(),
            "data.columns.delimiter: \"::\" is not one ASCII character",
        ),
        (|c| c.delimiter = "é".into(), "data.columns.delimiter"),
        (|c| c.delimiter = "\"".into(), "data.columns.delimiter"),
        (
            |c| c.item_fields = list(&["x", "x"]),
            "data.columns.item_fields: names the column \"x\" twice",
        ),
        (|c| c.item_fields = list(&["item"]), "data.columns.item_fields: names \"item\""),
        (|c| c.user_texts = list(&[""]), "data.columns.user_texts"),
        (|c| c.item_key = "id".into(), "data.columns.item_key: is for a table of its own"),
    ];
    for (change, words) in cases {
        refused(read(&raw, &mapping(change)), &[words]);
    }
}

#[test]
fn an_open_quote_does_not_fill_the_memory() {
    let raw = Raw::new(&[]);
    let mut text = b"user,item,rating,timestamp\n\"u,i,1,1\n".to_vec();
    text.extend(vec![b'x'; 40 << 20]);
    raw.put("ratings.csv", &text);
    refused(raw.read(Csv), &["ratings.csv:2: line: longer than", "a quote that is never closed"]);
    let long = format!("user,item,rating,timestamp\nu,{},1,1\n", "i".repeat(2 << 20));
    raw.put("ratings.csv", long.as_bytes());
    refused(raw.read(Csv), &["ratings.csv:2: column \"item\": longer than"]);
}

#[test]
fn truncated_gzip_is_refused() {
    let raw = Raw::new(&[]);
    let text: String = (0..50).map(|i| format!("u,{i},1,{i}\n")).collect();
    let whole =
        raw.put_gz("ratings.csv.gz", format!("user,item,rating,timestamp\n{text}").as_bytes());
    assert_eq!(raw.read(Csv).unwrap().ratings.user.len(), 50);
    for len in 1..whole.len() {
        raw.put("ratings.csv.gz", &whole[..len]);
        refused(raw.read(Csv), &["ratings.csv.gz"]);
    }
}

#[test]
fn a_sample_shows_columns_and_first_rows() {
    let raw = Raw::new(&[("ratings.csv", "a,b\n1,x\n2,y\n3,z\n4,w\n")]);
    let sample =
        raw::sample(Csv, &raw.path().join("ratings.csv"), &ColumnMapping::default()).unwrap();
    assert_eq!(sample.columns, ["a", "b"]);
    assert_eq!(sample.rows, [["1", "x"], ["2", "y"], ["3", "z"]]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_files_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        text in "[0-9ui,;\"\n\r]{0,120}",
        header in any::<bool>(),
        latin1 in any::<bool>(),
    ) {
        let raw = Raw::new(&[]);
        let columns = mapping(|c| {
            c.item_texts = list(&["rating"]);
            c.encoding = if latin1 { TextEncoding::Latin1 } else { TextEncoding::Utf8 };
        });
        let start = if header { "user,item,rating,timestamp\n" } else { "" };
        for content in [&bytes[..], text.as_bytes()] {
            raw.put("ratings.csv", &[start.as_bytes(), content].concat());
            let _ = read(&raw, &columns);
            let _ = raw::sample(Csv, &raw.path().join("ratings.csv"), &columns);
        }
    }

    /// Whatever is written comes back.
    #[test]
    fn written_rows_come_back(
        ratings in proptest::collection::btree_map(("[a-z,\" \né]{1,6}", "[A-Z]{1,3}"), (-9_i32..9, any::<i32>()), 1..12)
    ) {
        let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut text = "user,item,rating,timestamp\n".to_owned();
        for ((user, item), (stars, time)) in &ratings {
            text += &format!("{},{},{},{}\n", quote(user), quote(item), f64::from(*stars) / 2.0, time);
        }
        let raw = Raw::new(&[("ratings.csv", &text)]);
        let tables = raw.read(Csv).unwrap();
        let expected: Vec<_> = ratings
            .iter()
            .map(|((user, item), (stars, time))| {
                (user.as_str(), item.as_str(), *stars as f32 / 2.0, i64::from(*time))
            })
            .collect();
        prop_assert_eq!(rows(&tables), expected);
    }
}
