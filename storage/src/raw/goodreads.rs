//! GoodReads as UCSD publishes it: files of one JSON object per line.
//!
//! `goodreads_interactions*.json` has who read what and when, `goodreads_books*.json` the books. Names of
//! authors, media types and genres are in tables of their own, which need not be there: without
//! `goodreads_book_authors*.json` there is no field `author`, without `goodreads_book_works*.json` no
//! field `media_type`, and without `goodreads_book_genres*.json` a book's genres are its most popular
//! shelves, those left out that say how a reader keeps books ("to-read").
//!
//! A rating of 0 means that the reader has not rated the book: such interactions are counted and left
//! out, as are those of books that the table lacks. The time is that of the last update, because a book
//! is often added to a shelf long before it is rated, and an earlier time would show ratings too early.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::mapped::TextEncoding;
use super::source::{Lines, Place};
use super::tables::{EntityBuilder, RatingBuilder, whole_stars};
use super::time::{Notation, Source};
use super::{RawTables, Reading};
use crate::error::{RawProblem, Result, StorageError};

const INTERACTIONS: &str = "goodreads_interactions";
const BOOKS: &str = "goodreads_books";
const AUTHORS: &str = "goodreads_book_authors";
const WORKS: &str = "goodreads_book_works";
const GENRES: &str = "goodreads_book_genres";

/// Genres taken from a book's shelves.
const MAX_SHELVES: usize = 3;
/// Words of shelves that are about the reader, not the book.
const HOUSEKEEPING: [&str; 14] = [
    "read",
    "reading",
    "favorite",
    "favorites",
    "favourites",
    "own",
    "owned",
    "books",
    "library",
    "wish",
    "kindle",
    "ebook",
    "ebooks",
    "default",
];

pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![required(dir, BOOKS)?, required(dir, INTERACTIONS)?];
    for prefix in [AUTHORS, WORKS, GENRES] {
        files.extend(locate(dir, prefix)?);
    }
    Ok(files)
}

/// What prompts may use of a book: its author where there is a table of authors.
fn book_texts(has_authors: bool) -> Vec<&'static str> {
    let author = has_authors.then_some("author");
    ["title", "genres", "publisher", "year"].into_iter().chain(author).collect()
}

/// What prompts may use of the books in a directory.
pub(super) fn text_columns(dir: &Path) -> Result<Vec<&'static str>> {
    Ok(book_texts(locate(dir, AUTHORS)?.is_some()))
}

pub(super) fn read(dir: &Path, how: Reading<'_>) -> Result<RawTables> {
    let items = Side::read(dir)?.books(required(dir, BOOKS)?, how)?;
    let path = required(dir, INTERACTIONS)?;
    let users = EntityBuilder::open_ended("user");
    let mut ratings = RatingBuilder::new(&path, users, items, whole_stars(1, 5), how);
    let (mut unrated, mut unknown) = (0, 0);
    let faults = Lines::open_path(path, TextEncoding::Utf8)?.each(|place, text| {
        let row: Interaction<'_> = parse(place, text)?;
        if row.rating.as_str() == "0" {
            unrated += 1;
            return Ok(());
        }
        let time = Notation::Goodreads.read(row.date_updated.as_str(), Source::Layout);
        let time = time.map_err(|problem| place.error("date_updated", problem))?;
        let [user, book, rating] = [&row.user_id, &row.book_id, &row.rating].map(Text::as_str);
        let level = ratings.stars(rating).map_err(|problem| place.error("rating", problem))?;
        match ratings.insert(place.line, [user, book], level, time) {
            Err(StorageError::Raw { problem: RawProblem::UnknownKey { .. }, .. }) => unknown += 1,
            added => added?,
        }
        Ok(())
    })?;
    let dropped = [
        ("interactions without a rating (rating 0)", unrated),
        ("ratings of books that the table of books lacks", unknown),
    ];
    ratings.finish(faults, &dropped)
}

/// The only file whose name begins with `prefix` (and is not another table's), `.json` or `.json.gz`.
fn locate(dir: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| StorageError::io("read", dir, e))?;
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| StorageError::io("read", dir, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let stem = name.strip_suffix(".gz").unwrap_or(name).strip_suffix(".json");
        let is_it = |rest: &str| rest.is_empty() || rest.starts_with('_');
        if stem.and_then(|s| s.strip_prefix(prefix)).is_some_and(is_it) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [path] => Ok(Some(path.clone())),
        [first, second, ..] => {
            let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (first, second) = (name(first), name(second));
            Err(StorageError::AmbiguousRawFile { dir: dir.to_path_buf(), first, second })
        }
    }
}

fn required(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let name = format!("{prefix}*.json");
    locate(dir, prefix)?.ok_or(StorageError::MissingRawFile { dir: dir.to_path_buf(), name })
}

/// A line as JSON.
fn parse<'a, T: Deserialize<'a>>(place: Place<'_>, text: &'a str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| place.error("line", RawProblem::NotJson(e.to_string())))
}

/// The optional tables.
struct Side {
    /// Name of each author.
    authors: Option<HashMap<String, String>>,
    /// Media type of each work.
    works: Option<HashMap<String, String>>,
    /// Genres of each book.
    genres: Option<HashMap<String, String>>,
}

impl Side {
    fn read(dir: &Path) -> Result<Self> {
        Ok(Self {
            authors: table(locate(dir, AUTHORS)?, |place, text| {
                let author: Author<'_> = parse(place, text)?;
                Ok((author.author_id.0.into(), author.name.0.into()))
            })?,
            works: table(locate(dir, WORKS)?, |place, text| {
                let work: Work<'_> = parse(place, text)?;
                Ok((work.work_id.0.into(), work.media_type.0.into()))
            })?,
            genres: table(locate(dir, GENRES)?, |place, text| {
                let book: Genres<'_> = parse(place, text)?;
                let names = book.names();
                Ok((book.book_id.0.into(), names))
            })?,
        })
    }

    /// The books, with the fields that the tables at hand allow.
    fn books(&self, path: PathBuf, how: Reading<'_>) -> Result<EntityBuilder> {
        let author = self.authors.as_ref().map(|_| "author");
        let media_type = self.works.as_ref().map(|_| "media_type");
        let before = ["title", "genres", "average_rating", "reviews", "author_id"];
        let after = ["pages", "ebook", "format", "publisher", "year", "work_id"];
        let fields: Vec<&str> =
            before.into_iter().chain(author).chain(after).chain(media_type).collect();
        let texts = book_texts(author.is_some());
        let lines = Lines::open_path(path, TextEncoding::Utf8)?;
        EntityBuilder::read("item", [&fields, &texts], lines, how, |books, place, text| {
            let book: Book<'_> = parse(place, text)?;
            let find = |table: &Option<HashMap<String, String>>, key: &Text<'_>| {
                table.as_ref().map(|t| t.get(key.as_str()).cloned().unwrap_or_default())
            };
            let author_id = book.authors.first().map_or(Text::default(), |a| a.author_id.clone());
            let (author, media) =
                (find(&self.authors, &author_id), find(&self.works, &book.work_id));
            let genres = find(&self.genres, &book.book_id).unwrap_or_else(|| book.shelves());
            let row = [book.title.as_str(), &genres, book.average_rating.as_str()].into_iter();
            let row = row.chain([book.text_reviews_count.as_str(), author_id.as_str()]);
            let row = row.chain(author.as_deref());
            let row = row.chain([&book.num_pages, &book.is_ebook, &book.format].map(Text::as_str));
            let row = row.chain([&book.publisher, &book.publication_year].map(Text::as_str));
            let row = row.chain([book.work_id.as_str()]).chain(media.as_deref());
            let texts = [book.title.as_str(), &genres, book.publisher.as_str()].into_iter();
            let texts = texts.chain([book.publication_year.as_str()]).chain(author.as_deref());
            books.add(place, book.book_id.as_str(), row, texts.map(str::to_owned))
        })
    }
}

/// A table of one value per key, where its file is there.
fn table(
    path: Option<PathBuf>,
    entry: impl Fn(Place<'_>, &str) -> Result<(String, String)>,
) -> Result<Option<HashMap<String, String>>> {
    let Some(path) = path else { return Ok(None) };
    let mut values = HashMap::new();
    let mut faults = Lines::open_path(path, TextEncoding::Utf8)?.each(|place, text| {
        let (key, value) = entry(place, text)?;
        values.insert(key, value);
        Ok(())
    })?;
    faults.check()?;
    Ok(Some(values))
}

#[derive(serde::Deserialize)]
#[serde(bound = "'de: 'a")]
struct Interaction<'a> {
    user_id: Text<'a>,
    book_id: Text<'a>,
    rating: Text<'a>,
    date_updated: Text<'a>,
}

#[derive(serde::Deserialize)]
#[serde(bound = "'de: 'a")]
struct Book<'a> {
    book_id: Text<'a>,
    title: Text<'a>,
    #[serde(default)]
    authors: Vec<Author<'a>>,
    #[serde(default)]
    popular_shelves: Vec<Shelf<'a>>,
    #[serde(default)]
    average_rating: Text<'a>,
    #[serde(default)]
    text_reviews_count: Text<'a>,
    #[serde(default)]
    num_pages: Text<'a>,
    #[serde(default)]
    is_ebook: Text<'a>,
    #[serde(default)]
    format: Text<'a>,
    #[serde(default)]
    publisher: Text<'a>,
    #[serde(default)]
    publication_year: Text<'a>,
    #[serde(default)]
    work_id: Text<'a>,
}

impl Book<'_> {
    /// The most popular shelves that say something of the book.
    fn shelves(&self) -> String {
        let count = |shelf: &Shelf<'_>| shelf.count.as_str().parse::<u64>().unwrap_or_default();
        let mut shelves: Vec<&Shelf<'_>> = self
            .popular_shelves
            .iter()
            .filter(|shelf| {
                let mut words = shelf.name.as_str().split('-');
                !words.any(|word| HOUSEKEEPING.contains(&word))
            })
            .collect();
        shelves.sort_by_key(|shelf| std::cmp::Reverse(count(shelf)));
        let names: Vec<&str> =
            shelves.iter().take(MAX_SHELVES).map(|shelf| shelf.name.as_str()).collect();
        names.join(", ")
    }
}

/// An author of a book (by id) or a row of the table of authors (with a name).
#[derive(serde::Deserialize)]
#[serde(bound = "'de: 'a")]
struct Author<'a> {
    author_id: Text<'a>,
    #[serde(default)]
    name: Text<'a>,
}

#[derive(serde::Deserialize)]
#[serde(bound = "'de: 'a")]
struct Shelf<'a> {
    #[serde(default)]
    count: Text<'a>,
    name: Text<'a>,
}

#[derive(serde::Deserialize)]
#[serde(bound = "'de: 'a")]
struct Work<'a> {
    work_id: Text<'a>,
    media_type: Text<'a>,
}

#[derive(serde::Deserialize)]
#[serde(bound = "'de: 'a")]
struct Genres<'a> {
    book_id: Text<'a>,
    /// Readers who shelved the book under each genre.
    genres: BTreeMap<String, u64>,
}

impl Genres<'_> {
    /// The genres, most readers first.
    fn names(&self) -> String {
        let mut genres: Vec<(&String, &u64)> = self.genres.iter().collect();
        genres.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let names: Vec<&str> = genres.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }
}

/// A value that some files write as text and some as a number; null is empty.
#[derive(Clone, Default)]
struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(Text)
    }
}

struct TextVisitor;

/// Visits of values whose text has to be made.
macro_rules! as_text {
    ($($visit:ident: $value:ty),*) => { $(
        fn $visit<E: de::Error>(self, value: $value) -> Result<Self::Value, E> {
            Ok(Cow::Owned(value.to_string()))
        }
    )* };
}

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text or a number")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    as_text!(visit_str: &str, visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64);

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(""))
    }
}
