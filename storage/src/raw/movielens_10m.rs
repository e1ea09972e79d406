//! MovieLens-10M: `movies.dat`, `ratings.dat`, `::`-separated, UTF-8, ratings 0.5..5 in half stars.
//! Nothing is known of users; `tags.dat` is not read.

use std::path::Path;

use super::mapped::TextEncoding;
use super::movietweetings::{read_movies, read_ratings};
use super::source::Lines;
use super::tables::{EntityBuilder, half_stars};
use super::{RawTables, Reading};
use crate::error::Result;

/// Lines that are looked at for a half star.
const LOOK: usize = 1 << 18;

pub(super) fn read(dir: &Path, how: Reading<'_>) -> Result<RawTables> {
    let items = read_movies(dir, TextEncoding::Utf8, how)?;
    read_ratings(dir, EntityBuilder::open_ended("user"), items, half_stars(), how)
}

/// Whether the ratings in `dir` have half stars, which MovieTweetings, whose files have the same names, has
/// not. Files that can't be read have none: whoever reads them says why.
pub(super) fn has_half_stars(dir: &Path) -> bool {
    let Ok(mut lines) = Lines::open(dir, "ratings.dat", TextEncoding::Utf8) else { return false };
    let mut left = LOOK;
    while let (Ok(Some((_, text))), 1..) = (lines.next(), left) {
        if text.split("::").nth(2).is_some_and(|rating| rating.ends_with(".5")) {
            return true;
        }
        left -= 1;
    }
    false
}
