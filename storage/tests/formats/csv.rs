//! Any CSV by a mapping of its columns.

use proptest::prelude::*;
use reclora_storage::protocol::{Prepared, prepare};
use reclora_storage::raw::DatasetFormat::Csv;
use reclora_storage::raw::{
    self, ColumnMapping, Duplicates, RawTables, TextEncoding, TimeUnit, Unusable,
};
use reclora_storage::spill::Spill;

use super::{dropped, field, names, refused, rows, text};
use crate::common::{Raw, config, ratings};

fn read(raw: &Raw, columns: &ColumnMapping) -> reclora_storage::Result<RawTables> {
    raw::read(Csv, raw.path(), columns)
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
    let files = raw.files(Csv).unwrap();
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
    let files = raw::files(Csv, raw.path(), &columns).unwrap();
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
    raw.put("ratings.csv", b"user,item,rating,\xff\n");
    refused(raw.read(Csv), &["ratings.csv:1: column \"4\": not valid UTF-8"]);
}

#[test]
fn yes_and_no_are_one_and_zero() {
    let raw = Raw::new(&[(
        "ratings.csv",
        "user,item,rating,timestamp\nu,a,True,1\nu,b,false,2\nu,c,TRUE,3\nu,d,0.0,4\n",
    )]);
    let tables = raw.read(Csv).unwrap();
    assert_eq!(tables.rating_levels, [0.0, 1.0]);
    assert_eq!(ratings(&tables, |r| r.level), [1, 0, 1, 0]);
    raw.put("ratings.csv", b"user,item,rating,timestamp\nu,a,yes,1\n");
    raw.refused(Csv, &["ratings.csv:2: column \"rating\": \"yes\" is not a number"]);
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
        &[
            "2 rows: not in its table (first: line 3, column \"item\": \"b\" is not in ",
            "items.csv",
        ],
    );
    let tables = read(&raw, &ColumnMapping { unmatched: Unusable::Drop, ..columns }).unwrap();
    assert_eq!(rows(&tables), [("u", "a", 1.0, 1)]);
    assert_eq!(dropped(&tables), [("ratings of items that the table of items lacks", 2)]);
}

/// Rows of users who rate items in another order than that of their ids, `step` nanoseconds apart.
fn shuffled(step: i64, time: impl Fn(i64) -> String) -> String {
    let mut text = "user,item,rating,timestamp\n".to_owned();
    for user in 1..7_i64 {
        for item in 0..8_i64 {
            let place = (item * 3 + user) % 8;
            let nanos = 1_600_000_000_000_000_000 + user * 86_400_000_000_000 + place * step;
            let stars = 1 + (place * user) % 5;
            text += &format!("{user},{item},{stars},{}\n", time(nanos));
        }
    }
    text
}

/// Whatever the unit, the order is that of the whole time.
#[test]
fn d4_times_finer_than_a_second_are_sorted_by() {
    let prepared = |unit: TimeUnit, text: &str| -> Prepared {
        let raw = Raw::new(&[("ratings.csv", text)]);
        let columns = mapping(|c| c.time_unit = unit);
        prepare(&read(&raw, &columns).unwrap(), &config(2, 2)).unwrap()
    };
    let order = |p: &Prepared| (p.item.in_memory().to_vec(), p.rating.in_memory().to_vec());
    let whole =
        prepared(TimeUnit::S, &shuffled(80_000_000_000, |t| (t / 1_000_000_000).to_string()));
    let ms = 1_000_000;
    let iso = |t: i64| {
        let since = t - 1_600_000_000_000_000_000;
        let (day, nanos) = (since / 86_400_000_000_000, since % 86_400_000_000_000);
        format!("2020-09-{:02}T12:26:40.{nanos:09}Z", 13 + day)
    };
    let cases = [
        (TimeUnit::Ms, shuffled(80 * ms, |t| (t / ms).to_string())),
        (TimeUnit::Us, shuffled(80 * 1_000, |t| (t / 1_000).to_string())),
        (TimeUnit::Ns, shuffled(1, |t| t.to_string())),
        (TimeUnit::Iso8601, shuffled(1, iso)),
        (
            TimeUnit::S,
            shuffled(80 * ms, |t| format!("{}.{:09}", t / 1_000_000_000, t % 1_000_000_000)),
        ),
    ];
    for (unit, text) in cases {
        let fine = prepared(unit, &text);
        assert_eq!(order(&fine), order(&whole), "{unit:?}");
        assert_eq!(fine.counts.positive_samples, whole.counts.positive_samples);
        // Kept are seconds.
        let seconds = fine.timestamp.in_memory();
        assert!(
            seconds.is_sorted() && seconds[0] % 86_400 == whole.timestamp.in_memory()[0] % 86_400
        );
    }
}

#[test]
fn whole_seconds_may_be_written_as_floats_and_dates_with_a_zone() {
    let first = |unit: TimeUnit, time: &str| {
        let text = format!("user,item,rating,timestamp\nu,i,1,{time}\n");
        let tables = read(&Raw::new(&[("ratings.csv", &text)]), &mapping(|c| c.time_unit = unit));
        ratings(&tables.unwrap(), |r| r.timestamp)[0]
    };
    assert_eq!(first(TimeUnit::S, "1600004773.0"), 1_600_004_773_000_000_000);
    assert_eq!(first(TimeUnit::S, "1600004773.25"), 1_600_004_773_250_000_000);
    for time in ["2020-09-13 13:46:13 UTC", "2020-09-13 06:46:13.000 -0700", "20200913T134613Z"] {
        assert_eq!(first(TimeUnit::Iso8601, time), 1_600_004_773_000_000_000, "{time}");
    }
}

#[test]
fn another_unit_than_the_times_have_is_refused_with_the_one_that_fits() {
    let raw = Raw::new(&[("ratings.csv", "user,item,rating,timestamp\nu,i,1,1600086400400\n")]);
    refused(
        raw.read(Csv),
        &[
            "ratings.csv:2: column \"timestamp\": 1600086400400 is in the year 52674",
            "as milliseconds it is 2020-09-14T12:26:40Z: data.columns.time_unit = \"ms\"",
        ],
    );
}

fn read_keeping(raw: &Raw, columns: &ColumnMapping, duplicates: Duplicates) -> RawTables {
    raw::read_within(Csv, raw.path(), columns, duplicates, &Spill::never()).unwrap()
}

#[test]
fn of_ratings_given_twice_the_first_or_last_is_kept() {
    let raw = Raw::new(&[(
        "ratings.csv",
        "user,item,rating,timestamp\nu,a,1,50\nu,b,2,7\nu,a,3,20\nv,a,4,1\nu,b,5,7\nu,a,6,40\n",
    )]);
    refused(
        raw.read(Csv),
        &[
            "ratings.csv: 3 rows can't be used\n  3 ratings given twice (first: line 4: user u has rated item a \
             already, in line 2; data.duplicates = \"first\"",
        ],
    );
    let columns = ColumnMapping::default();
    let kept = |duplicates| {
        let tables = read_keeping(&raw, &columns, duplicates);
        assert_eq!(dropped(&tables), [("ratings of items that their user has rated twice", 3)]);
        rows(&tables).iter().map(|(u, i, r, t)| format!("{u} {i} {r} {t}")).collect::<Vec<_>>()
    };
    assert_eq!(kept(Duplicates::First), ["u b 2 7", "u a 3 20", "v a 4 1"]);
    assert_eq!(kept(Duplicates::Last), ["u a 1 50", "v a 4 1", "u b 5 7"]);
    // Without times the rows decide.
    let untimed = mapping(|c| c.timestamp.clear());
    let stars = |duplicates| -> Vec<f32> {
        rows(&read_keeping(&raw, &untimed, duplicates)).iter().map(|row| row.2).collect()
    };
    assert_eq!(stars(Duplicates::First), [1.0, 2.0, 4.0]);
    assert_eq!(stars(Duplicates::Last), [4.0, 5.0, 6.0]);
}

#[test]
fn of_an_id_defined_twice_the_first_or_last_row_is_kept() {
    let raw = Raw::new(&[
        ("ratings.csv", "user,item,rating,timestamp\nu,a,1,1\nu,b,2,2\n"),
        ("items.csv", "item,name\na,A\nb,B\na,C\n"),
    ]);
    let columns = mapping(|c| {
        c.items = "items.csv".into();
        c.item_texts = list(&["name"]);
    });
    refused(
        read(&raw, &columns),
        &["items.csv:4: item: \"a\" is defined already, in line 2; data.dup"],
    );
    for (duplicates, names) in [(Duplicates::First, ["A", "B"]), (Duplicates::Last, ["C", "B"])] {
        let tables = read_keeping(&raw, &columns, duplicates);
        assert_eq!(text(&tables.items, "name"), names);
        assert_eq!(dropped(&tables), [("rows of items.csv whose id another row has", 1)]);
    }
}

#[test]
fn rows_without_a_value_are_refused_or_counted() {
    let header = "user,item,rating,timestamp\nu,a,1,1\n";
    let gaps = "u,b,,2\n,c,1,3\nu,,1,4\nu,d,NULL,5\nu,e,1,NaN\nNaN,NULL,2,6\nu,f,9,\n";
    let raw = Raw::new(&[("ratings.csv", &format!("{header}{gaps}"))]);
    refused(
        raw.read(Csv),
        &[
            "ratings.csv: 6 rows can't be used\n  2 rows: without a value (first: line 3, column \"rating\": missing;",
            "\n  1 row: without a value (first: line 4, column \"user\": missing;",
            "\n  2 rows: without a value (first: line 7, column \"timestamp\": missing (\"NaN\");",
        ],
    );
    let columns = mapping(|c| c.missing = Unusable::Drop);
    let tables = read(&raw, &columns).unwrap();
    // What stands for a missing number may be an id; a level that only dropped rows have is none.
    assert_eq!(rows(&tables), [("u", "a", 1.0, 1), ("NaN", "NULL", 2.0, 6)]);
    assert_eq!(tables.rating_levels, [1.0, 2.0]);
    assert_eq!(dropped(&tables), [("ratings without a value", 6)]);
    raw.put("ratings.csv", b"user,item,rating,timestamp\nu,a,,1\nu,b,,1\n");
    refused(
        read(&raw, &columns),
        &["ratings.csv: no rating is left: dropped 2 ratings without a value"],
    );
}

/// Reading goes on behind what can't be used, and ends where the file is damaged.
#[test]
fn rows_that_can_not_be_used_are_counted_by_kind() {
    let raw = Raw::new(&[]);
    let text = b"user,item,rating,timestamp\nu,a,x,soon\nu,b,1\nu,c,y,1\n\xff,d,1,1\nu,e,1,never\nu,f,1,1\nu,f,1,1\nu,g,1,2600086400400\n";
    raw.put("ratings.csv", text);
    let words = [
        "ratings.csv: 7 rows can't be used\n  2 rows: not a number (first: line 2, column \"rating\": \"x\" is",
        "\n  1 row: another number of columns (first: line 3: 3 columns",
        "\n  1 row: not UTF-8 (first: line 5, column \"user\": ",
        "\n  1 row: not seconds since 1970 (first: line 6, column \"timestamp\": \"never\" is not a time",
        "\n  1 row: times that no rating has (first: line 9, column \"timestamp\": 2600086400400",
        "\n  1 rating given twice (first: line 8: the same line as line 7",
    ];
    refused(raw.read(Csv), &words);
    let packed = raw.put_gz("ratings.csv.gz", text);
    raw.remove("ratings.csv");
    raw.put("ratings.csv.gz", &packed[..packed.len() - 9]);
    refused(raw.read(Csv), &["truncated or damaged: download it again"]);
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
    check(",i2,1,1", &["column \"user\": missing; data.columns.missing = \"drop\""]);
    check("u,,1,1", &["column \"item\": missing"]);
    check("u,i2,x,1", &["column \"rating\": \"x\" is not a number"]);
    check("u,i2,,1", &["column \"rating\": missing;"]);
    check("u,i2,NaN,1", &["column \"rating\": missing (\"NaN\");"]);
    check("u,i2,inf,1", &["column \"rating\": \"inf\" is not a finite number"]);
    check("u,i2,1e99,1", &["column \"rating\": \"1e99\" is not a finite number"]);
    check(
        "u,i2,1,1.5s",
        &["column \"timestamp\": \"1.5s\" is not a time", "time_unit = \"s\" wants seconds"],
    );
    check("u,i2,1,", &["column \"timestamp\": missing;"]);
    check("u,i,1,1", &["line: the same line as line 2"]);
    check("u,i,1,2", &["has rated item i already, in line 2"]);
    let iso = mapping(|c| c.time_unit = TimeUnit::Iso8601);
    raw.put("ratings.csv", b"user,item,rating,timestamp\nu,i,1,2011-13-01\n");
    refused(
        read(&raw, &iso),
        &[
            "\"2011-13-01\" is not a time: data.columns.time_unit = \"iso8601\" wants times like",
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

/// The reader of CSV would take the rows that follow for a part of the value.
#[test]
fn a_stray_quote_swallows_no_rows() {
    let raw = Raw::new(&[]);
    let table = |name: &str, after: &str| {
        format!("user,item,rating,timestamp,name\na,b,1,1,ok\na,c,1,2,{name}\na,d,1,3,{after}\n")
    };
    for (name, after, stray) in [
        ("\"never closed", "x", true),
        ("\"never closed", "\"x\"", true),
        ("5\" disc", "\"x\"", false),
        ("\"two\nlines\"", "\"x \"\"y\"\"\"", false),
    ] {
        raw.put("ratings.csv", table(name, after).as_bytes());
        match raw.read(Csv) {
            Ok(tables) => assert!(!stray && tables.ratings.len() == 3, "{name} {after}"),
            Err(error) => {
                assert!(stray && error.to_string().contains("line 3: a quote opens"), "{error}");
            }
        }
    }
}

#[test]
fn truncated_gzip_is_refused() {
    let raw = Raw::new(&[]);
    let text: String = (0..50).map(|i| format!("u,{i},1,{i}\n")).collect();
    let whole =
        raw.put_gz("ratings.csv.gz", format!("user,item,rating,timestamp\n{text}").as_bytes());
    assert_eq!(raw.read(Csv).unwrap().ratings.len(), 50);
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
    let found: Vec<_> =
        sample.columns.iter().map(|c| (c.name.as_str(), c.kind.as_str(), c.examples())).collect();
    let [numbers, letters] = [["1", "2", "3"], ["x", "y", "z"]].map(|v| v.map(str::to_owned));
    assert_eq!(found, [("a", "integer", &numbers[..]), ("b", "text", &letters[..])]);
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
