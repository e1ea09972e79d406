//! Whole runs from every layout of raw files that the shipped experiment does not have, to the report.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use common::{fails, launch, on_data};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;

const USERS: u32 = 24;
const ITEMS: u32 = 30;
/// 1 January 2020.
const START: u32 = 1_577_836_800;

/// A rating from 1 to 5 and its time; users like the items of their own kind.
#[derive(Clone, Copy)]
struct Rating {
    user: u32,
    item: u32,
    stars: u32,
    time: u32,
}

/// Every user rates most items, in an order of their own.
fn ratings() -> Vec<Rating> {
    let mut all = Vec::new();
    for user in 0..USERS {
        for place in 0..ITEMS - user % 5 {
            let item = (place * 7 + user * 2 + user / 3) % ITEMS;
            let stars =
                if (item ^ user) & 1 == 0 { 4 + (item + user) / 2 % 2 } else { 1 + item % 3 };
            all.push(Rating { user, item, stars, time: START + (place * USERS + user) * 60 });
        }
    }
    all
}

fn gz(path: &Path, text: &str) {
    let mut out = GzEncoder::new(std::fs::File::create(path).unwrap(), Compression::fast());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap();
}

/// A text with a line for each rating.
fn lines(line: impl Fn(Rating) -> String) -> String {
    ratings().into_iter().fold(String::new(), |mut text, rating| {
        writeln!(text, "{}", line(rating)).unwrap();
        text
    })
}

/// The same for each of `count` users or items.
fn table(count: u32, line: impl Fn(u32) -> String) -> String {
    (0..count).fold(String::new(), |mut text, index| {
        writeln!(text, "{}", line(index)).unwrap();
        text
    })
}

/// Runs the experiment on the data in `dir`, with two ranks, and checks what every run ends with.
fn runs(dir: &Path, format: &str, template: &str, settings: &[&str]) {
    let config = on_data(dir, format, template);
    let run_dir = dir.join("run");
    let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap(), "--nproc-per-node", "2"];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    launch(&args).args(settings).assert().success();
    let json = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(run_dir.join(name)).unwrap()).unwrap()
    };
    let counts = &json("dataset/manifest.json")["counts"];
    let of = |name: &str| counts[name].as_u64().unwrap();
    assert_eq!(
        [of("raw_ratings"), of("users"), of("items")],
        [ratings().len() as u64, u64::from(USERS), u64::from(ITEMS)]
    );
    assert!(of("positive_samples") > 0 && of("positive_samples") < of("samples"));
    let metrics = json("predictions/metrics.json");
    for model in ["reclora", "lora", "crm", "item_mean", "logistic_regression"] {
        let metrics = &metrics["models"][model]["metrics"];
        assert!(metrics["log_loss"].as_f64().unwrap().is_finite(), "{model}: {metrics}");
    }
    assert!(std::fs::metadata(run_dir.join("report/index.html")).unwrap().len() > 10_000);
}

fn movielens_25m(dir: &Path) {
    let genres = ["Comedy|Drama", "Horror"];
    let films = table(ITEMS, |i| {
        format!("{},\"Film {i}, The (19{})\",{}", i + 1, 60 + i, genres[i as usize % 2])
    });
    std::fs::write(dir.join("movies.csv"), format!("movieId,title,genres\n{films}")).unwrap();
    let rows = lines(|r| format!("{},{},{}.0,{}", r.user + 1, r.item + 1, r.stars, r.time));
    std::fs::write(dir.join("ratings.csv"), format!("userId,movieId,rating,timestamp\n{rows}"))
        .unwrap();
}

#[test]
fn movielens_25m_runs_to_the_report() {
    let dir = tempfile::tempdir().unwrap();
    movielens_25m(dir.path());
    runs(dir.path(), "movielens_25m", "movielens_25m", &["data.label={greater=3.0}"]);
}

#[test]
fn goodreads_runs_to_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let book = |i: u32| {
        let shelf = ["poetry", "crime"][i as usize % 2];
        format!(
            r#"{{"book_id": "{i}", "title": "Book \"{i}\"", "authors": [], "publisher": "A House",
               "popular_shelves": [{{"count": "5", "name": "{shelf}"}}], "average_rating": "4.1",
               "publication_year": "19{}", "work_id": "{i}"}}"#,
            60 + i
        )
        .replace('\n', " ")
    };
    gz(&dir.path().join("goodreads_books_small.json.gz"), &table(ITEMS, book));
    let interaction = |r: Rating| {
        // The first of January and the days behind it.
        let (day, second) = ((r.time - START) / 86_400 + 1, (r.time - START) % 86_400);
        let [hour, minute, second] = [second / 3600, second / 60 % 60, second % 60];
        format!(
            r#"{{"user_id": "u{}", "book_id": "{}", "rating": {}, "date_updated": "Wed Jan {day:02} {hour:02}:{minute:02}:{second:02} +0000 2020"}}"#,
            r.user, r.item, r.stars
        )
    };
    gz(&dir.path().join("goodreads_interactions_small.json.gz"), &lines(interaction));
    runs(dir.path(), "goodreads", "goodreads", &["data.label={greater=3.0}"]);
}

/// Latin-1, quotes as people write them, and no time: each user gives one sample.
#[test]
fn bookcrossing_runs_to_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let latin1 = |name: &str, text: &str| {
        let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        std::fs::write(dir.path().join(name), bytes).unwrap();
    };
    let places = ["nyc, new york, usa", "málaga, andalucía, españa"];
    let users = table(USERS, |u| format!("\"{u}\";\"{}\";\"3{}\"", places[u as usize % 2], u % 10));
    latin1("BX-Users.csv", &format!("\"User-ID\";\"Location\";\"Age\"\n{users}"));
    let titles = ["Der Prozeß", r#"The \"Real\" One"#, r#"A "bare" quote; and more"#];
    let books = table(ITEMS, |i| {
        let title = titles[i as usize % 3];
        format!("\"{i:04}\";\"{title}\";\"An Author\";\"1999\";\"A House\";\"s\";\"m\";\"l\"")
    });
    latin1(
        "BX-Books.csv",
        &format!(
            "\"ISBN\";\"Book-Title\";\"Book-Author\";\"Year-Of-Publication\";\"Publisher\";\
             \"Image-URL-S\";\"Image-URL-M\";\"Image-URL-L\"\n{books}"
        ),
    );
    let rows = lines(|r| format!("\"{}\";\"{:04}\";\"{}\"", r.user, r.item, 2 * r.stars));
    latin1("BX-Book-Ratings.csv", &format!("\"User-ID\";\"ISBN\";\"Book-Rating\"\n{rows}"));
    let settings = ["data.label={at_least=7.0}", "data.split=[0.6,0.2,0.2]"];
    runs(dir.path(), "bookcrossing", "bookcrossing", &settings);
}

#[test]
fn a_table_of_any_columns_runs_to_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let rows = lines(|r| format!("u{}\tfilm {}\t{}\t{}000", r.user, r.item, r.stars, r.time));
    gz(&dir.path().join("likes.tsv.gz"), &format!("who\twhat\tstars\twhen\n{rows}"));
    let films = table(ITEMS, |i| format!("film {i}\tFilm {i}\tkind {}\t19{}", i % 2, 60 + i));
    std::fs::write(dir.path().join("films.tsv"), format!("what\ttitle\tgenres\tyear\n{films}"))
        .unwrap();
    let settings = [
        "data.label={greater=3.0}",
        "data.columns.ratings=likes.tsv.gz",
        "data.columns.items=films.tsv",
        "data.columns.user=who",
        "data.columns.item=what",
        "data.columns.rating=stars",
        "data.columns.timestamp=when",
        "data.columns.time_unit=ms",
        "data.columns.item_fields=['genres']",
        "data.columns.item_texts=['title', 'genres', 'year']",
        "data.columns.delimiter='\\t'",
    ];
    let settings: Vec<String> = settings.iter().map(|s| s.replace("'", "\"")).collect();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    runs(dir.path(), "csv", "movielens_25m", &settings);
}

/// As a Spark job leaves it: a directory per value of a column, in it parts and what is none.
#[test]
fn a_partitioned_parquet_directory_runs_to_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let schema = "message ratings { required binary user (UTF8); required int64 item; \
                  required double rating; required int64 timestamp; required binary title (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let bytes = |text: String| ByteArray::from(text.into_bytes());
    for kind in 0..2 {
        let part = dir.path().join(format!("likes/kind={kind}"));
        std::fs::create_dir_all(&part).unwrap();
        let rows: Vec<Rating> = ratings().into_iter().filter(|r| r.item % 2 == kind).collect();
        let file = std::fs::File::create(part.join("part-00000.snappy.parquet")).unwrap();
        let mut writer =
            SerializedFileWriter::new(file, Arc::clone(&schema), Default::default()).unwrap();
        for rows in rows.chunks(200) {
            let mut group = writer.next_row_group().unwrap();
            let users: Vec<_> = rows.iter().map(|r| bytes(format!("u{}", r.user))).collect();
            let items: Vec<i64> = rows.iter().map(|r| i64::from(r.item)).collect();
            let stars: Vec<f64> = rows.iter().map(|r| f64::from(r.stars)).collect();
            let times: Vec<i64> = rows.iter().map(|r| i64::from(r.time)).collect();
            let titles: Vec<_> = rows.iter().map(|r| bytes(format!("Film {}", r.item))).collect();
            for column in 0..5 {
                let mut out = group.next_column().unwrap().unwrap();
                match column {
                    0 => out.typed::<ByteArrayType>().write_batch(&users, None, None),
                    1 => out.typed::<Int64Type>().write_batch(&items, None, None),
                    2 => out.typed::<DoubleType>().write_batch(&stars, None, None),
                    3 => out.typed::<Int64Type>().write_batch(&times, None, None),
                    _ => out.typed::<ByteArrayType>().write_batch(&titles, None, None),
                }
                .unwrap();
                out.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
        std::fs::write(part.join(".part-00000.snappy.parquet.crc"), b"crc").unwrap();
    }
    std::fs::write(dir.path().join("likes/_SUCCESS"), b"").unwrap();
    let settings = [
        "data.label={greater=3.0}",
        "data.columns.ratings=likes",
        "data.columns.item_fields=[\"kind\"]",
        "data.columns.item_texts=[\"title\", \"kind\"]",
    ];
    runs(dir.path(), "parquet", "movielens_25m", &settings);
}

/// A rule for another scale of ratings would leave nothing to learn.
#[test]
fn a_label_rule_that_leaves_one_class_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    movielens_25m(dir.path());
    let config = on_data(dir.path(), "movielens_25m", "movielens_25m");
    let run_dir = dir.path().join("run");
    let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap(), "--only", "prepare"];
    for (rule, which) in [("{at_least=8.0}", "none"), ("{greater=0.0}", "every one")] {
        let rule = format!("data.label={rule}");
        let error = fails(&[&args[..], &["--set", &rule]].concat(), 4);
        assert!(error.contains("data.label") && error.contains("from 1 to 5"), "{error}");
        assert!(error.contains(which), "{error}");
        assert!(!run_dir.join("dataset/dataset.shard").exists());
    }
}
