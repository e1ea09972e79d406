//! Building tables: ids to indices, ratings to levels, and the checks that all layouts share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::duplicates::{self, Duplicates, Repeated};
use super::faults::Faults;
use super::source::{Lines, Place, columns};
use super::time::{Notation, Source};
use super::{Dropped, Rating, RawColumn, RawEntities, RawRatings, RawTables, Reading};
use crate::error::{RawProblem, Result, StorageError};
use crate::spill::Spill;

/// Users or items while they are read.
#[derive(Default)]
pub(super) struct EntityBuilder {
    entities: RawEntities,
    index: HashMap<String, u32>,
    /// The one that was named last.
    last: u32,
    lines: Vec<u64>,
    /// The file that defines them; `None` when the ratings do.
    table: Option<PathBuf>,
    duplicates: Duplicates,
    /// Rows of the table that were left out because another one has their id.
    repeated: u64,
}

impl EntityBuilder {
    /// Entities that a table defines.
    pub(super) fn table(
        name: &'static str,
        [fields, texts]: [&[&str]; 2],
        path: &Path,
        how: Reading<'_>,
    ) -> Self {
        let columns = |names: &[&str]| {
            let column = |n: &&str| RawColumn { name: (*n).to_owned(), values: Vec::new() };
            names.iter().map(column).collect()
        };
        let entities =
            RawEntities { name, keys: Vec::new(), fields: columns(fields), texts: columns(texts) };
        let table = Some(path.to_path_buf());
        Self { entities, table, duplicates: how.duplicates, ..Self::default() }
    }

    /// Entities of a table of lines, each of which `row` adds.
    pub(super) fn read(
        name: &'static str,
        columns: [&[&str]; 2],
        lines: Lines,
        how: Reading<'_>,
        mut row: impl FnMut(&mut Self, Place<'_>, &str) -> Result<()>,
    ) -> Result<Self> {
        let mut entities = Self::table(name, columns, lines.path(), how);
        lines.each(|place, text| row(&mut entities, place, text))?.check()?;
        Ok(entities)
    }

    /// Entities without a table: whoever has a rating.
    pub(super) fn open_ended(name: &'static str) -> Self {
        let entities = RawEntities { name, ..RawEntities::default() };
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
        if key.is_empty() {
            return Err(place.error(self.entities.name, RawProblem::Empty));
        }
        if let Some(old) = self.index.get(key).map(|old| *old as usize) {
            let line = self.lines.get_mut(old);
            match self.duplicates {
                Duplicates::Refuse => {
                    let first = line.map_or(0, |line| *line);
                    let problem = RawProblem::DuplicateKey { key: key.to_owned(), first };
                    return Err(place.error(self.entities.name, problem));
                }
                Duplicates::First => {}
                Duplicates::Last => {
                    line.into_iter().for_each(|line| *line = place.line);
                    self.set(old, fields, texts);
                }
            }
            self.repeated += 1;
            return Ok(());
        }
        let next = self.entities.keys.len();
        self.index.insert(key.to_owned(), next as u32);
        self.lines.push(place.line);
        self.entities.keys.push(key.to_owned());
        self.set(next, fields, texts);
        Ok(())
    }

    /// Sets the values of a row, which may be one behind the last.
    fn set<'a>(
        &mut self,
        row: usize,
        fields: impl IntoIterator<Item = &'a str>,
        texts: impl IntoIterator<Item = String>,
    ) {
        let fields = self.entities.fields.iter_mut().zip(fields.into_iter().map(str::to_owned));
        for (column, value) in fields.chain(self.entities.texts.iter_mut().zip(texts)) {
            match column.values.get_mut(row) {
                Some(old) => *old = value,
                None => column.values.push(value),
            }
        }
    }

    /// Rows that were left out because another one has their id.
    fn dropped(&self) -> (String, u64) {
        let name = self.table.as_deref().and_then(Path::file_name).unwrap_or_default();
        (format!("rows of {} whose id another row has", name.to_string_lossy()), self.repeated)
    }

    /// Line and values (fields, then texts) of the row of `key`, where there is one.
    pub(super) fn row_of(&self, key: &str) -> Option<(u64, impl Iterator<Item = &str>)> {
        let index = *self.index.get(key)? as usize;
        let columns = self.entities.fields.iter().chain(&self.entities.texts);
        let values = columns.filter_map(move |c| c.values.get(index).map(String::as_str));
        Some((self.lines.get(index).copied().unwrap_or_default(), values))
    }

    /// The index of a key that a rating names, which must be known already.
    fn find(&self, place: Place<'_>, key: &str) -> Result<u32> {
        if let Some(index) = self.index.get(key) {
            return Ok(*index);
        }
        if key.is_empty() {
            return Err(place.error(self.entities.name, RawProblem::Empty));
        }
        let table = self.table.clone().unwrap_or_default();
        Err(place.error(self.entities.name, RawProblem::UnknownKey { key: key.to_owned(), table }))
    }

    /// The index of a key that a rating names; without a table, a new one if need be.
    fn resolve(&mut self, place: Place<'_>, key: &str) -> Result<u32> {
        // Files mostly have a user's ratings together.
        if self.entities.keys.get(self.last as usize).is_some_and(|last| last == key) {
            return Ok(self.last);
        }
        let is_new = self.table.is_none() && !key.is_empty() && !self.index.contains_key(key);
        if is_new {
            self.index.insert(key.to_owned(), self.entities.keys.len() as u32);
            self.entities.keys.push(key.to_owned());
        }
        self.last = self.find(place, key)?;
        Ok(self.last)
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
    duplicates: Duplicates,
    spill: Spill,
}

impl RatingBuilder {
    /// Ratings of `levels` (ascending) read from `path`.
    pub(super) fn new(
        path: &Path,
        users: EntityBuilder,
        items: EntityBuilder,
        levels: Vec<f32>,
        how: Reading<'_>,
    ) -> Self {
        Self {
            path: path.to_path_buf(),
            users,
            items,
            levels,
            ratings: RawRatings::within(how.spill),
            lines: Vec::new(),
            next_line: 0,
            duplicates: how.duplicates,
            spill: how.spill.clone(),
        }
    }

    /// All ratings of lines of four columns.
    pub(super) fn read(
        lines: Lines,
        [users, items]: [EntityBuilder; 2],
        levels: Vec<f32>,
        how: Reading<'_>,
        [separator, layout]: [&'static str; 2],
    ) -> Result<RawTables> {
        let mut ratings = Self::new(lines.path(), users, items, levels, how);
        let faults = lines.each(|place, text| {
            ratings.add(place.line, columns(place, text, separator, layout)?)
        })?;
        ratings.finish(faults, &[])
    }

    /// Adds one rating: user, item, rating and time, in seconds, as in the file.
    pub(super) fn add(&mut self, line: u64, [user, item, rating, time]: [&str; 4]) -> Result<()> {
        let place = Place { path: &self.path, line };
        let user = self.users.resolve(place, user)?;
        let item = self.items.resolve(place, item)?;
        let (level, timestamp) = self.values(place, rating, time)?;
        self.push(line, Rating { user, item, level, timestamp })
    }

    /// Adds one rating of a level at a time in nanoseconds.
    pub(super) fn insert(
        &mut self,
        line: u64,
        [user, item]: [&str; 2],
        level: u8,
        timestamp: i64,
    ) -> Result<()> {
        let place = Place { path: &self.path, line };
        let user = self.users.resolve(place, user)?;
        let item = self.items.resolve(place, item)?;
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
        self.ratings.push(rating)
    }

    fn values(&self, place: Place<'_>, rating: &str, time: &str) -> Result<(u8, i64)> {
        let level = self.stars(rating).map_err(|problem| place.error("rating", problem))?;
        let time = Notation::Number(9).read(time, Source::Layout);
        Ok((level, time.map_err(|problem| place.error("timestamp", problem))?))
    }

    /// The level of a rating as in the file.
    pub(super) fn stars(&self, rating: &str) -> Result<u8, RawProblem> {
        if rating.is_empty() {
            return Err(RawProblem::Missing { found: "".into(), advice: "" });
        }
        let stars = rating.parse().map_err(|_| RawProblem::NotANumber(rating.to_owned()))?;
        self.level(stars, rating)
    }

    /// The level of so many stars, which are written so.
    pub(super) fn level(&self, stars: f32, found: &str) -> Result<u8, RawProblem> {
        let level = self.levels.iter().position(|level| *level == stars);
        level.and_then(|level| u8::try_from(level).ok()).ok_or_else(|| {
            let levels: Vec<String> = self.levels.iter().map(f32::to_string).collect();
            RawProblem::NotALevel { found: found.to_owned(), levels: levels.join(", ") }
        })
    }

    /// Adds what was read of a part of the file. Users get their indices here, so that these do not depend
    /// on how the file was cut into parts.
    pub(super) fn add_part(&mut self, part: Part, faults: &mut Faults) -> Result<()> {
        faults.append(part.faults);
        let place = Place { path: &self.path, line: 0 };
        let users = part.users.entities.keys.iter();
        let users: Vec<u32> =
            users.map(|key| self.users.resolve(place, key)).collect::<Result<_>>()?;
        for (line, rating) in part.rows {
            let user = users.get(rating.user as usize).copied().unwrap_or(u32::MAX);
            self.push(line, Rating { user, ..rating })?;
        }
        Ok(())
    }

    /// The tables, unless there are `faults`: rows that can't be used, to which those are added here that rate
    /// an item again. `dropped` is what was left out before, and how often.
    pub(super) fn finish(
        mut self,
        mut faults: Faults,
        dropped: &[(&str, u64)],
    ) -> Result<RawTables> {
        if self.ratings.is_empty() {
            faults.check()?;
            return Err(nothing_left(self.path, dropped));
        }
        let (users, items) = (self.users.entities.keys.len(), self.items.entities.keys.len());
        let twice = duplicates::find(&self.ratings, users, items, &self.spill)?;
        let mut repeated = 0;
        if let Some(twice) = twice {
            repeated = twice.count;
            if self.duplicates == Duplicates::Refuse {
                faults.note(self.repeated(&twice), twice.count);
            } else if faults.is_empty() {
                let last = self.duplicates == Duplicates::Last;
                self.ratings =
                    duplicates::keep_one(&self.ratings, users, items, &self.spill, last)?;
            }
        }
        faults.check()?;
        let repeated = ("ratings of items that their user has rated twice".to_owned(), repeated);
        let dropped = dropped.iter().map(|(what, count)| ((*what).to_owned(), *count));
        let dropped = dropped.chain([self.users.dropped(), self.items.dropped(), repeated]);
        let dropped = dropped.filter(|(_, count)| *count > 0);
        Ok(RawTables {
            rating_levels: self.levels,
            users: self.users.entities,
            items: self.items.entities,
            ratings: self.ratings,
            dropped: dropped.map(|(what, count)| Dropped { what, count }).collect(),
            untimed: false,
        })
    }

    /// The first rating of an item that its user has rated before.
    fn repeated(&self, twice: &Repeated) -> StorageError {
        let Repeated { rows: [old, row], ratings: [first, second], .. } = *twice;
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

/// That a file has no rating, or none that was not left out.
fn nothing_left(path: PathBuf, dropped: &[(&str, u64)]) -> StorageError {
    let dropped: Vec<String> = dropped
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    if dropped.is_empty() {
        return StorageError::EmptyRawFile { path };
    }
    let problem = format!("no rating is left: dropped {}", dropped.join(", "));
    StorageError::Table { path, problem }
}

/// What was read of a part of a file, by a thread of its own.
pub(super) struct Part {
    /// Its users, in the order in which they come.
    users: EntityBuilder,
    /// Lines and ratings, whose users are indices into the part's.
    rows: Vec<(u64, Rating)>,
    faults: Faults,
}

impl Part {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let users = EntityBuilder::open_ended("user");
        Self { users, rows: Vec::new(), faults: Faults::default() }
    }

    /// Adds a row, or what is wrong with it, of a file whose items are all known.
    pub(super) fn add(&mut self, ratings: &RatingBuilder, line: u64, row: Result<[&str; 4]>) {
        match row.and_then(|row| self.rating(ratings, line, row)) {
            Ok(rating) => self.rows.push((line, rating)),
            Err(error) => self.faults.note(error, 1),
        }
    }

    fn rating(
        &mut self,
        ratings: &RatingBuilder,
        line: u64,
        [user, item, rating, time]: [&str; 4],
    ) -> Result<Rating> {
        let place = Place { path: &ratings.path, line };
        let user = self.users.resolve(place, user)?;
        let item = ratings.items.find(place, item)?;
        let (level, timestamp) = ratings.values(place, rating, time)?;
        Ok(Rating { user, item, level, timestamp })
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

/// What prompts may use of a film.
pub(super) const FILM_TEXTS: [&str; 3] = ["title", "genres", "year"];

/// The first genre and the values of [`FILM_TEXTS`] of a film.
pub(super) fn film<'a>(title: &str, genres: &'a str) -> (&'a str, [String; 3]) {
    let first = genres.split('|').next().unwrap_or_default();
    (first, [title.to_owned(), genres.replace('|', ", "), year(title).to_owned()])
}

/// The levels from half a star to five stars.
pub(super) fn half_stars() -> Vec<f32> {
    (1..=10).map(|half| half as f32 / 2.0).collect()
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
