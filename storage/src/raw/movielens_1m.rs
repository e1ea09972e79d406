//! MovieLens-1M: `movies.dat`, `users.dat`, `ratings.dat`, `::`-separated, latin-1, ratings 1..5.

use std::path::Path;

use super::mapped::TextEncoding;
use super::movietweetings::{read_movies, read_ratings};
use super::source::{Lines, Place, columns};
use super::tables::{EntityBuilder, whole_stars};
use super::{RawTables, Reading};
use crate::error::{RawProblem, Result, StorageError};

/// What prompts may use of a user, as in MovieLens-100K.
pub(super) const USER_TEXTS: [&str; 3] = ["gender", "age", "occupation"];
/// Fields and texts of a user, as in MovieLens-100K.
pub(super) const USER_COLUMNS: [&[&str]; 2] =
    [&["gender", "age", "occupation", "zip"], &USER_TEXTS];

/// Age codes of the release's documentation.
const AGES: [(&str, &str); 7] = [
    ("1", "under 18"),
    ("18", "18-24"),
    ("25", "25-34"),
    ("35", "35-44"),
    ("45", "45-49"),
    ("50", "50-55"),
    ("56", "56 or older"),
];

/// Occupation codes of the release's documentation, by number.
const OCCUPATIONS: [&str; 21] = [
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
];

pub(super) fn read(dir: &Path, how: Reading<'_>) -> Result<RawTables> {
    let items = read_movies(dir, TextEncoding::Latin1, how)?;
    let users = read_users(dir, how)?;
    read_ratings(dir, users, items, whole_stars(1, 5), how)
}

fn read_users(dir: &Path, how: Reading<'_>) -> Result<EntityBuilder> {
    const LAYOUT: &str = "user::gender::age::occupation::zip";
    let lines = Lines::open(dir, "users.dat", TextEncoding::Latin1)?;
    EntityBuilder::read("user", USER_COLUMNS, lines, how, |users, place, text| {
        let [key, gender, age, occupation, zip] = columns(place, text, "::", LAYOUT)?;
        let texts = [
            gender_word(place, gender)?,
            age_word(place, age)?,
            occupation_word(place, occupation)?,
        ];
        users.add(place, key, [gender, age, occupation, zip], texts.map(str::to_owned))
    })
}

/// The word for `M` or `F`, which MovieLens-100K has as well.
pub(super) fn gender_word(place: Place<'_>, code: &str) -> Result<&'static str> {
    match code {
        "M" => Ok("male"),
        "F" => Ok("female"),
        _ => Err(unknown(place, "gender", code, "M, F")),
    }
}

fn age_word(place: Place<'_>, code: &str) -> Result<&'static str> {
    let word = AGES.iter().find(|(c, _)| *c == code).map(|(_, word)| *word);
    word.ok_or_else(|| unknown(place, "age", code, "1, 18, 25, 35, 45, 50, 56"))
}

fn occupation_word(place: Place<'_>, code: &str) -> Result<&'static str> {
    let word = code.parse().ok().and_then(|i: usize| OCCUPATIONS.get(i)).copied();
    word.ok_or_else(|| unknown(place, "occupation", code, "0..20"))
}

/// A code that the layout does not have, as MovieLens-100K's flags may be.
pub(super) fn unknown(
    place: Place<'_>,
    field: &'static str,
    code: &str,
    expected: &'static str,
) -> StorageError {
    place.error(field, RawProblem::UnknownCode { found: code.to_owned(), expected })
}
