//! Which layout a directory has.

use reclora_storage::raw::{DatasetFormat, Known, detect};

use super::refused;
use crate::common::{Raw, every_format, movielens_10m};

#[test]
fn layouts_are_known_by_their_files() {
    for (format, raw) in every_format() {
        assert_eq!(detect(raw.path()).unwrap().format, format);
    }
    // Half stars tell 10M from MovieTweetings where there are no tags.
    let raw = movielens_10m();
    assert_eq!(detect(raw.path()).unwrap().format, DatasetFormat::Movielens10m);
    raw.remove("tags.dat");
    assert_eq!(detect(raw.path()).unwrap().format, DatasetFormat::Movielens10m);
    let cases: [(&[&str], DatasetFormat); 5] = [
        (&["BX-Books.csv", "BX-Users.csv.gz", "BX-Book-Ratings.csv"], DatasetFormat::Bookcrossing),
        (
            &["goodreads_books.json.gz", "goodreads_interactions_dedup.json.gz"],
            DatasetFormat::Goodreads,
        ),
        (&["log.csv.gz", "readme"], DatasetFormat::Csv),
        (&["log.csv", "part-0.parquet"], DatasetFormat::Parquet),
        (&["movies.dat.gz", "ratings.dat.gz", "LICENSE"], DatasetFormat::Movietweetings),
    ];
    for (files, format) in cases {
        let raw = Raw::new(&[]);
        files.iter().for_each(|name| raw.put(name, b""));
        assert_eq!(detect(raw.path()).unwrap().format, format, "{files:?}");
    }
}

#[test]
fn an_unknown_directory_lists_what_is_known() {
    let raw = Raw::new(&[(".hidden", "")]);
    refused(detect(raw.path()), &["the directory is empty", "bookcrossing", "BX-Users.csv"]);
    raw.put("ratings.dat", b"");
    raw.put("movies.txt", b"");
    let names: Vec<&str> = Known::ALL.iter().map(|k| k.format.name()).collect();
    refused(detect(raw.path()), &names);
    refused(detect(raw.path()), &["no layout has these files: movies.txt, ratings.dat"]);
    refused(detect(&raw.path().join("nowhere")), &["nowhere"]);
}
