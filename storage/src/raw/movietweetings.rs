//! MovieTweetings: `movies.dat` and `ratings.dat`, `::`-separated, UTF-8, ratings 0..10.

use std::path::Path;

use super::faults::Faults;
use super::source::{Encoding, Lines, Place, columns};
use super::tables::{EntityBuilder, FILM_TEXTS, RatingBuilder, film, whole_stars};
use super::{RawTables, Reading};
use crate::error::Result;

pub(super) fn read(dir: &Path, how: Reading<'_>) -> Result<RawTables> {
    let items = read_movies(dir, Encoding::Utf8, how)?;
    let users = EntityBuilder::open_ended("user");
    read_ratings(dir, users, items, whole_stars(0, 10), how)
}

/// `movies.dat`, which MovieLens-1M and 10M have as well.
pub(super) fn read_movies(
    dir: &Path,
    encoding: Encoding,
    how: Reading<'_>,
) -> Result<EntityBuilder> {
    let mut lines = Lines::open(dir, "movies.dat", encoding)?;
    let path = lines.path().to_path_buf();
    let mut items = EntityBuilder::table("item", [&["title", "genre"], &FILM_TEXTS], &path, how);
    let mut faults = Faults::default();
    faults.rows(|| {
        let Some((line, text)) = lines.next()? else { return Ok(false) };
        let place = Place { path: &path, line };
        let [key, title, genres] = columns(place, &text, "::", "item::title::genres")?;
        let (genre, texts) = film(title, genres);
        items.add(place, key, [title, genre], texts)?;
        Ok(true)
    })?;
    faults.check()?;
    Ok(items)
}

/// `ratings.dat`, which MovieLens-1M and 10M have as well.
pub(super) fn read_ratings(
    dir: &Path,
    users: EntityBuilder,
    items: EntityBuilder,
    levels: Vec<f32>,
    how: Reading<'_>,
) -> Result<RawTables> {
    let mut lines = Lines::open(dir, "ratings.dat", Encoding::Utf8)?;
    let path = lines.path().to_path_buf();
    let mut ratings = RatingBuilder::new(&path, users, items, levels, how);
    let mut faults = Faults::default();
    faults.rows(|| {
        let Some((line, text)) = lines.next()? else { return Ok(false) };
        let place = Place { path: &path, line };
        ratings.add(line, columns(place, &text, "::", "user::item::rating::timestamp")?)?;
        Ok(true)
    })?;
    ratings.finish(faults, Vec::new())
}
