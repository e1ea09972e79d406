//! MovieLens-100K: `u.item` and `u.user` (`|`-separated, latin-1), `u.data` (tabs), ratings 1..5.

use std::path::Path;

use super::mapped::TextEncoding;
use super::movielens_1m::{USER_COLUMNS, gender_word, unknown};
use super::source::{Lines, Place, columns};
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
    let lines = Lines::open(dir, "u.data", TextEncoding::Utf8)?;
    let layout = ["\t", "user, item, rating, timestamp; tabs"];
    RatingBuilder::read(lines, [users, items], whole_stars(1, 5), how, layout)
}

fn read_items(dir: &Path, how: Reading<'_>) -> Result<EntityBuilder> {
    const LAYOUT: &str = "item|title|release|video release|URL|19 genre flags";
    let lines = Lines::open(dir, "u.item", TextEncoding::Latin1)?;
    let columns_of = [&["title", "genre"][..], &FILM_TEXTS];
    EntityBuilder::read("item", columns_of, lines, how, |items, place, text| {
        let row: [&str; 24] = columns(place, text, "|", LAYOUT)?;
        let [key, title, _, _, _, flags @ ..] = row;
        let genres = genres(place, &flags)?;
        let (genre, texts) = film(title, &genres);
        items.add(place, key, [title, genre], texts)
    })
}

/// The names of the set flags, joined by `|`.
fn genres(place: Place<'_>, flags: &[&str]) -> Result<String> {
    let mut names = Vec::new();
    for (flag, name) in flags.iter().zip(GENRES) {
        match *flag {
            "1" => names.push(name),
            "0" => {}
            other => return Err(unknown(place, "genre", other, "0, 1")),
        }
    }
    Ok(names.join("|"))
}

fn read_users(dir: &Path, how: Reading<'_>) -> Result<EntityBuilder> {
    const LAYOUT: &str = "user|age|gender|occupation|zip";
    let lines = Lines::open(dir, "u.user", TextEncoding::Latin1)?;
    EntityBuilder::read("user", USER_COLUMNS, lines, how, |users, place, text| {
        let [key, age, gender, occupation, zip] = columns(place, text, "|", LAYOUT)?;
        if age.parse::<u8>().is_err() {
            return Err(place.error("age", RawProblem::NotANumber(age.to_owned())));
        }
        let texts = [gender_word(place, gender)?, age, occupation];
        users.add(place, key, [gender, age, occupation, zip], texts.map(str::to_owned))
    })
}
