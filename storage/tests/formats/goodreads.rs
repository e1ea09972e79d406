//! GoodReads: lines of JSON, optional tables, and what is left out.

use proptest::prelude::*;
use reclora_storage::raw::DatasetFormat::Goodreads;

use super::{dropped, field, names, rows, text};
use crate::common::Raw;

const BOOKS: &str = r#"{"book_id": "11", "title": "Amélie, \"the\" book", "title_without_series": "Amélie", "authors": [{"author_id": "7", "role": ""}, {"author_id": "8", "role": "Illustrator"}], "popular_shelves": [{"count": "3", "name": "to-read"}, {"count": "5", "name": "poetry"}, {"count": "9", "name": "fiction"}, {"count": "99", "name": "books-i-own"}], "average_rating": "4.10", "text_reviews_count": "12", "num_pages": "256", "is_ebook": "false", "format": "Paperback", "publisher": "A House", "publication_year": "2001", "work_id": "501", "isbn": "x"}
{"book_id": "12", "title": "Bare", "authors": [], "popular_shelves": [], "average_rating": 3.5, "num_pages": null, "is_ebook": true, "work_id": ""}
"#;
const INTERACTIONS: &str = r#"{"user_id": "u1", "book_id": "11", "review_id": "r", "is_read": true, "rating": 5, "date_added": "Sat Jul 30 13:41:57 -0700 2011", "date_updated": "Mon Aug 01 13:41:57 -0700 2011", "read_at": ""}
{"user_id": "u1", "book_id": "12", "rating": 0, "date_updated": ""}
{"user_id": "u2", "book_id": "99", "rating": 3, "date_updated": "Mon Aug 01 13:41:57 -0700 2011"}
{"user_id": "u2", "book_id": "12", "rating": "1", "date_updated": "Thu Jan 01 00:00:01 +0000 1970"}
"#;

pub fn goodreads() -> Raw {
    let raw = Raw::new(&[("goodreads_books_poetry.json", BOOKS)]);
    raw.put_gz("goodreads_interactions_poetry.json.gz", INTERACTIONS.as_bytes());
    raw
}

pub fn whole() -> Raw {
    let raw = goodreads();
    let authors = "{\"author_id\": \"7\", \"name\": \"Ann\", \"ratings_count\": \"3\"}\n{\"author_id\": \"8\", \"name\": \"Bob\"}\n";
    raw.put("goodreads_book_authors.json", authors.as_bytes());
    raw.put_gz(
        "goodreads_book_works.json.gz",
        b"{\"work_id\": \"501\", \"media_type\": \"book\"}\n",
    );
    let genres = "{\"book_id\": \"11\", \"genres\": {\"romance\": 2, \"comics, graphic\": 9}}\n{\"book_id\": \"12\", \"genres\": {}}\n";
    raw.put("goodreads_book_genres_initial.json", genres.as_bytes());
    raw
}

#[test]
fn fields_are_those_of_the_paper_in_its_order() {
    let raw = whole().read(Goodreads).unwrap();
    let expected = [
        "title",
        "genres",
        "average_rating",
        "reviews",
        "author_id",
        "author",
        "pages",
        "ebook",
        "format",
        "publisher",
        "year",
        "work_id",
        "media_type",
    ];
    assert_eq!(names(&raw.items), expected);
    let first: Vec<&str> =
        expected.iter().map(|name| field(&raw.items, name)[0].as_str()).collect();
    let values = [
        "Amélie, \"the\" book",
        "comics, graphic, romance",
        "4.10",
        "12",
        "7",
        "Ann",
        "256",
        "false",
        "Paperback",
        "A House",
        "2001",
        "501",
        "book",
    ];
    assert_eq!(first, values);
    assert_eq!(field(&raw.items, "average_rating")[1], "3.5");
    assert_eq!(field(&raw.items, "ebook")[1], "true");
    assert_eq!(field(&raw.items, "author")[1], "");
    assert_eq!(text(&raw.items, "author")[0], "Ann");
    assert!(names(&raw.users).is_empty());
    assert!(!raw.untimed);
}

#[test]
fn tables_that_are_not_there_leave_their_fields_out() {
    let raw = goodreads().read(Goodreads).unwrap();
    let left: Vec<&str> = names(&raw.items);
    assert!(!left.contains(&"author") && !left.contains(&"media_type"), "{left:?}");
    assert_eq!(left.len(), 11);
    // The most popular shelves that are about the book.
    assert_eq!(field(&raw.items, "genres"), ["fiction, poetry", ""]);
}

#[test]
fn unrated_and_unknown_books_are_dropped_and_counted() {
    let raw = goodreads().read(Goodreads).unwrap();
    assert_eq!(rows(&raw), [("u1", "11", 5.0, 1_312_231_317), ("u2", "12", 1.0, 1)]);
    assert_eq!(
        dropped(&raw),
        [
            ("interactions without a rating (rating 0)", 1),
            ("ratings of books that the table of books lacks", 1)
        ]
    );
    assert_eq!(raw.rating_levels, [1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn every_file_that_is_read_is_listed() {
    let files = |raw: &Raw| -> Vec<String> {
        let files = raw.files(Goodreads).unwrap();
        files.iter().map(|f| f.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let two = ["goodreads_books_poetry.json", "goodreads_interactions_poetry.json.gz"];
    assert_eq!(files(&goodreads()), two);
    let more = [
        "goodreads_book_authors.json",
        "goodreads_book_works.json.gz",
        "goodreads_book_genres_initial.json",
    ];
    assert_eq!(files(&whole()), [&two[..], &more].concat());
}

#[test]
fn bad_files_are_named_by_line() {
    let raw = goodreads();
    raw.remove("goodreads_interactions_poetry.json.gz");
    raw.refused(Goodreads, &["goodreads_interactions*.json"]);
    let good = r#"{"user_id": "u", "book_id": "11", "rating": 5, "date_updated": "Mon Aug 01 13:41:57 -0700 2011"}"#;
    let check = |line: &str, words: &[&str]| {
        raw.put("goodreads_interactions.json", format!("{good}\n{line}\n").as_bytes());
        raw.refused(Goodreads, &[&["goodreads_interactions.json:2: "], words].concat());
    };
    check(good, &["line: the same line as line 1"]);
    check("{\"user_id\": ", &["line: not the JSON of this layout: ", "EOF"]);
    check("[1, 2]", &["not the JSON"]);
    check("{}", &["not the JSON", "user_id"]);
    check(&good.replace("\"u\"", "\"\""), &["user: empty"]);
    check(&good.replace("\"u\"", "{\"x\": 1}"), &["not the JSON", "text or a number"]);
    check(
        &good.replace("11", "12").replace("5,", "6,"),
        &["rating: 6 is not a rating of this format"],
    );
    check(
        &good.replace("Mon Aug", "Aug"),
        &["date_updated: ", "is not a time: this layout has times like"],
    );
    check(&good.replace("date_updated", "date_added"), &["not the JSON", "date_updated"]);
    let deep = format!("{{\"user_id\": {}", "[".repeat(100_000));
    check(&deep, &["not the JSON"]);
    check(&format!("\"{}", "x".repeat(2 << 20)), &["longer than"]);

    raw.put("goodreads_interactions.json", &[good.as_bytes(), b"\n\xff\n"].concat());
    raw.refused(Goodreads, &["goodreads_interactions.json:2: line: not valid UTF-8"]);
    raw.put("goodreads_interactions.json", b"");
    raw.refused(Goodreads, &["goodreads_interactions.json", "no rows"]);
    raw.put("goodreads_interactions.json", INTERACTIONS.as_bytes());
    raw.read(Goodreads).unwrap();
    raw.put("goodreads_interactions_dedup.json", INTERACTIONS.as_bytes());
    raw.refused(
        Goodreads,
        &["goodreads_interactions.json", "goodreads_interactions_dedup.json", "move"],
    );
    raw.remove("goodreads_interactions_dedup.json");
    raw.put("goodreads_book_authors.json", b"{\"author_id\": []}\n");
    raw.refused(Goodreads, &["goodreads_book_authors.json:1: ", "not the JSON"]);
}

#[test]
fn truncated_files_are_refused() {
    let raw = goodreads();
    let whole = raw.put_gz("goodreads_interactions_poetry.json.gz", INTERACTIONS.as_bytes());
    for len in 1..whole.len() {
        raw.put("goodreads_interactions_poetry.json.gz", &whole[..len]);
        raw.refused(Goodreads, &["goodreads_interactions_poetry.json.gz"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_files_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        text in "[0-9a-z\":,{}\\[\\] \n]{0,120}",
        at in 0_usize..400,
        books in any::<bool>(),
    ) {
        let raw = whole();
        let (name, good) = if books {
            ("goodreads_books_poetry.json", BOOKS)
        } else {
            raw.remove("goodreads_interactions_poetry.json.gz");
            ("goodreads_interactions.json", INTERACTIONS)
        };
        let mut damaged = good.as_bytes().to_vec();
        let at = at % damaged.len();
        damaged[at] = bytes.first().copied().unwrap_or(b'"');
        for content in [&bytes[..], text.as_bytes(), &damaged] {
            raw.put(name, content);
            let _ = raw.read(Goodreads);
        }
    }
}
