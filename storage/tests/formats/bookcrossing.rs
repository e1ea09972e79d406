//! BookCrossing: its irregular files, and the published protocol without time.

use proptest::prelude::*;
use reclora_storage::dataset::{self, Dataset, Split};
use reclora_storage::protocol::{LabelRule, Prepared, ProtocolConfig, prepare};
use reclora_storage::raw::DatasetFormat::Bookcrossing;
use reclora_storage::raw::RawTables;

use super::{dropped, field, names, refused, rows, text};
use crate::common::Raw;

const USERS: &str = "\"User-ID\";\"Location\";\"Age\"\n";
const BOOKS: &str = "\"ISBN\";\"Book-Title\";\"Book-Author\";\"Year-Of-Publication\";\"Publisher\";\
                     \"Image-URL-S\";\"Image-URL-M\";\"Image-URL-L\"\n";
const RATINGS: &str = "\"User-ID\";\"ISBN\";\"Book-Rating\"\n";

fn book(isbn: &str, title: &str) -> String {
    format!(
        "\"{isbn}\";\"{title}\";\"An Author\";\"1999\";\"A House\";\"http://s\";\"http://m\";\"http://l\"\n"
    )
}

fn bookcrossing(users: &str, books: &str, ratings: &str) -> Raw {
    Raw::new(&[
        ("BX-Users.csv", &format!("{USERS}{users}")),
        ("BX-Books.csv", &format!("{BOOKS}{books}")),
        ("BX-Book-Ratings.csv", &format!("{RATINGS}{ratings}")),
    ])
}

pub fn small() -> Raw {
    let raw = bookcrossing(
        "\"1\";\"nyc, new york, usa\";NULL\n\"2\";\"stockton, california, u.s.a.\";\"18\"\n\
         \"3\";\"porto, v.n.gaia, portugal\";\"17\"\n",
        &[book("0001", "One"), book("000X", "Two"), book("0003", "Three")].concat(),
        "\"2\";\"000X\";\"5\"\n\"1\";\"0001\";\"0\"\n\"1\";\"000X\";\"10\"\n",
    );
    raw.read(Bookcrossing).unwrap();
    raw
}

#[test]
fn fields_are_those_of_the_paper_in_its_order() {
    let raw = small().read(Bookcrossing).unwrap();
    assert_eq!(names(&raw.users), ["location", "age"]);
    assert_eq!(names(&raw.items), ["title", "author", "year", "publisher"]);
    assert_eq!(field(&raw.users, "location"), ["USA", "USA", "Portugal"]);
    assert_eq!(text(&raw.users, "age"), ["unknown", "18-24", "under 18"]);
    assert_eq!(raw.rating_levels, (0_u8..=10).map(f32::from).collect::<Vec<_>>());
    assert_eq!(rows(&raw), [("2", "000X", 5.0, 0), ("1", "0001", 0.0, 0), ("1", "000X", 10.0, 0)]);
    assert!(raw.untimed && raw.dropped.is_empty());
}

#[test]
fn quotes_of_every_kind_stay_inside_their_values() {
    let titles = [
        (r#"A Reader (Level 4)\"#, r#"A Reader (Level 4)\"#),
        (r#"The \"Real\" One"#, r#"The "Real" One"#),
        (r#"A "bare" quote"#, r#"A "bare" quote"#),
        (r#"doubled ""quotes"""#, r#"doubled ""quotes"""#),
        (r#"ends in one\""#, r#"ends in one""#),
        (r#"a; semicolon; and;more"#, r#"a; semicolon; and;more"#),
        (r#"tricky\";"still the title"#, r#"tricky";"still the title"#),
        (r#"slash\\"#, r#"slash\"#),
        ("", ""),
    ];
    let books: String =
        titles.iter().enumerate().map(|(i, (title, _))| book(&format!("{i:04}"), title)).collect();
    let raw = bookcrossing("\"1\";\"a, b, c\";NULL\n", &books, "\"1\";\"0000\";\"5\"\n");
    let raw = raw.read(Bookcrossing).unwrap();
    // The field is as published, the text as a person reads it.
    assert_eq!(field(&raw.items, "title"), titles.map(|(raw, _)| raw));
    assert_eq!(text(&raw.items, "title"), titles.map(|(_, read)| read));
    assert!(field(&raw.items, "author").iter().all(|author| author == "An Author"));
}

#[test]
fn values_may_hold_line_ends_and_tabs() {
    let users = "\"1\";\"cernusco s.\n, milano, italy\";NULL\n\"2\";\"\t\n\n\";\"40\"\n";
    let raw = bookcrossing(users, &book("0001", "\tOne"), "\"1\";\"0001\";\"5\"\n");
    refused(
        raw.read(Bookcrossing),
        &["BX-Users.csv: ", "\n  1 row: blank (first: line 5: blank line"],
    );
    let users = "\"1\";\"cernusco s.\n, milano, italy\";NULL\n\"2\";\"\t\n \";\"40\"\n";
    let raw = bookcrossing(users, &book("0001", "\tOne"), "\"1\";\"0001\";\"5\"\n");
    let raw = raw.read(Bookcrossing).unwrap();
    assert_eq!(field(&raw.users, "location"), ["Italy", "unknown"]);
    assert_eq!(field(&raw.items, "title"), ["One"]);
}

#[test]
fn countries_and_ages_are_published_buckets() {
    let country = |location: &str| {
        let users = format!("\"1\";\"{location}\";NULL\n");
        let raw = bookcrossing(&users, &book("0001", "One"), "\"1\";\"0001\";\"5\"\n");
        raw.read(Bookcrossing).unwrap().users.fields[0].values[0].clone()
    };
    for (location, expected) in [
        ("timmins, ontario, canada", "Canada"),
        ("a, b, united states", "USA"),
        ("a, b, United Kingdom!", "United Kingdom"),
        ("a, b, u.k.", "U.K"),
        ("a, b, uk", "UK"),
        ("lonely place", "Lonely Place"),
        ("a, b, españa", "Spain"),
        ("a, b, bosnia and herzegovina", "Bosnia And Herzegovina"),
        ("a, b, people`s republic of china.", "China"),
        ("a, b, u.s. virgin islands", "U.S. Virgin Islands"),
        ("&#37073;, &#20013;, &#20013;", "unknown"),
        ("a, b, ", "unknown"),
        ("", "unknown"),
        ("a, b, x", "unknown"),
        ("n/a, n/a, n/a", "unknown"),
    ] {
        assert_eq!(country(location), expected, "{location}");
    }
    let ages = [
        ("4", "unknown"),
        ("5", "under 18"),
        ("17", "under 18"),
        ("18", "18-24"),
        ("24", "18-24"),
        ("25", "25-29"),
        ("30", "30-34"),
        ("39", "35-39"),
        ("40", "40-44"),
        ("45", "45-49"),
        ("54", "50-54"),
        ("55", "55-59"),
        ("60", "60+"),
        ("100", "60+"),
        ("101", "unknown"),
        ("244", "unknown"),
        ("34.0", "30-34"),
    ];
    let users: String = ages
        .iter()
        .enumerate()
        .map(|(i, (age, _))| format!("\"{i}\";\"a, b, c\";\"{age}\"\n"))
        .collect();
    let raw = bookcrossing(&users, &book("0001", "One"), "\"1\";\"0001\";\"5\"\n");
    assert_eq!(
        field(&raw.read(Bookcrossing).unwrap().users, "age"),
        ages.map(|(_, bucket)| bucket)
    );
    let mut seen: Vec<&str> = ages.map(|(_, bucket)| bucket).to_vec();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 11);
}

#[test]
fn what_the_tables_lack_is_dropped_and_counted() {
    let raw = small();
    let books =
        [book("0001", "One"), book("000X", "Two"), book("00-1", "Bad"), book("00 2", "Bad")];
    raw.put("BX-Books.csv", format!("{BOOKS}{}", books.concat()).as_bytes());
    let ratings =
        "\"1\";\"0001\";\"5\"\n\"9\";\"0001\";\"5\"\n\"1\";\"00-1\";\"5\"\n\"1\";\"none\";\"5\"\n";
    raw.put("BX-Book-Ratings.csv", format!("{RATINGS}{ratings}").as_bytes());
    let raw = raw.read(Bookcrossing).unwrap();
    assert_eq!(rows(&raw).len(), 1);
    assert_eq!(
        dropped(&raw),
        [
            ("books whose ISBN is not letters and digits", 2),
            ("ratings by users that BX-Users.csv lacks", 1),
            ("ratings of books that BX-Books.csv lacks, or whose ISBN is bad", 2),
        ]
    );
}

#[test]
fn bad_files_are_named_by_line_and_column() {
    let raw = small();
    let check = |name: &str, header: &str, rows: &str, words: &[&str]| {
        let good = std::fs::read(raw.path().join(name)).unwrap();
        raw.put(name, format!("{header}{rows}").as_bytes());
        raw.refused(Bookcrossing, &[&[name], words].concat());
        raw.put(name, &good);
    };
    let users = |rows, words: &[&str]| check("BX-Users.csv", USERS, rows, words);
    users("\"1\";\"a\"\n", &[":2: line: 2 columns where the layout has 3"]);
    users("\"1\";\"a\";\"old\"\n", &[":2: age: \"old\" is not a number"]);
    users("\"1\";\"a\";\"-5\"\n", &[":2: age: \"-5\""]);
    users("\"\";\"a\";NULL\n", &[":2: user: empty"]);
    users(
        "\"1\";\"a\";NULL\n\"1\";\"b\";NULL\n",
        &[":3: user: \"1\" is defined already, in line 2"],
    );
    users("\"1\";\"never closed\n", &[":2: line: a quoted value that begins here does not end"]);
    users("1;a;NULL\n", &[":2: line: "]);
    check("BX-Users.csv", "", "\"1\";\"a\";NULL\n", &[":1: header: the header is"]);
    let lines: String = (0..40).map(|i| format!("{i}\n")).collect();
    users(&format!("\"1\";\"{lines}"), &["first: line 2: 2 columns"]);

    let books = |rows: &str, words: &[&str]| check("BX-Books.csv", BOOKS, rows, words);
    books("\"1\";\"A\";\"B\"\n", &[":2: line: 3 columns where the layout has 8"]);
    books(
        &book("1", "A").replace("\"A House\"", "\"A House\";\"one\";\"more\""),
        &[":2: line: 10 columns"],
    );
    books(&book("", "A"), &[":2: item: empty"]);

    let ratings = |rows, words: &[&str]| check("BX-Book-Ratings.csv", RATINGS, rows, words);
    ratings("\"1\";\"0001\";\"11\"\n", &[":2: rating: 11 is not a rating of this format"]);
    ratings("\"1\";\"0001\";\"x\"\n", &[":2: rating: \"x\" is not a number"]);
    ratings("\"1\";\"0001\";\"5\"\n\"1\";\"0001\";\"5\"\n", &[":3: line: the same line as line 2"]);
    ratings("\"1\";\"0001\"\n", &[":2: line: 2 columns"]);
    ratings("", &["no rows"]);

    let huge = format!("{USERS}\"1\";\"{}\";NULL\n", "x".repeat(2 << 20));
    raw.put("BX-Users.csv", huge.as_bytes());
    raw.refused(Bookcrossing, &["BX-Users.csv:2: line: longer than"]);
}

#[test]
fn latin1_and_compressed_files_are_read() {
    let raw = small();
    let files = raw.files(Bookcrossing).unwrap();
    assert_eq!(files.len(), 3);
    let mut users = USERS.as_bytes().to_vec();
    users.extend(b"\"1\";\"a, b, espa\xf1a\";NULL\n");
    raw.put("BX-Users.csv", &users);
    let mut books = BOOKS.as_bytes().to_vec();
    books.extend(book("0001", "Caf?").bytes().map(|b| if b == b'?' { 0xe9 } else { b }));
    raw.put_gz("BX-Books.csv.gz", &books);
    raw.remove("BX-Books.csv");
    raw.put("BX-Book-Ratings.csv", format!("{RATINGS}\"1\";\"0001\";\"5\"\n").as_bytes());
    let tables = raw.read(Bookcrossing).unwrap();
    assert_eq!(field(&tables.users, "location"), ["Spain"]);
    assert_eq!(field(&tables.items, "title"), ["Café"]);
    let truncated = raw.put_gz("BX-Books.csv.gz", &books);
    for len in [1, 10, truncated.len() / 2, truncated.len() - 1] {
        raw.put("BX-Books.csv.gz", &truncated[..len]);
        raw.refused(Bookcrossing, &["BX-Books.csv.gz"]);
    }
}

/// `users` users; user u has rated books 0..count(u), each book i with i % 11.
fn ratings(counts: &[usize], books: usize) -> RawTables {
    let users: String = (0..counts.len()).map(|u| format!("\"{u}\";\"a, b, c\";NULL\n")).collect();
    let list: String =
        (0..books).map(|b| book(&format!("{b:04}"), &format!("Title {b}"))).collect();
    let mut ratings = String::new();
    for (user, count) in counts.iter().enumerate() {
        for b in 0..*count {
            ratings += &format!("\"{user}\";\"{b:04}\";\"{}\"\n", b % 11);
        }
    }
    bookcrossing(&users, &list, &ratings).read(Bookcrossing).unwrap()
}

fn published() -> ProtocolConfig {
    ProtocolConfig {
        k_core: 0,
        min_history: 5,
        label: LabelRule::AtLeast(5.0),
        split: [0.9, 0.0, 0.1],
    }
}

/// The samples as (user, history, target), by the raw ids.
fn samples(prepared: &Prepared) -> Vec<(String, Vec<String>, String)> {
    let items = prepared.item.in_memory();
    let item = |row: usize| prepared.items.keys[items[row] as usize].clone();
    let rows = prepared.sample.in_memory().iter().map(|row| *row as usize);
    rows.map(|at| {
        let user = prepared.user_offsets.partition_point(|start| *start <= at as u64) - 1;
        let start = prepared.user_offsets[user] as usize;
        (prepared.users.keys[user].clone(), (start..at).map(item).collect(), item(at))
    })
    .collect()
}

#[test]
fn order_and_samples_are_those_of_the_published_code() {
    let raw = ratings(&[6, 5, 7, 10, 6], 12);
    let prepared = prepare(&raw, &published()).unwrap();
    let list = |items: &[u32]| -> Vec<String> { items.iter().map(|i| format!("{i:04}")).collect() };
    // random.seed(42); random.shuffle(list(range(n))): n = 6, 7, 10; then the four samples alike,
    // whose order is that of random.shuffle([0, 1, 2, 3]) = [2, 1, 3, 0].
    let six = (list(&[3, 1, 2, 4, 0]), "0005".to_owned());
    let seven = (list(&[1, 3, 4, 2, 6, 0]), "0005".to_owned());
    let ten = (list(&[7, 3, 2, 8, 5, 6, 9, 4, 0]), "0001".to_owned());
    let expected = [
        ("3".to_owned(), ten.0, ten.1),
        ("2".to_owned(), seven.0, seven.1),
        ("4".to_owned(), six.0.clone(), six.1.clone()),
        ("0".to_owned(), six.0, six.1),
    ];
    assert_eq!(samples(&prepared), expected);
    // int(0.9 * 4) train, none valid, the rest test.
    assert_eq!(prepared.split, [3, 3]);
    // Like is a rating of at least 5: books 5 (three times) and 1.
    assert_eq!(prepared.counts.positive_samples, 3);
    assert_eq!(prepared.timestamp.in_memory(), [0; 34]);
}

#[test]
fn a_valid_part_is_taken_from_the_published_train_part() {
    let raw = ratings(&[6; 40], 12);
    let whole = prepare(&raw, &published()).unwrap();
    let parted = prepare(&raw, &ProtocolConfig { split: [0.8, 0.1, 0.1], ..published() }).unwrap();
    assert_eq!(samples(&whole), samples(&parted));
    assert_eq!((whole.split, parted.split), ([36, 36], [32, 36]));
}

#[test]
fn vocabularies_count_the_whole_tables_without_a_core() {
    let raw = ratings(&[6, 0, 7], 12);
    let prepared = prepare(&raw, &published()).unwrap();
    let fields: Vec<(&str, u32)> =
        prepared.fields.iter().map(|f| (f.name.as_str(), f.cardinality)).collect();
    let expected = [
        ("user", 3),
        ("location", 1),
        ("age", 1),
        ("item", 12),
        ("title", 12),
        ("author", 1),
        ("year", 1),
        ("publisher", 1),
    ];
    assert_eq!(fields, expected);
    assert_eq!(prepared.users.keys, ["0", "1", "2"]);
    assert_eq!(prepared.user_offsets, [0, 6, 6, 13]);
    // With a core, only who is in it.
    let config = ProtocolConfig { k_core: 2, ..published() };
    let prepared = prepare(&raw, &config).unwrap();
    assert_eq!((prepared.users.keys.len(), prepared.items.keys.len()), (2, 6));
}

#[test]
fn the_dataset_is_written_and_read() {
    let prepared = prepare(&ratings(&[6, 5, 7, 10, 6], 12), &published()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    dataset::write(&prepared, "bookcrossing", dir.path()).unwrap();
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!(dataset.item_field(), 3);
    assert_eq!(dataset.split(Split::Test), 3..4);
    let sample = dataset.sample(0).unwrap();
    assert_eq!((sample.position, sample.rating, sample.label), (9, 1, false));
    // D-4: the target is not in its history.
    assert!(!dataset.history(sample.user, sample.position).items.contains(&sample.item));
}

#[test]
fn too_few_ratings_say_so() {
    refused(
        prepare(&ratings(&[5, 5], 12), &published()),
        &["no samples left", "data.min_history = 5"],
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_files_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        text in "[0-9;\"\\\\NUL,\n\r\t]{0,120}",
        which in 0_usize..3,
        header in any::<bool>(),
    ) {
        let raw = small();
        let (name, start) =
            [("BX-Users.csv", USERS), ("BX-Books.csv", BOOKS), ("BX-Book-Ratings.csv", RATINGS)][which];
        let start = if header { start } else { "" };
        for content in [&bytes[..], text.as_bytes()] {
            raw.put(name, &[start.as_bytes(), content].concat());
            let _ = raw.read(Bookcrossing);
        }
    }

    /// One sample per user with enough ratings, whose history is all its other ratings (D-4).
    #[test]
    fn each_user_gives_one_sample(counts in proptest::collection::vec(0_usize..12, 1..8)) {
        let raw = bookcrossing_tables(&counts);
        let Ok(raw) = raw else { return Ok(()) };
        let config = ProtocolConfig { min_history: 3, ..published() };
        let enough = counts.iter().filter(|c| **c > 3).count();
        match prepare(&raw, &config) {
            Err(_) => prop_assert_eq!(enough, 0),
            Ok(prepared) => {
                let samples = samples(&prepared);
                prop_assert_eq!(samples.len(), enough);
                for (user, history, target) in samples {
                    let count = counts[user.parse::<usize>().unwrap()];
                    prop_assert_eq!(history.len(), count - 1);
                    prop_assert!(!history.contains(&target));
                }
            }
        }
    }
}

fn bookcrossing_tables(counts: &[usize]) -> Result<RawTables, ()> {
    if counts.iter().sum::<usize>() == 0 { Err(()) } else { Ok(ratings(counts, 12)) }
}
