//! `inspect`: what it says of ratings, and that a run makes of them what it said.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::path::{Path, PathBuf};

use common::{configs, experiment, fails, launch, stdout};
use serde_json::Value;

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&[args, &["--json"]].concat())).unwrap()
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

fn shipped() -> String {
    configs().join("data/movietweetings-100k").display().to_string()
}

/// Twelve users with eight ratings each of twenty items, as lines of user, item, stars and time.
fn ratings(separator: &str, time: impl Fn(u32) -> String) -> String {
    let mut text = String::new();
    for user in 0..12 {
        for i in 0..8 {
            let (item, stars) = ((user * 3 + i * 7) % 20, (user + i) % 5 + 1);
            let columns = [format!("u{user}"), format!("i{item}"), stars.to_string(), time(i)];
            text += &(columns.join(separator) + "\n");
        }
    }
    text
}

fn put(dir: &Path, name: &str, text: &str) -> PathBuf {
    std::fs::write(dir.join(name), text).unwrap();
    dir.join(name)
}

#[test]
fn the_shipped_ratings_in_words() {
    let text = stdout(&["inspect", &shipped()]);
    assert_says(
        &text,
        &[
            "format   movietweetings (detected: ratings.dat, movies.dat)",
            "movies.dat.gz, ",
            "100,000 ratings by 16,554 users of 10,506 items",
            "from 2013-",
            "item   genre",
            "item   title (text)",
            "likes (at least 8) are ",
            "ratings per user: median ",
            "k_core = 5",
            "min_history = 5",
            "split = [0.8, 0.1, 0.1]",
            "  test ",
        ],
    );
    // Nothing that a terminal of 100 columns would break, but for long values.
    let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(longest <= 140, "{longest}\n{text}");
    assert_eq!(
        text,
        stdout(&["inspect", &shipped(), "--format", "movietweetings"])
            .replace("(--format)", "(detected: ratings.dat, movies.dat)")
    );
}

#[test]
fn a_run_makes_of_the_ratings_what_inspect_said() {
    let (dir, config) = experiment(&format!("[data]\npath = \"{}\"\n", shipped()));
    let said = json(&["inspect", &config, "--set", "data.k_core=12"]);
    let run = dir.path().join("run").display().to_string();
    stdout(&[
        "run",
        &config,
        "--set",
        "data.k_core=12",
        "--only",
        "prepare",
        "--run-dir",
        &run,
        "--no-report",
    ]);
    let manifest = std::fs::read_to_string(dir.path().join("run/dataset/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let counts = &manifest["counts"];
    let inspection = &said["inspection"];
    let protocol = &inspection["protocol"];
    for (count, value) in [
        ("raw_ratings", &inspection["read"]["ratings"]),
        ("raw_users", &inspection["read"]["users"]),
        ("interactions", &protocol["core"]["ratings"]),
        ("users", &protocol["core"]["users"]),
        ("items", &protocol["core"]["items"]),
        ("features", &protocol["features"]),
        ("samples", &protocol["samples"]),
        ("train", &protocol["splits"][0]["samples"]),
        ("valid", &protocol["splits"][1]["samples"]),
        ("test", &protocol["splits"][2]["samples"]),
    ] {
        assert!(value.as_u64().unwrap() > 0, "{count}");
        assert_eq!(&counts[count], value, "{count}");
    }
}

#[test]
fn a_table_of_csv_suggests_its_mapping_which_a_run_accepts() {
    let (dir, _) = experiment("");
    let time = |i| format!("2011-08-0{}T10:00:00Z", i + 1);
    let text = format!("userId;movie_id;stars;date\n{}", ratings(";", time));
    let table = put(dir.path(), "events.csv", &text);
    let said = stdout(&["inspect", table.to_str().unwrap()]);
    assert_says(
        &said,
        &[
            "table events.csv",
            "movie_id  text     i0 | i7 | i14",
            "date      time     2011-08-01T10:00:00Z | 2011-08-02T10:00:00Z",
            "format = \"csv\"",
            "user = \"userId\"",
            "item = \"movie_id\"",
            "rating = \"stars\"",
            "timestamp = \"date\"",
            "time_unit = \"iso8601\"",
            "delimiter = \";\"",
            "label = { at_least = 4.0 }   # a guess",
            "96 ratings by 12 users of 20 items",
            "from 2011-08-01T10:00:00Z to 2011-08-08T10:00:00Z",
        ],
    );
    let said = json(&["inspect", table.to_str().unwrap()]);
    let suggestion = said["suggestion"].as_str().unwrap();
    let config = put(dir.path(), "csv.toml", &smaller(suggestion));
    let config = config.to_str().unwrap();
    let run = dir.path().join("run").display().to_string();
    stdout(&["run", config, "--only", "prepare", "--run-dir", &run, "--no-report"]);
    assert!(dir.path().join("run/dataset/manifest.json").exists());
    assert_eq!(json(&["inspect", config])["inspection"]["protocol"]["samples"], 12 * 5);
    // Another mapping is another dataset.
    std::fs::write(dir.path().join("events.csv"), text.replace("userId", "who")).unwrap();
    let text = shown(&["inspect", config], 1);
    assert_says(
        &text,
        &[
            "who       text     u0",
            "data.columns.user names the column \"userId\"",
            "\"who\", \"movie_id\"",
        ],
    );
}

/// A proposed section for the few ratings of these tests.
fn smaller(section: &str) -> String {
    section.replace("[data]\n", "[data]\nk_core = 0\nmin_history = 3\n")
}

/// Standard output of a command that ends with `code`.
fn shown(args: &[&str], code: i32) -> String {
    String::from_utf8(launch(args).assert().code(code).get_output().stdout.clone()).unwrap()
}

/// Tables of users and items beside the ratings, and an item that is rated and not in its table.
#[test]
fn a_directory_of_tables_suggests_all_of_them() {
    let (dir, _) = experiment("");
    let data = dir.path().join("shop");
    std::fs::create_dir(&data).unwrap();
    let text = ratings(",", |i| format!("{}", 1_600_000_000_000_u64 + 1_000 * u64::from(i)));
    put(&data, "Ratings.csv", &format!("User-ID,ISBN,Book-Rating,time\n{text}"));
    let items: String =
        (0..19).map(|i| format!("i{i},Book {i},Author {},http://x/{i}\n", i % 3)).collect();
    put(&data, "Books.csv", &format!("ISBN,Book-Title,Book-Author,Image-URL\n{items}"));
    let users: String = (0..12).map(|user| format!("u{user},{}\n", 20 + user)).collect();
    put(&data, "Users.csv", &format!("id,Age\n{users}"));
    let at = data.to_str().unwrap();
    let text = stdout(&["inspect", at]);
    let section = [
        "ratings = \"Ratings.csv\"",
        "time_unit = \"ms\"",
        "users = \"Users.csv\"",
        "user_key = \"id\"",
        "user_fields = [\"Age\"]",
        "items = \"Books.csv\"",
        "item_fields = [\"Book-Author\"]",
        "item_texts = [\"Book-Title\"]",
        "unmatched = \"drop\"",
    ];
    assert_says(&text, &section);
    assert_says(&text, &["note: ratings of users or items that their table lacks are left out"]);
    let said = json(&["inspect", at]);
    let config = put(dir.path(), "shop.toml", &smaller(said["suggestion"].as_str().unwrap()));
    let run = dir.path().join("run").display().to_string();
    stdout(&[
        "run",
        config.to_str().unwrap(),
        "--only",
        "prepare",
        "--run-dir",
        &run,
        "--no-report",
    ]);
}

#[test]
fn what_can_not_be_read_is_said_below_the_tables() {
    let (dir, _) = experiment("");
    // A decimal comma, where the comma would have to be quoted otherwise.
    let text = ratings(";", |i| i.to_string());
    let text: String = text.lines().map(|line| line.replacen(";1;", ";2,5;", 1) + "\n").collect();
    let table = put(dir.path(), "comma.csv", &format!("user;item;rating;timestamp\n{text}"));
    let text = shown(&["inspect", table.to_str().unwrap()], 1);
    let said = [
        "rating     number with a decimal comma",
        "delimiter = \";\"",
        "note: the column \"rating\" has decimal commas (\"2,5\")",
        "the ratings can't be read:",
        "is not a number",
    ];
    let mut from = 0;
    for part in said {
        from += text
            .get(from..)
            .unwrap()
            .find(part)
            .unwrap_or_else(|| panic!("no {part:?} in\n{text}"));
    }
    let error = fails(&["inspect", table.to_str().unwrap()], 1);
    assert_says(&error, &["error: the ratings can't be read as they are"]);
}

/// No rule cuts ratings in two by default.
#[test]
fn yes_and_no_suggest_a_rule() {
    let (dir, _) = experiment("");
    let mut text = ratings(",", |i| i.to_string());
    for (stars, yes) in
        [("1", "False"), ("2", "False"), ("3", "False"), ("4", "True"), ("5", "True")]
    {
        text = text.replace(&format!(",{stars},"), &format!(",{yes},"));
    }
    let table = put(dir.path(), "events.csv", &format!("user,item,liked,ts\n{text}"));
    let text = stdout(&["inspect", table.to_str().unwrap()]);
    assert_says(&text, &["liked  boolean", "rating = \"liked\"", "label = { at_least = 1.0 }"]);
}

#[test]
fn columns_that_can_not_be_guessed_are_asked_for() {
    let (dir, _) = experiment("");
    let text = format!("who,what,how,when\n{}", ratings(",", |i| i.to_string()));
    let table = put(dir.path(), "events.csv", &text);
    let table = table.to_str().unwrap();
    let text = shown(&["inspect", table], 1);
    assert_says(&text, &["who   text     u0", "--set data.columns.user=NAME", "[data.columns]"]);
    let found: Value = serde_json::from_str(&shown(&["inspect", table, "--json"], 1)).unwrap();
    assert_eq!(found["inspection"], Value::Null);
    let set = ["user=who", "item=what", "rating=how", "timestamp=when"];
    let set: Vec<String> = set.iter().map(|s| format!("data.columns.{s}")).collect();
    let mut args = vec!["inspect", table];
    set.iter().for_each(|s| args.extend(["--set", s.as_str()]));
    let said = json(&args);
    assert_eq!(said["inspection"]["read"]["ratings"], 96);
    let problem = said["inspection"]["protocol"]["problem"].as_str();
    assert_eq!(problem.is_some(), said["inspection"]["protocol"]["samples"] == 0);
}

/// One column has a name that says nothing; the others, the delimiter and the rule of likes are guessed as ever.
#[test]
fn what_is_not_said_is_guessed() {
    let (dir, _) = experiment("");
    std::fs::create_dir(dir.path().join("events")).unwrap();
    let text = format!("user_id;book_id;how;ts\n{}", ratings(";", |i| i.to_string()));
    put(dir.path(), "events/log.csv", &text);
    put(dir.path(), "events/books.csv", "book_id;title\ni0;One\n");
    let events = dir.path().join("events").display().to_string();
    assert_says(&shown(&["inspect", &events], 1), &["--set data.columns.ratings=FILE"]);
    let text = stdout(&["inspect", &events, "--set", "data.columns.rating=how"]);
    let section =
        ["ratings = \"log.csv\"", "user = \"user_id\"", "rating = \"how\"", "delimiter = \";\""];
    assert_says(&text, &section);
    let set = ["data.columns.ratings=log.csv", "data.columns.rating=how"];
    let again = stdout(&["inspect", &events, "--set", set[0], "--set", set[1]]);
    assert_eq!(again, text);
}

#[test]
fn settings_that_leave_nothing_are_said() {
    let shown = stdout(&["inspect", &shipped(), "--set", "data.k_core=5000"]);
    assert_says(&shown, &["a run would fail: no samples left", "Lower data.k_core"]);
}

#[test]
fn what_can_not_be_looked_at_is_answered() {
    let (dir, config) = experiment("[data]\nformat = \"movietweetings\"\n");
    let empty = dir.path().join("models").display().to_string();
    let error = fails(&["inspect", &empty], 1);
    assert_says(
        &error,
        &["no layout has these files: stories260k", "bookcrossing", "BX-Users.csv"],
    );
    assert_says(&fails(&["inspect", &config], 1), &["neither movies.dat nor movies.dat.gz"]);
    assert_says(&fails(&["inspect", "no-such-place"], 2), &["no-such-place is not there; name a"]);
    let error = fails(&["inspect", &config, "--format", "csv"], 2);
    assert_says(&error, &["--format is for directories"]);
    assert_says(&fails(&["inspect", &empty, "--format", "cvs"], 2), &["csv"]);
    let error = fails(&["inspect", &shipped(), "--set", "data.columns.user=x"], 2);
    assert_says(&error, &["data.columns", "knows its columns"]);
    put(dir.path(), "broken.parquet", "PAR1 is not enough");
    let broken = dir.path().join("broken.parquet").display().to_string();
    assert_says(&fails(&["inspect", &broken], 1), &["broken.parquet", "no Parquet file"]);
}
