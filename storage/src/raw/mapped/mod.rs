//! Any CSV or Parquet, by a mapping of its columns.
//!
//! The ratings are read twice: once to find the rating levels (and what they say of users and items
//! where these have no table of their own), and once to check every value and build the tables. So memory
//! holds the result and one row more.

use std::path::{Path, PathBuf};

mod column;
mod csv;
mod decode;
mod delta;
mod footer;
mod mapping;
mod pages;
mod parquet;
mod quotes;
mod sample;
mod shape;
mod thrift;
mod unpack;

pub use column::Column;
pub use decode::is_decoding;
pub use mapping::{ColumnMapping, TextEncoding, Unusable};
pub use sample::{TableSample, sample};

use super::faults::{Faults, is_of_one_row};
use super::source::{Place, locate};
use super::tables::{EntityBuilder, RatingBuilder};
use super::time::{Notation, Source};
use super::{DatasetFormat, RawTables, Reading};
use crate::error::{RawProblem, Result, StorageError};
use csv::CsvTable;
use parquet::ParquetTable;

/// No value of a real table comes near.
const MAX_VALUE: usize = 1 << 20;
/// Rating levels that a byte tells apart.
const MAX_LEVELS: usize = 256;

/// A column that is read, and the setting that names it.
#[derive(Clone, Debug)]
struct Wanted {
    setting: &'static str,
    name: String,
}

fn wanted(setting: &'static str, name: &str) -> Wanted {
    Wanted { setting, name: name.to_owned() }
}

/// Rows of the wanted columns of a table, as text.
trait Table {
    /// Reads the next row; false at the end.
    fn advance(&mut self) -> Result<bool>;

    /// Value of the wanted column `i` in this row; empty for null.
    fn value(&self, i: usize) -> &str;

    /// Whether the wanted column `i` is of a type of times, whose values are given in seconds with as many
    /// decimals as they have.
    fn is_time(&self, _: usize) -> bool {
        false
    }

    /// File and line (or row) of this row.
    fn place(&self) -> Place<'_>;

    /// Number of this row by which all rows of the table can be told apart.
    fn line(&self) -> u64 {
        self.place().line
    }

    fn wanted(&self) -> &[Wanted];

    /// A problem with the wanted column `i` in this row.
    fn problem(&self, i: usize, problem: RawProblem) -> StorageError {
        cell(self.place(), self.wanted().get(i).map_or("", |w| &w.name), problem)
    }
}

fn open(
    format: DatasetFormat,
    path: &Path,
    columns: &ColumnMapping,
    wanted: Vec<Wanted>,
) -> Result<Box<dyn Table>> {
    Ok(match format {
        DatasetFormat::Parquet => Box::new(ParquetTable::open(path, wanted)?),
        _ => Box::new(CsvTable::open(path, columns, wanted)?),
    })
}

fn cell(place: Place<'_>, column: &str, problem: RawProblem) -> StorageError {
    let Place { path, line } = place;
    StorageError::Cell { path: path.to_path_buf(), line, column: column.into(), problem }
}

/// That a wanted column is not among those that `what` has.
fn no_column(
    path: &Path,
    Wanted { setting, name }: &Wanted,
    what: &str,
    has: impl IntoIterator<Item = impl AsRef<str>>,
) -> StorageError {
    let has: Vec<String> = has.into_iter().map(|name| format!("{:?}", name.as_ref())).collect();
    let has = has.join(", ");
    let problem = format!(
        "data.columns.{setting} names the column {name:?}, which is not there; {what} has {has}"
    );
    StorageError::table(path, problem)
}

/// The path of a table that the mapping names.
fn locate_table(format: DatasetFormat, dir: &Path, setting: &str, name: &str) -> Result<PathBuf> {
    let name = match (name, format) {
        ("", DatasetFormat::Parquet) => "ratings.parquet",
        ("", _) => "ratings.csv",
        _ => name,
    };
    let path = dir.join(name);
    if format == DatasetFormat::Parquet {
        if path.exists() {
            return Ok(path);
        }
        let problem = format!("is not there; data.columns.{setting} names a file or a directory");
        return Err(StorageError::Table { path, problem });
    }
    locate(dir, name)
}

/// The tables that the mapping names, ratings last.
fn tables(
    format: DatasetFormat,
    dir: &Path,
    columns: &ColumnMapping,
) -> Result<[Option<PathBuf>; 3]> {
    let optional = |setting, name: &String| {
        (!name.is_empty()).then(|| locate_table(format, dir, setting, name)).transpose()
    };
    Ok([
        optional("users", &columns.users)?,
        optional("items", &columns.items)?,
        Some(locate_table(format, dir, "ratings", &columns.ratings)?),
    ])
}

/// Every file of every table.
pub(super) fn files(
    format: DatasetFormat,
    dir: &Path,
    columns: &ColumnMapping,
) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in tables(format, dir, columns)?.into_iter().flatten() {
        if format == DatasetFormat::Parquet {
            files.extend(parquet::parts(&path)?.into_iter().map(|part| part.path));
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// Opens every table, looks the wanted columns up, and reads a first row.
pub(super) fn look(
    format: DatasetFormat,
    dir: &Path,
    columns: &ColumnMapping,
) -> Vec<StorageError> {
    let [users, items, ratings] = match tables(format, dir, columns) {
        Ok(tables) => tables,
        Err(error) => return vec![error],
    };
    let mut all = Vec::new();
    let mut of_ratings = ratings_columns(columns);
    for (side, own) in sides(columns).iter().zip([users, items]) {
        match own {
            Some(path) => all.push((path, side.columns())),
            None => of_ratings.extend(side.properties()),
        }
    }
    all.extend(ratings.map(|path| (path, of_ratings)));
    let first_row = |(path, wanted): (PathBuf, Vec<Wanted>)| {
        open(format, &path, columns, wanted).and_then(|mut table| table.advance()).err()
    };
    all.into_iter().filter_map(first_row).collect()
}

/// Users or items as the mapping has them.
struct Side<'a> {
    /// `user` or `item`, which is also the setting of the id's column in the ratings.
    name: &'static str,
    key: Wanted,
    fields: (&'static str, &'a [String]),
    texts: (&'static str, &'a [String]),
}

impl Side<'_> {
    /// The columns of fields and texts.
    fn properties(&self) -> impl Iterator<Item = Wanted> {
        let (fields, texts) = (self.fields, self.texts);
        let all = |(setting, names): (&'static str, &'_ [String])| -> Vec<Wanted> {
            names.iter().map(|name| wanted(setting, name)).collect()
        };
        all(fields).into_iter().chain(all(texts))
    }

    /// The columns of a table of its own.
    fn columns(&self) -> Vec<Wanted> {
        std::iter::once(self.key.clone()).chain(self.properties()).collect()
    }

    fn builder(&self, path: &Path, how: Reading<'_>) -> EntityBuilder {
        let [fields, texts] = [self.fields, self.texts]
            .map(|(_, names)| names.iter().map(String::as_str).collect::<Vec<_>>());
        EntityBuilder::table(self.name, [&fields, &texts], path, how)
    }

    /// Adds a row whose properties begin at the wanted column `from`.
    fn add(&self, to: &mut EntityBuilder, table: &dyn Table, key: &str, from: usize) -> Result<()> {
        let middle = from + self.fields.1.len();
        let end = middle + self.texts.1.len();
        let fields = (from..middle).map(|i| table.value(i));
        let texts = (middle..end).map(|i| table.value(i).to_owned());
        to.add(table.place(), key, fields, texts)
    }

    /// Reads a table of its own.
    fn read(
        &self,
        mut table: Box<dyn Table>,
        path: &Path,
        how: Reading<'_>,
    ) -> Result<EntityBuilder> {
        let mut entities = self.builder(path, how);
        let mut faults = Faults::default();
        faults.rows(|| {
            if !table.advance()? {
                return Ok(false);
            }
            if table.value(0).is_empty() {
                return Err(table.problem(0, RawProblem::Empty));
            }
            self.add(&mut entities, &*table, table.value(0), 1).map(|()| true)
        })?;
        faults.check()?;
        Ok(entities)
    }

    /// Takes note of what a rating says of its user or item, which must be what it said before.
    fn note(
        &self,
        to: &mut EntityBuilder,
        table: &dyn Table,
        key: usize,
        from: usize,
    ) -> Result<()> {
        let name = table.value(key);
        let Some((first, values)) = to.row_of(name) else {
            return self.add(to, table, name, from);
        };
        for (i, before) in (from..).zip(values) {
            if before != table.value(i) {
                let problem = RawProblem::Differs {
                    found: table.value(i).into(),
                    before: before.into(),
                    first,
                };
                return Err(table.problem(i, problem));
            }
        }
        Ok(())
    }
}

pub(super) fn read(
    format: DatasetFormat,
    dir: &Path,
    columns: &ColumnMapping,
    how: Reading<'_>,
) -> Result<RawTables> {
    columns.check()?;
    let [users_path, items_path, ratings_path] = tables(format, dir, columns)?;
    let path = ratings_path.unwrap_or_default();
    let sides = sides(columns);
    let mut entities = Vec::new();
    let mut noted = Vec::new();
    let mut wanted = ratings_columns(columns);
    for (i, (side, own)) in sides.iter().zip([users_path, items_path]).enumerate() {
        entities.push(match own {
            Some(own) => side.read(open(format, &own, columns, side.columns())?, &own, how)?,
            None if side.properties().next().is_none() => EntityBuilder::open_ended(side.name),
            None => {
                noted.push((i, wanted.len()));
                wanted.extend(side.properties());
                side.builder(&path, how)
            }
        });
    }

    let table = open(format, &path, columns, wanted)?;
    let mut faults = Faults::default();
    let levels = survey(table, &mut faults, |table| {
        noted.iter().try_for_each(|(i, from)| match (sides.get(*i), entities.get_mut(*i)) {
            (Some(side), Some(entities)) => side.note(entities, table, *i, *from),
            _ => Ok(()),
        })
    })?;
    let table = open(format, &path, columns, ratings_columns(columns))?;
    let (items, users) = (entities.pop(), entities.pop());
    let (users, items) = (users.unwrap_or_default(), items.unwrap_or_default());
    collect(table, columns, RatingBuilder::new(&path, users, items, levels, how), faults)
}

fn sides(columns: &ColumnMapping) -> [Side<'_>; 2] {
    let key = |own: &String, setting, name: &String, default| {
        if own.is_empty() { wanted(default, name) } else { wanted(setting, own) }
    };
    [
        Side {
            name: "user",
            key: key(&columns.user_key, "user_key", &columns.user, "user"),
            fields: ("user_fields", &columns.user_fields),
            texts: ("user_texts", &columns.user_texts),
        },
        Side {
            name: "item",
            key: key(&columns.item_key, "item_key", &columns.item, "item"),
            fields: ("item_fields", &columns.item_fields),
            texts: ("item_texts", &columns.item_texts),
        },
    ]
}

/// User, item, rating and, where there is one, time.
fn ratings_columns(columns: &ColumnMapping) -> Vec<Wanted> {
    let mut all = vec![
        wanted("user", &columns.user),
        wanted("item", &columns.item),
        wanted("rating", &columns.rating),
    ];
    if !columns.timestamp.is_empty() {
        all.push(wanted("timestamp", &columns.timestamp));
    }
    all
}

/// Adds a rating to the distinct ones, which ascend.
fn note_level(levels: &mut Vec<f32>, stars: f32, found: &str) -> Result<(), RawProblem> {
    if let Err(at) = levels.binary_search_by(|level| level.total_cmp(&stars)) {
        let count = levels.len() + 1;
        if count > MAX_LEVELS {
            return Err(RawProblem::TooManyLevels { found: found.to_owned(), count });
        }
        levels.insert(at, stars);
    }
    Ok(())
}

/// A rating as a number; `true` is 1 and `false` is 0.
fn stars(text: &str) -> Result<f32, RawProblem> {
    let stars: f32 = match text {
        yes if yes.eq_ignore_ascii_case("true") => 1.0,
        no if no.eq_ignore_ascii_case("false") => 0.0,
        number => number.parse().map_err(|_| RawProblem::NotANumber(text.to_owned()))?,
    };
    // -0 is 0.
    if stars.is_finite() { Ok(stars + 0.0) } else { Err(RawProblem::NotFinite(text.to_owned())) }
}

/// What others write where there is no number or time.
const NOTHING: [&str; 11] =
    ["NaN", "nan", "NULL", "null", "Null", "NA", "N/A", "None", "NaT", "<NA>", "\\N"];

/// The first of user, item, rating and time that has no value in this row. An id may be any text but
/// an empty one.
fn missing(table: &dyn Table) -> Option<usize> {
    let is_missing = |i: usize| match table.value(i) {
        "" => true,
        text => {
            i >= 2 && !text.starts_with(|c: char| c.is_ascii_digit()) && NOTHING.contains(&text)
        }
    };
    let times = table.wanted().get(3).is_some_and(|wanted| wanted.setting == "timestamp");
    (0..if times { 4 } else { 3 }).find(|i| is_missing(*i))
}

/// The first reading: the levels of the rows that can be used, which `visit` sees too. What is wrong with the
/// others is said by the second reading.
fn survey(
    mut table: Box<dyn Table>,
    faults: &mut Faults,
    mut visit: impl FnMut(&dyn Table) -> Result<()>,
) -> Result<Vec<f32>> {
    let mut levels = Vec::new();
    faults.rows(|| {
        match table.advance() {
            Ok(true) => {}
            Err(error) if is_of_one_row(&error) => return Ok(true),
            end => return end,
        }
        if missing(&*table).is_some() {
            return Ok(true);
        }
        let found = table.value(2);
        let Ok(stars) = stars(found) else { return Ok(true) };
        note_level(&mut levels, stars, found).map_err(|problem| table.problem(2, problem))?;
        visit(&*table).map(|()| true)
    })?;
    Ok(levels)
}

/// Time of a row in nanoseconds since 1970; 0 where there is none.
fn time(table: &dyn Table, columns: &ColumnMapping) -> Result<i64, RawProblem> {
    if columns.timestamp.is_empty() {
        return Ok(0);
    }
    let (notation, source) = if table.is_time(3) {
        (Notation::Number(9), Source::Type)
    } else {
        (columns.time_unit.notation(), Source::Setting(columns.time_unit.name()))
    };
    notation.read(table.value(3), source)
}

/// Rows that were left out.
#[derive(Default)]
struct Counts {
    no_user: u64,
    no_item: u64,
    no_value: u64,
}

/// The second reading: every row as a rating. `faults` are those of the first.
fn collect(
    mut table: Box<dyn Table>,
    columns: &ColumnMapping,
    mut ratings: RatingBuilder,
    mut faults: Faults,
) -> Result<RawTables> {
    let mut dropped = Counts::default();
    faults.rows(|| {
        if !table.advance()? {
            return Ok(false);
        }
        add(&*table, columns, &mut ratings, &mut dropped).map(|()| true)
    })?;
    let dropped = [
        ("ratings by users that the table of users lacks", dropped.no_user),
        ("ratings of items that the table of items lacks", dropped.no_item),
        ("ratings without a value", dropped.no_value),
    ];
    let untimed = columns.timestamp.is_empty();
    Ok(RawTables { untimed, ..ratings.finish(faults, &dropped)? })
}

/// Adds a row to the ratings, or to those that are left out.
fn add(
    table: &dyn Table,
    columns: &ColumnMapping,
    ratings: &mut RatingBuilder,
    dropped: &mut Counts,
) -> Result<()> {
    if let Some(i) = missing(table) {
        if columns.missing == Unusable::Drop {
            dropped.no_value += 1;
            return Ok(());
        }
        let advice = "; data.columns.missing = \"drop\" leaves such rows out";
        return Err(table.problem(i, RawProblem::Missing { found: table.value(i).into(), advice }));
    }
    let [user, item, found] = [0, 1, 2].map(|i| table.value(i));
    let level = stars(found).and_then(|stars| ratings.level(stars, found));
    let level = level.map_err(|problem| table.problem(2, problem))?;
    let time = time(table, columns).map_err(|problem| table.problem(3, problem))?;
    match ratings.insert(table.line(), [user, item], level, time) {
        Err(StorageError::Raw {
            field, problem: problem @ RawProblem::UnknownKey { .. }, ..
        }) => {
            let is_user = field == "user";
            if columns.unmatched == Unusable::Refuse {
                return Err(table.problem(usize::from(!is_user), problem));
            }
            *(if is_user { &mut dropped.no_user } else { &mut dropped.no_item }) += 1;
            Ok(())
        }
        added => added,
    }
}
