//! Building tables: ids to indices, ratings to levels, and the checks that all layouts share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::source::Place;
use super::{RawColumn, RawEntities, RawRatings, RawTables};
use crate::error::{RawProblem, Result, StorageError};

/// Users or items while they are read.
#[derive(Default)]
pub(super) struct EntityBuilder {
    entities: RawEntities,
    index: HashMap<String, u32>,
    lines: Vec<u64>,
    /// The file that defines them; `None` when the ratings do.
    table: Option<PathBuf>,
}

impl EntityBuilder {
    /// Entities that a table defines.
    pub(super) fn table(name: &str, fields: &[&str], texts: &[&str], path: &Path) -> Self {
        let columns = |names: &[&str]| {
            let column = |n: &&str| RawColumn { name: (*n).to_owned(), values: Vec::new() };
            names.iter().map(column).collect()
        };
        let entities = RawEntities {
            name: name.to_owned(),
            keys: Vec::new(),
            fields: columns(fields),
            texts: columns(texts),
        };
        Self { entities, table: Some(path.to_path_buf()), ..Self::default() }
    }

    /// Entities without a table: whoever has a rating.
    pub(super) fn open_ended(name: &str) -> Self {
        let entities = RawEntities { name: name.to_owned(), ..RawEntities::default() };
        Self { entities, ..Self::default() }
    }

    /// Adds a row of the table. `fields` and `texts` have the table's columns in order.
    pub(super) fn add<'a>(
        &mut self,
        place: Place<'_>,
        key: &str,
        fields: impl IntoIterator<Item = &'a str>,
        texts: impl IntoIterator<Item = String>,
    ) -> Result<()> {
        let field = if self.entities.name == "user" { "user" } else { "item" };
        if key.is_empty() {
            return Err(place.error(field, RawProblem::Empty));
        }
        let next = self.entities.keys.len() as u32;
        if let Some(old) = self.index.insert(key.to_owned(), next) {
            let first = self.lines.get(old as usize).copied().unwrap_or_default();
            let problem = RawProblem::DuplicateKey { key: key.to_owned(), first };
            return Err(place.error(field, problem));
        }
        self.lines.push(place.line);
        self.entities.keys.push(key.to_owned());
        for (column, value) in self.entities.fields.iter_mut().zip(fields) {
            column.values.push(value.to_owned());
        }
        for (column, value) in self.entities.texts.iter_mut().zip(texts) {
            column.values.push(value);
        }
        Ok(())
    }

    /// Line and values (fields, then texts) of the row of `key`, where there is one.
    pub(super) fn find(&self, key: &str) -> Option<(u64, impl Iterator<Item = &str>)> {
        let index = *self.index.get(key)? as usize;
        let columns = self.entities.fields.iter().chain(&self.entities.texts);
        let values = columns.filter_map(move |c| c.values.get(index).map(String::as_str));
        Some((self.lines.get(index).copied().unwrap_or_default(), values))
    }

    /// The index of a key that a rating names.
    fn resolve(&mut self, place: Place<'_>, field: &'static str, key: &str) -> Result<u32> {
        if let Some(index) = self.index.get(key) {
            return Ok(*index);
        }
        if key.is_empty() {
            return Err(place.error(field, RawProblem::Empty));
        }
        if let Some(table) = &self.table {
            let problem = RawProblem::UnknownKey { key: key.to_owned(), table: table.clone() };
            return Err(place.error(field, problem));
        }
        let next = self.entities.keys.len() as u32;
        self.index.insert(key.to_owned(), next);
        self.entities.keys.push(key.to_owned());
        Ok(next)
    }
}

/// Ratings while they are read.
pub(super) struct RatingBuilder {
    path: PathBuf,
    users: EntityBuilder,
    items: EntityBuilder,
    levels: Vec<f32>,
    ratings: RawRatings,
    lines: Vec<u32>,
}

impl RatingBuilder {
    /// Ratings of `levels` (ascending) read from `path`.
    pub(super) fn new(
        path: &Path,
        users: EntityBuilder,
        items: EntityBuilder,
        levels: Vec<f32>,
    ) -> Self {
        let ratings = RawRatings::default();
        Self { path: path.to_path_buf(), users, items, levels, ratings, lines: Vec::new() }
    }

    /// Adds one rating: user, item, rating and timestamp as in the file.
    pub(super) fn add(&mut self, line: u64, [user, item, rating, time]: [&str; 4]) -> Result<()> {
        let place = Place { path: &self.path, line };
        let user = self.users.resolve(place, "user", user)?;
        let item = self.items.resolve(place, "item", item)?;
        let level = self.level(place, rating)?;
        let timestamp = time
            .parse()
            .map_err(|_| place.error("timestamp", RawProblem::NotATimestamp(time.to_owned())))?;
        self.ratings.user.push(user);
        self.ratings.item.push(item);
        self.ratings.level.push(level);
        self.ratings.timestamp.push(timestamp);
        self.lines.push(u32::try_from(line).unwrap_or(u32::MAX));
        Ok(())
    }

    fn level(&self, place: Place<'_>, rating: &str) -> Result<u8> {
        let stars: f32 = rating
            .parse()
            .map_err(|_| place.error("rating", RawProblem::NotANumber(rating.to_owned())))?;
        let level = self.levels.iter().position(|l| *l == stars);
        level.and_then(|l| u8::try_from(l).ok()).ok_or_else(|| {
            let levels: Vec<String> = self.levels.iter().map(f32::to_string).collect();
            let problem =
                RawProblem::NotALevel { found: rating.to_owned(), levels: levels.join(", ") };
            place.error("rating", problem)
        })
    }

    /// The tables, once no (user, item) pair is found to occur twice.
    pub(super) fn finish(self) -> Result<RawTables> {
        if self.ratings.user.is_empty() {
            return Err(StorageError::EmptyRawFile { path: self.path });
        }
        self.refuse_duplicates()?;
        Ok(RawTables {
            rating_levels: self.levels,
            users: self.users.entities,
            items: self.items.entities,
            ratings: self.ratings,
            ..RawTables::default()
        })
    }

    fn refuse_duplicates(&self) -> Result<()> {
        let pairs = || self.ratings.user.iter().zip(&self.ratings.item);
        let key = |(user, item): (&u32, &u32)| (u64::from(*user) << 32) | u64::from(*item);
        let mut sorted: Vec<u64> = pairs().map(key).collect();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() == self.ratings.user.len() {
            return Ok(());
        }
        drop(sorted);
        // Rare: find the first line that repeats a pair, and the line it repeats.
        let mut first: HashMap<u64, usize> = HashMap::new();
        for (row, pair) in pairs().enumerate() {
            if let Some(old) = first.insert(key(pair), row) {
                return Err(self.duplicate(old, row));
            }
        }
        Ok(())
    }

    fn duplicate(&self, old: usize, row: usize) -> StorageError {
        let line = |row: usize| u64::from(self.lines.get(row).copied().unwrap_or_default());
        let same = self.ratings.level.get(old) == self.ratings.level.get(row)
            && self.ratings.timestamp.get(old) == self.ratings.timestamp.get(row);
        let name = |keys: &[String], index: Option<&u32>| {
            index.and_then(|i| keys.get(*i as usize)).cloned().unwrap_or_default()
        };
        let problem = if same {
            RawProblem::DuplicateLine { first: line(old) }
        } else {
            RawProblem::SecondRating {
                user: name(&self.users.entities.keys, self.ratings.user.get(row)),
                item: name(&self.items.entities.keys, self.ratings.item.get(row)),
                first: line(old),
            }
        };
        Place { path: &self.path, line: line(row) }.error("line", problem)
    }
}

/// The year at the end of a title, `... (1994)`; empty where there is none.
pub(super) fn year(title: &str) -> &str {
    let year = title.trim_end().strip_suffix(')').and_then(|t| t.rsplit_once('('));
    match year {
        Some((_, y)) if y.len() == 4 && y.bytes().all(|b| b.is_ascii_digit()) => y,
        _ => "",
    }
}

/// The first genre and the prompt's text columns of a film: title, genres, year.
pub(super) fn film<'a>(title: &str, genres: &'a str) -> (&'a str, [String; 3]) {
    let first = genres.split('|').next().unwrap_or_default();
    (first, [title.to_owned(), genres.replace('|', ", "), year(title).to_owned()])
}

/// The levels `from..=to` stars.
pub(super) fn whole_stars(from: u8, to: u8) -> Vec<f32> {
    (from..=to).map(f32::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn years() {
        assert_eq!(year("Toy Story (1995)"), "1995");
        assert_eq!(year("Toy Story (1995) "), "1995");
        assert_eq!(year("Postman, The (Il Postino) (1994)"), "1994");
        for none in ["unknown", "", "(1)", "A (abcd)", "1984", "A (1995", "()", ")"] {
            assert_eq!(year(none), "", "{none}");
        }
    }
}
