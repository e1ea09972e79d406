//! BookCrossing: `BX-Users.csv`, `BX-Books.csv`, `BX-Book-Ratings.csv`; `;`-separated, quoted, latin-1,
//! ratings 0..10 without time.
//!
//! The files are no regular CSV: quotes inside a value stand bare, doubled or behind a backslash. What
//! separates two values is `;` between two quotes, and only that; so the published code reads them, and
//! its fields are these: location is the country, age one of 11 buckets, books whose ISBN has other
//! characters than letters and digits are left out, and so are ratings of users and books that the tables
//! lack. They are counted.

use std::path::Path;

use super::faults::Faults;
use super::mapped::TextEncoding;
use super::source::{Lines, Place};
use super::tables::{EntityBuilder, RatingBuilder, whole_stars};
use super::{RawTables, Reading};
use crate::error::{RawProblem, Result, StorageError};

/// The files, ratings last.
pub(super) const FILES: [&str; 3] = ["BX-Users.csv", "BX-Books.csv", "BX-Book-Ratings.csv"];
/// What is known of a user, as field and as text.
pub(super) const USER_COLUMNS: [&str; 2] = ["location", "age"];
/// What is known of a book, as field and as text.
pub(super) const BOOK_COLUMNS: [&str; 4] = ["title", "author", "year", "publisher"];
/// Lines that one quoted value may span.
const MAX_LINES: usize = 16;
const UNKNOWN: &str = "unknown";

pub(super) fn read(dir: &Path, how: Reading<'_>) -> Result<RawTables> {
    let [users_file, books_file, ratings_file] = FILES;
    let users = read_users(dir, users_file, how)?;
    let (books, bad_isbns) = read_books(dir, books_file, how)?;

    let rows = Rows::open(dir, ratings_file, "\"User-ID\";\"ISBN\";\"Book-Rating\"")?;
    let mut ratings = RatingBuilder::new(rows.path(), users, books, whole_stars(0, 10), how);
    let (mut no_user, mut no_book) = (0, 0);
    let faults = rows.each(|place, [user, isbn, rating]| {
        match ratings.add(place.line, [user, isbn, rating, "0"]) {
            Err(StorageError::Raw { field, problem: RawProblem::UnknownKey { .. }, .. }) => {
                *(if field == "user" { &mut no_user } else { &mut no_book }) += 1;
                Ok(())
            }
            added => added,
        }
    })?;
    let dropped = [
        ("books whose ISBN is not letters and digits", bad_isbns),
        (&format!("ratings by users that {users_file} lacks"), no_user),
        (&format!("ratings of books that {books_file} lacks, or whose ISBN is bad"), no_book),
    ];
    Ok(RawTables { untimed: true, ..ratings.finish(faults, &dropped)? })
}

fn read_users(dir: &Path, name: &str, how: Reading<'_>) -> Result<EntityBuilder> {
    let rows = Rows::open(dir, name, "\"User-ID\";\"Location\";\"Age\"")?;
    let mut users = EntityBuilder::table("user", [&USER_COLUMNS; 2], rows.path(), how);
    let mut faults = rows.each(|place, [key, location, age]| {
        let (country, age) = (country(location), age_bucket(place, age)?);
        users.add(place, key, [country.as_str(), age], [country.clone(), age.to_owned()])
    })?;
    faults.check()?;
    Ok(users)
}

/// The books, and how many were left out for their ISBN.
fn read_books(dir: &Path, name: &str, how: Reading<'_>) -> Result<(EntityBuilder, u64)> {
    const LAYOUT: &str = "\"ISBN\";\"Book-Title\";\"Book-Author\";\"Year-Of-Publication\";\"Publisher\";\
                          \"Image-URL-S\";\"Image-URL-M\";\"Image-URL-L\"";
    let rows = Rows::open(dir, name, LAYOUT)?;
    let mut books = EntityBuilder::table("item", [&BOOK_COLUMNS; 2], rows.path(), how);
    let mut bad_isbns = 0;
    let mut faults = rows.each::<8>(|place, [isbn, title, author, year, publisher, ..]| {
        if isbn.is_empty() {
            return Err(place.error("item", RawProblem::Empty));
        }
        if !isbn.bytes().all(|b| b.is_ascii_alphanumeric()) {
            bad_isbns += 1;
            return Ok(());
        }
        let named = |text| if is_missing(text) { UNKNOWN } else { text };
        let year = if year.chars().count() == 4 { year } else { UNKNOWN };
        let row = [title, named(author), year, named(publisher)];
        books.add(place, isbn, row, row.map(unescape))
    })?;
    faults.check()?;
    Ok((books, bad_isbns))
}

fn is_missing(text: &str) -> bool {
    text.is_empty() || text == "NULL" || text.eq_ignore_ascii_case("n/a")
}

/// `\"` and `\\` as a person reads them.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match characters.peek() {
            Some(next @ ('"' | '\\')) if character == '\\' => {
                out.push(*next);
                characters.next();
            }
            _ => out.push(character),
        }
    }
    out
}

/// The age's bucket, as published; ages below 5 and above 100 are not believed.
fn age_bucket(place: Place<'_>, age: &str) -> Result<&'static str> {
    if is_missing(age) {
        return Ok(UNKNOWN);
    }
    // Some copies have "34.0".
    let years: u32 = age
        .strip_suffix(".0")
        .unwrap_or(age)
        .parse()
        .map_err(|_| place.error("age", RawProblem::NotANumber(age.to_owned())))?;
    Ok(match years {
        5..18 => "under 18",
        18..25 => "18-24",
        25..30 => "25-29",
        30..35 => "30-34",
        35..40 => "35-39",
        40..45 => "40-44",
        45..50 => "45-49",
        50..55 => "50-54",
        55..60 => "55-59",
        60..=100 => "60+",
        _ => UNKNOWN,
    })
}

/// Other spellings of a country, lower case.
const COUNTRIES: [(&str, &[&str]); 9] = [
    ("USA", &["us", "usa", "u s", "u s a", "united states", "united states of america"]),
    ("UK", &["uk", "u k"]),
    ("Spain", &["españa", "cataluña", "castilla-león"]),
    ("Italy", &["italia", "l`italia"]),
    ("Germany", &["deutschland", "baden-württemberg"]),
    ("Mexico", &["méxico"]),
    ("Turkey", &["türkiye"]),
    ("Algeria", &["algérie", "l`algérie"]),
    ("Ivory Coast", &["cote d`ivoire", "côte d`ivoire"]),
];

/// The country: what follows the last comma of `city, state, country`, in one spelling.
fn country(location: &str) -> String {
    let last = location.rsplit(", ").next().unwrap_or_default();
    let name = last.trim().replace('!', "");
    let name = name.trim_matches([' ', ',', '.']).to_lowercase();
    if let Some((country, _)) = COUNTRIES.iter().find(|(_, other)| other.contains(&name.as_str())) {
        return (*country).to_owned();
    }
    if name.contains("u.s") && name != "u.s. virgin islands" {
        return "USA".to_owned();
    }
    for (part, country) in
        [("spain", "Spain"), ("brasil", "Brazil"), ("greece", "Greece"), ("china", "China")]
    {
        if name.contains(part) {
            return country.to_owned();
        }
    }
    // Letters lost to a wrong encoding, HTML entities, remarks.
    let lost = ["&#", "?", "@", "*", "n/a", "\u{fffd}", "ï¿½"];
    if name.chars().count() < 2 || lost.iter().any(|mark| name.contains(mark)) {
        return UNKNOWN.to_owned();
    }
    title_case(&name)
}

/// The first letter of each word as a capital.
fn title_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut inside = false;
    for character in name.chars() {
        if inside {
            out.push(character)
        } else {
            out.extend(character.to_uppercase())
        }
        inside = character.is_alphabetic();
    }
    out
}

/// The rows of a file behind its header. A quoted value may hold line ends.
struct Rows {
    lines: Lines,
    layout: &'static str,
}

impl Rows {
    fn open(dir: &Path, name: &str, layout: &'static str) -> Result<Self> {
        let mut lines = Lines::open(dir, name, TextEncoding::Latin1)?;
        let header = lines.next()?.map(|(line, header)| (line, header.trim().to_owned()));
        match header {
            None => Err(StorageError::EmptyRawFile { path: lines.path().to_path_buf() }),
            Some((line, found)) if found != layout => {
                let problem = RawProblem::Header { expected: layout, found };
                Err(Place { path: lines.path(), line }.error("header", problem))
            }
            Some(_) => Ok(Self { lines, layout }),
        }
    }

    fn path(&self) -> &Path {
        self.lines.path()
    }

    /// Hands every row of `N` values to `row`, with the place of its first line. Returns those that can't be
    /// used.
    fn each<const N: usize>(
        mut self,
        mut row: impl FnMut(Place<'_>, [&str; N]) -> Result<()>,
    ) -> Result<Faults> {
        let path = self.path().to_path_buf();
        let mut faults = Faults::default();
        faults.rows(|| {
            let Some((line, text)) = self.next::<N>()? else { return Ok(false) };
            let place = Place { path: &path, line };
            row(place, split(place, &text, self.layout)?).map(|()| true)
        })?;
        Ok(faults)
    }

    /// The next row of `N` values with the number of its first line.
    fn next<const N: usize>(&mut self) -> Result<Option<(u64, String)>> {
        let Some((first, text)) = self.lines.next()? else { return Ok(None) };
        let mut row = text.trim().to_owned();
        for _ in 1..MAX_LINES {
            if pieces(&row, false).len() >= N || is_closed(&row) {
                break;
            }
            let Some((_, text)) = self.lines.next()? else {
                let place = Place { path: self.path(), line: first };
                return Err(place.error("line", RawProblem::OpenQuote));
            };
            row.push('\n');
            row.push_str(text.trim());
        }
        Ok(Some((first, row)))
    }
}

/// Whether the row's last value ends with it: in a quote that no backslash precedes, or `NULL`.
fn is_closed(row: &str) -> bool {
    let before = row.strip_suffix('"').filter(|rest| !rest.is_empty() && !rest.ends_with(';'));
    before.is_some_and(|rest| !is_escaped(rest)) || row.ends_with("NULL")
}

/// Whether what follows `text` is escaped: it ends in an odd number of backslashes.
fn is_escaped(text: &str) -> bool {
    text.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1
}

/// The pieces between separators: `;` where a value, quoted or `NULL`, ends and another begins. A quote
/// behind a backslash is mostly the last character of a value (`"... \"";"`), so it may end one, unless
/// `escapes` says otherwise.
fn pieces(row: &str, escapes: bool) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for (at, _) in row.match_indices(';') {
        let before = row.get(start..at).unwrap_or_default();
        let after = row.get(at + 1..).unwrap_or_default();
        let quoted = before.strip_suffix('"').filter(|inside| !inside.is_empty());
        let ends = before == "NULL" || quoted.is_some_and(|inside| !escapes || !is_escaped(inside));
        if ends && (after.starts_with('"') || after.starts_with("NULL")) {
            pieces.push(before);
            start = at + 1;
        }
    }
    pieces.push(row.get(start..).unwrap_or_default());
    pieces
}

/// Splits a row into exactly `N` values, without their quotes.
fn split<'a, const N: usize>(
    place: Place<'_>,
    row: &'a str,
    layout: &'static str,
) -> Result<[&'a str; N]> {
    let mut values = [""; N];
    let both = [pieces(row, false), pieces(row, true)];
    let found = both.first().map_or(0, Vec::len);
    let Some(pieces) = both.into_iter().find(|pieces| pieces.len() == N) else {
        return Err(place.column_count(N, found, layout));
    };
    for (value, piece) in values.iter_mut().zip(pieces) {
        let quoted = piece.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let Some(inside) = quoted.or_else(|| (piece == "NULL").then_some(piece)) else {
            return Err(place.error("line", RawProblem::OpenQuote));
        };
        *value = inside.trim_matches('\t');
    }
    Ok(values)
}
