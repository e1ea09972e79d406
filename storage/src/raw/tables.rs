//! Building tables: ids to indices, ratings to levels, and the checks that all layouts share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::duplicates::{self, Duplicate};
use super::source::Place;
use super::{Rating, RawColumn, RawEntities, RawRatings, RawTables};
use crate::error::{RawProblem, Result, StorageError};
use crate::spill::{Fixed, Spill};

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
    pub(super) fn row_of(&self, key: &str) -> Option<(u64, impl Iterator<Item = &str>)> {
        let index = *self.index.get(key)? as usize;
        let columns = self.entities.fields.iter().chain(&self.entities.texts);
        let values = columns.filter_map(move |c| c.values.get(index).map(String::as_str));
        Some((self.lines.get(index).copied().unwrap_or_default(), values))
    }

    /// The index of a key that a rating names, which must be known already.
    fn find(&self, place: Place<'_>, field: &'static str, key: &str) -> Result<u32> {
        if let Some(index) = self.index.get(key) {
            return Ok(*index);
        }
        if key.is_empty() {
            return Err(place.error(field, RawProblem::Empty));
        }
        let table = self.table.clone().unwrap_or_default();
        Err(place.error(field, RawProblem::UnknownKey { key: key.to_owned(), table }))
    }

    /// The index of a key that a rating names; without a table, a new one if need be.
    fn resolve(&mut self, place: Place<'_>, field: &'static str, key: &str) -> Result<u32> {
        if self.table.is_some() || key.is_empty() || self.index.contains_key(key) {
            return self.find(place, field, key);
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
    /// Row and line wherever a row is not one line after the row before.
    lines: Vec<(u64, u64)>,
    next_line: u64,
    spill: Spill,
    /// Ratings in memory after which they are spilled.
    room: usize,
}

impl RatingBuilder {
    /// Ratings of `levels` (ascending) read from `path`.
    pub(super) fn new(
        path: &Path,
        users: EntityBuilder,
        items: EntityBuilder,
        levels: Vec<f32>,
        spill: &Spill,
    ) -> Self {
        Self {
            path: path.to_path_buf(),
            users,
            items,
            levels,
            ratings: RawRatings::default(),
            lines: Vec::new(),
            next_line: 0,
            spill: spill.clone(),
            room: spill.rows(1, Rating::SIZE),
        }
    }

    /// Adds one rating: user, item, rating and timestamp as in the file.
    pub(super) fn add(&mut self, line: u64, [user, item, rating, time]: [&str; 4]) -> Result<()> {
        let place = Place { path: &self.path, line };
        let user = self.users.resolve(place, "user", user)?;
        let item = self.items.resolve(place, "item", item)?;
        let (level, timestamp) = self.values(place, rating, time)?;
        self.push(line, Rating { user, item, level, timestamp })
    }

    fn push(&mut self, line: u64, rating: Rating) -> Result<()> {
        let row = self.ratings.len() as u64;
        if row >= u64::from(u32::MAX) {
            let place = Place { path: &self.path, line };
            return Err(place.error("line", RawProblem::TooManyRatings));
        }
        if line != self.next_line || row == 0 {
            self.lines.push((row, line));
        }
        self.next_line = line + 1;
        if self.ratings.user.len() >= self.room {
            self.ratings.spill(&self.spill)?;
        }
        self.ratings.push(rating);
        Ok(())
    }

    fn values(&self, place: Place<'_>, rating: &str, time: &str) -> Result<(u8, i64)> {
        let level = self.level(place, rating)?;
        let timestamp = time
            .parse()
            .map_err(|_| place.error("timestamp", RawProblem::NotATimestamp(time.to_owned())))?;
        Ok((level, timestamp))
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

    /// Adds what was read of a part of the file, up to its error if there is one. Users get their
    /// indices here, so that these do not depend on how the file was cut into parts.
    pub(super) fn add_part(&mut self, part: Part) -> Result<()> {
        let place = Place { path: &self.path, line: 0 };
        let users: Vec<u32> = part
            .users
            .iter()
            .map(|key| self.users.resolve(place, "user", key))
            .collect::<Result<_>>()?;
        for (line, rating) in part.rows {
            let user = users.get(rating.user as usize).copied().unwrap_or(u32::MAX);
            self.push(line, Rating { user, ..rating })?;
        }
        part.error.map_or(Ok(()), Err)
    }

    /// The tables, once no (user, item) pair is found to occur twice.
    pub(super) fn finish(self) -> Result<RawTables> {
        if self.ratings.is_empty() {
            return Err(StorageError::EmptyRawFile { path: self.path });
        }
        let (users, items) = (self.users.entities.keys.len(), self.items.entities.keys.len());
        if let Some(twice) = duplicates::first(&self.ratings, users, items, &self.spill)? {
            return Err(self.duplicate(twice));
        }
        Ok(RawTables {
            rating_levels: self.levels,
            users: self.users.entities,
            items: self.items.entities,
            ratings: self.ratings,
            ..RawTables::default()
        })
    }

    fn duplicate(
        &self,
        Duplicate { rows: [old, row], ratings: [first, second] }: Duplicate,
    ) -> StorageError {
        let line = |row: u32| {
            let row = u64::from(row);
            let before = self.lines.partition_point(|(start, _)| *start <= row);
            let start = before.checked_sub(1).and_then(|i| self.lines.get(i));
            start.map_or(0, |(start, line)| line + row - start)
        };
        let key = |entities: &EntityBuilder, index: u32| {
            entities.entities.keys.get(index as usize).cloned().unwrap_or_default()
        };
        let problem = if first == second {
            RawProblem::DuplicateLine { first: line(old) }
        } else {
            RawProblem::SecondRating {
                user: key(&self.users, second.user),
                item: key(&self.items, second.item),
                first: line(old),
            }
        };
        Place { path: &self.path, line: line(row) }.error("line", problem)
    }
}

/// What was read of a part of a file, by a thread of its own.
#[derive(Default)]
pub(super) struct Part {
    /// Keys of the users, as they first appear in the part.
    users: Vec<String>,
    /// Each rating with its line; the user is an index into `users`.
    rows: Vec<(u64, Rating)>,
    /// What ended the part early.
    error: Option<StorageError>,
}

/// Reads a part of a file.
pub(super) struct PartReader<'a> {
    ratings: &'a RatingBuilder,
    index: HashMap<String, u32>,
    part: Part,
}

impl<'a> PartReader<'a> {
    /// A reader whose items, levels and path are those of `ratings`.
    pub(super) fn new(ratings: &'a RatingBuilder) -> Self {
        Self { ratings, index: HashMap::new(), part: Part::default() }
    }

    /// Adds a line, as [`RatingBuilder::add`] would.
    pub(super) fn add(&mut self, line: u64, [user, item, rating, time]: [&str; 4]) -> Result<()> {
        let place = Place { path: &self.ratings.path, line };
        let user = self.user(place, user)?;
        let item = self.ratings.items.find(place, "item", item)?;
        let (level, timestamp) = self.ratings.values(place, rating, time)?;
        self.part.rows.push((line, Rating { user, item, level, timestamp }));
        Ok(())
    }

    fn user(&mut self, place: Place<'_>, key: &str) -> Result<u32> {
        // Files mostly have a user's ratings together.
        let last = self.part.rows.last().map_or(0, |(_, rating)| rating.user);
        if self.part.users.get(last as usize).is_some_and(|k| k == key) {
            return Ok(last);
        }
        if let Some(index) = self.index.get(key) {
            return Ok(*index);
        }
        if key.is_empty() {
            return Err(place.error("user", RawProblem::Empty));
        }
        let next = self.part.users.len() as u32;
        self.index.insert(key.to_owned(), next);
        self.part.users.push(key.to_owned());
        Ok(next)
    }

    /// What was read, and what ended it early.
    pub(super) fn finish(mut self, error: Option<StorageError>) -> Part {
        self.part.error = error;
        self.part
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
