//! MovieTweetings: `movies.dat` and `ratings.dat`, `::`-separated, UTF-8, ratings 0..10.

use std::path::Path;

use super::RawTables;
use super::source::{Encoding, Lines, Place, columns};
use super::tables::{EntityBuilder, RatingBuilder, film, whole_stars};
use crate::error::Result;
use crate::spill::Spill;

pub(super) fn read(dir: &Path, spill: &Spill) -> Result<RawTables> {
    let items = read_movies(dir, Encoding::Utf8)?;
    let users = EntityBuilder::open_ended("user");
    read_ratings(dir, users, items, whole_stars(0, 10), spill)
}

/// `movies.dat`, which MovieLens-1M has as well.
pub(super) fn read_movies(dir: &Path, encoding: Encoding) -> Result<EntityBuilder> {
    let mut lines = Lines::open(dir, "movies.dat", encoding)?;
    let path = lines.path().to_path_buf();
    let texts = ["title", "genres", "year"];
    let mut items = EntityBuilder::table("item", &["title", "genre"], &texts, &path);
    while let Some((line, text)) = lines.next()? {
        let place = Place { path: &path, line };
        let [key, title, genres] = columns(place, &text, "::", "item::title::genres")?;
        let (genre, texts) = film(title, genres);
        items.add(place, key, [title, genre], texts)?;
    }
    Ok(items)
}

/// `ratings.dat`, which MovieLens-1M has as well.
pub(super) fn read_ratings(
    dir: &Path,
    users: EntityBuilder,
    items: EntityBuilder,
    levels: Vec<f32>,
    spill: &Spill,
) -> Result<RawTables> {
    let mut lines = Lines::open(dir, "ratings.dat", Encoding::Utf8)?;
    let path = lines.path().to_path_buf();
    let mut ratings = RatingBuilder::new(&path, users, items, levels, spill);
    while let Some((line, text)) = lines.next()? {
        let place = Place { path: &path, line };
        ratings.add(line, columns(place, &text, "::", "user::item::rating::timestamp")?)?;
    }
    ratings.finish()
}
