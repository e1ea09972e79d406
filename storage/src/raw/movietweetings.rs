//! MovieTweetings: `movies.dat` and `ratings.dat`, `::`-separated, UTF-8, ratings 0..10.

use std::path::Path;

use super::mapped::TextEncoding;
use super::source::{Lines, columns};
use super::tables::{EntityBuilder, FILM_TEXTS, RatingBuilder, film, whole_stars};
use super::{RawTables, Reading};
use crate::error::Result;

pub(super) fn read(dir: &Path, how: Reading<'_>) -> Result<RawTables> {
    let items = read_movies(dir, TextEncoding::Utf8, how)?;
    let users = EntityBuilder::open_ended("user");
    read_ratings(dir, users, items, whole_stars(0, 10), how)
}

/// `movies.dat`, which MovieLens-1M and 10M have as well.
pub(super) fn read_movies(
    dir: &Path,
    encoding: TextEncoding,
    how: Reading<'_>,
) -> Result<EntityBuilder> {
    let lines = Lines::open(dir, "movies.dat", encoding)?;
    let columns_of = [&["title", "genre"][..], &FILM_TEXTS];
    EntityBuilder::read("item", columns_of, lines, how, |items, place, text| {
        let [key, title, genres] = columns(place, text, "::", "item::title::genres")?;
        let (genre, texts) = film(title, genres);
        items.add(place, key, [title, genre], texts)
    })
}

/// `ratings.dat`, which MovieLens-1M and 10M have as well.
pub(super) fn read_ratings(
    dir: &Path,
    users: EntityBuilder,
    items: EntityBuilder,
    levels: Vec<f32>,
    how: Reading<'_>,
) -> Result<RawTables> {
    let lines = Lines::open(dir, "ratings.dat", TextEncoding::Utf8)?;
    let layout = ["::", "user::item::rating::timestamp"];
    RatingBuilder::read(lines, [users, items], levels, how, layout)
}
