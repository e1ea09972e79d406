//! MovieLens-100K: `u.item` and `u.user` (`|`-separated, latin-1), `u.data` (tabs), ratings 1..5.

use std::path::Path;

use super::faults::Faults;
use super::movielens_1m::{USER_TEXTS, gender_word};
use super::source::{Encoding, Lines, Place, columns};
use super::tables::{EntityBuilder, FILM_TEXTS, RatingBuilder, film, whole_stars};
use super::{RawTables, Reading};
use crate::error::{RawProblem, Result};

/// The genres of the flags at the end of a line of `u.item`, in order.
const GENRES: [&str; 19] = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
];

pub(super) fn read(dir: &Path, how: Reading<'_>) -> Result<RawTables> {
    let items = read_items(dir, how)?;
    let users = read_users(dir, how)?;
    let mut lines = Lines::open(dir, "u.data", Encoding::Utf8)?;
    let path = lines.path().to_path_buf();
    let mut ratings = RatingBuilder::new(&path, users, items, whole_stars(1, 5), how);
    let mut faults = Faults::default();
    faults.rows(|| {
        let Some((line, text)) = lines.next()? else { return Ok(false) };
        let place = Place { path: &path, line };
        ratings.add(line, columns(place, &text, "\t", "user, item, rating, timestamp; tabs")?)?;
        Ok(true)
    })?;
    ratings.finish(faults, Vec::new())
}

fn read_items(dir: &Path, how: Reading<'_>) -> Result<EntityBuilder> {
    const LAYOUT: &str = "item|title|release|video release|URL|19 genre flags";
    let mut lines = Lines::open(dir, "u.item", Encoding::Latin1)?;
    let path = lines.path().to_path_buf();
    let mut items = EntityBuilder::table("item", [&["title", "genre"], &FILM_TEXTS], &path, how);
    let mut faults = Faults::default();
    faults.rows(|| {
        let Some((line, text)) = lines.next()? else { return Ok(false) };
        let place = Place { path: &path, line };
        let row: [&str; 24] = columns(place, &text, "|", LAYOUT)?;
        let [key, title, _, _, _, flags @ ..] = row;
        let genres = genres(place, &flags)?;
        let (genre, texts) = film(title, &genres);
        items.add(place, key, [title, genre], texts)?;
        Ok(true)
    })?;
    faults.check()?;
    Ok(items)
}

/// The names of the set flags, joined by `|`.
fn genres(place: Place<'_>, flags: &[&str]) -> Result<String> {
    let mut names = Vec::new();
    for (flag, name) in flags.iter().zip(GENRES) {
        match *flag {
            "1" => names.push(name),
            "0" => {}
            other => {
                let found = other.to_owned();
                return Err(
                    place.error("genre", RawProblem::UnknownCode { found, expected: "0, 1" })
                );
            }
        }
    }
    Ok(names.join("|"))
}

fn read_users(dir: &Path, how: Reading<'_>) -> Result<EntityBuilder> {
    let mut lines = Lines::open(dir, "u.user", Encoding::Latin1)?;
    let path = lines.path().to_path_buf();
    let fields = ["gender", "age", "occupation", "zip"];
    let mut users = EntityBuilder::table("user", [&fields, &USER_TEXTS], &path, how);
    let mut faults = Faults::default();
    faults.rows(|| {
        let Some((line, text)) = lines.next()? else { return Ok(false) };
        let place = Place { path: &path, line };
        let [key, age, gender, occupation, zip] =
            columns(place, &text, "|", "user|age|gender|occupation|zip")?;
        if age.parse::<u8>().is_err() {
            return Err(place.error("age", RawProblem::NotANumber(age.to_owned())));
        }
        let gender_text = gender_word(place, gender)?.to_owned();
        let texts = [gender_text, age.to_owned(), occupation.to_owned()];
        users.add(place, key, [gender, age, occupation, zip], texts)?;
        Ok(true)
    })?;
    faults.check()?;
    Ok(users)
}
