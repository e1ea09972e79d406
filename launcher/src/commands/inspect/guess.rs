//! Which columns of unknown tables are what, by their names and first values.

use std::path::Path;

use reclora_storage::protocol::LabelRule;
use reclora_storage::raw::{self, Column, ColumnMapping, DatasetFormat, TableSample, TextEncoding};
use reclora_trainer::config::DataConfig;
use serde::Deserialize;
use toml::Value;

use super::TableReport;
use crate::error::Result;

/// Names of columns that hold a user's id: words without what is between them, the likeliest first; so are the others.
const USERS: &str = "\
    user userid uid customer customerid reviewer reviewerid visitorid member memberid";
const ITEMS: &str = "\
    item itemid iid movie movieid book bookid isbn product productid parentasin asin trackid \
    businessid";
const RATINGS: &str = "\
    rating ratings score stars overall bookrating value liked like label";
const TIMES: &str = "\
    timestamp time ts unixreviewtime datetime date createdat ratedat reviewtime";
/// First or last words of names of columns that are categories.
const FIELDS: &str = "\
    genre genres category categories subcategory brand author authors publisher department type \
    kind language director artist year format color colour gender sex age occupation job country \
    city state region location zip zipcode segment tier platform";
/// Last words of names of columns that are what an item is called.
const TITLES: &str = "title name headline";

/// A table as it looks when read in the way that suits it.
pub struct Look {
    /// What is shown of it.
    pub table: TableReport,
    /// How it is read.
    columns: ColumnMapping,
}

/// Looks at a table; of CSV, with the delimiter and the encoding that make most of it. Whether it has a `header` is
/// not guessed.
pub fn look(format: DatasetFormat, dir: &Path, name: &str, header: bool) -> Result<Look> {
    let path = match format {
        DatasetFormat::Csv if !dir.join(name).exists() => dir.join(format!("{name}.gz")),
        _ => dir.join(name),
    };
    let mut best: Option<(ColumnMapping, TableSample)> = None;
    let mut failed = None;
    for (delimiter, encoding) in ways(format) {
        let delimiter = delimiter.into();
        let columns = ColumnMapping { delimiter, encoding, header, ..ColumnMapping::default() };
        match raw::sample(format, &path, &columns) {
            // What another way makes of the file may be no table at all.
            Err(error) => drop(failed.get_or_insert(error)),
            Ok(found) => {
                let merit = |s: &TableSample| (s.problem.is_none(), s.columns.len());
                if best.as_ref().is_none_or(|(_, best)| merit(&found) > merit(best)) {
                    best = Some((columns, found));
                }
            }
        }
    }
    match (best, failed) {
        (Some((columns, sample)), _) => {
            Ok(Look { table: TableReport { name: name.to_owned(), sample }, columns })
        }
        (None, Some(error)) => Err(error.into()),
        (None, None) => Err(color_eyre::eyre::eyre!("{}: no table", path.display())),
    }
}

fn ways(format: DatasetFormat) -> Vec<(&'static str, TextEncoding)> {
    if format != DatasetFormat::Csv {
        return vec![(",", TextEncoding::Utf8)];
    }
    let encodings = [TextEncoding::Utf8, TextEncoding::Latin1];
    encodings.into_iter().flat_map(|e| [",", ";", "\t", "|"].map(|d| (d, e))).collect()
}

/// The mapping of ratings, and of users and items where they have tables; none where no table has users, items
/// and ratings. What `given` names is found by that name.
pub fn mapping(looks: &[Look], given: &ColumnMapping) -> Option<ColumnMapping> {
    let named = |look: &&Look| [&look.table.name[..], ""].contains(&given.ratings.as_str());
    let mut found = looks.iter().filter(named).map(|look| (look, ids(&look.table.sample, given)));
    let (ratings, ids) = found.find_map(|(look, ids)| Some((look, ids?)))?;
    let mut columns =
        ColumnMapping { ratings: ratings.table.name.clone(), ..ratings.columns.clone() };
    let [user, item, rating] = ids;
    let default = ColumnMapping::default();
    let timestamp = given_or(&ratings.table.sample, &given.timestamp, &default.timestamp, TIMES);
    columns.time_unit = timestamp.and_then(time_unit).unwrap_or_default();
    columns.timestamp = timestamp.map(|column| column.name.clone()).unwrap_or_default();
    (columns.user, columns.item, columns.rating) = (user, item, rating);
    let others =
        || looks.iter().filter(|look| !std::ptr::eq(*look, ratings) && look.fits(&columns));
    let items = others().find_map(|look| look.key(&columns.item, ITEMS).map(|key| (look, key)));
    let users = others().find_map(|look| look.key(&columns.user, USERS).map(|key| (look, key)));
    if let Some((look, key)) = items {
        columns.items = look.table.name.clone();
        columns.item_key = if key == columns.item { String::new() } else { key.clone() };
        (columns.item_fields, columns.item_texts) = look.properties(&[&key]);
    } else {
        // What the ratings say of an item is known of it where they always say the same.
        let known = [&columns.user, &columns.rating, &columns.timestamp, &columns.item];
        let (_, texts) = ratings.properties(&known.map(String::as_str));
        columns.item_texts = texts;
        columns.item_texts.retain(|text| ratings.follows(text, &columns.item));
    }
    if let Some((look, key)) = users {
        columns.users = look.table.name.clone();
        columns.user_key = if key == columns.user { String::new() } else { key.clone() };
        (columns.user_fields, _) = look.properties(&[&key]);
    }
    Some(columns)
}

/// Columns of users, items and ratings.
fn ids(sample: &TableSample, given: &ColumnMapping) -> Option<[String; 3]> {
    let name = |given: &str, default: &str, names: &str| {
        given_or(sample, given, default, names).map(|column| column.name.clone())
    };
    let default = ColumnMapping::default();
    Some([
        name(&given.user, &default.user, USERS)?,
        name(&given.item, &default.item, ITEMS)?,
        name(&given.rating, &default.rating, RATINGS)?,
    ])
}

/// The column that is `given`, which is no default; otherwise one that is called like one of `names`.
fn given_or<'a>(
    sample: &'a TableSample,
    given: &str,
    default: &str,
    names: &str,
) -> Option<&'a Column> {
    if given == default {
        return find(sample, names);
    }
    sample.columns.iter().find(|column| column.readable && column.name == given)
}

fn find<'a>(sample: &'a TableSample, names: &str) -> Option<&'a Column> {
    let column =
        |name: &str| sample.columns.iter().find(|c| c.readable && words(&c.name).concat() == name);
    names.split(' ').find_map(column)
}

/// Whether a word is one of a list.
fn has(list: &str, word: &str) -> bool {
    list.split(' ').any(|known| known == word)
}

/// The words of a name, in small letters: `Book-Title`, `bookTitle` and `book_title` have the same two.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && before.is_lowercase()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_alphanumeric()) {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

impl Look {
    /// Whether one reader can read this table and that of the ratings.
    fn fits(&self, columns: &ColumnMapping) -> bool {
        let mine = &self.columns;
        (&mine.delimiter, mine.encoding) == (&columns.delimiter, columns.encoding)
    }

    /// The column of ids, where this is a table of what the ratings call `id`.
    fn key(&self, id: &str, names: &str) -> Option<String> {
        let sample = &self.table.sample;
        if ids(sample, &ColumnMapping::default()).is_some()
            || (find(sample, USERS).is_some() && find(sample, ITEMS).is_some())
        {
            return None;
        }
        let mut found = sample.columns.iter().find(|c| c.readable && c.name == id);
        found = found.or_else(|| find(sample, names));
        if found.is_none() && find(sample, USERS).is_none() && find(sample, ITEMS).is_none() {
            let file = words(&self.table.name);
            let is_users = file.iter().any(|word| has(USERS, word.trim_end_matches('s')));
            found = find(sample, "id").filter(|_| is_users == (names == USERS));
        }
        let key = found?;
        // An id that comes twice is none of a table's rows.
        let mut values: Vec<&String> = key.values.iter().collect();
        values.sort_unstable();
        values.windows(2).all(|pair| pair.first() != pair.last()).then(|| key.name.clone())
    }

    /// Columns that are categories, and those of what things are called; not those of `known`.
    fn properties(&self, known: &[&str]) -> (Vec<String>, Vec<String>) {
        let columns = self.table.sample.columns.iter().filter(|c| c.readable).map(|c| &c.name);
        let (mut fields, mut texts) = (Vec::new(), Vec::new());
        for name in columns.filter(|name| !known.contains(&name.as_str())) {
            let words = words(name);
            let is = |word: Option<&String>, of| word.is_some_and(|word| has(of, word));
            if is(words.last(), TITLES) {
                texts.push(name.clone());
            } else if is(words.first(), FIELDS) || is(words.last(), FIELDS) {
                fields.push(name.clone());
            }
        }
        (fields, texts)
    }

    /// Whether the first rows have one value of a column for each value of another.
    fn follows(&self, column: &str, of: &str) -> bool {
        let values = |name: &str| {
            let found = self.table.sample.columns.iter().find(|c| c.name == name);
            found.map_or(&[][..], |column| column.values.as_slice())
        };
        let mut seen = std::collections::HashMap::new();
        let mut pairs = values(of).iter().zip(values(column));
        pairs.all(|(key, value)| *seen.entry(key).or_insert(value) == value)
    }
}

/// The unit of the first time of a column. Seconds are of 1973 to 5138, and so are the others. Parquet's own
/// times need none.
fn time_unit(column: &Column) -> Option<raw::TimeUnit> {
    if ["TIMESTAMP", "DATE", "INT96"].iter().any(|kind| column.kind.starts_with(kind)) {
        return None;
    }
    let first = column.values.iter().find(|value| !value.is_empty())?;
    let name = match first.parse::<f64>().map(f64::abs) {
        Err(_) => "iso8601",
        // A date without separators.
        Ok(_) if first.len() == 8 && (first.starts_with("19") || first.starts_with("20")) => {
            "iso8601"
        }
        Ok(number) if number < 1e11 => "s",
        Ok(number) if number < 1e14 => "ms",
        Ok(number) if number < 1e17 => "us",
        Ok(_) => "ns",
    };
    raw::TimeUnit::deserialize(Value::String(name.into())).ok()
}

/// A rule of likes that cuts these levels in two: from four fifths of the highest on, as 8 of 10 and 4 of 5.
pub fn rule(levels: &[f32]) -> Option<LabelRule> {
    let least = levels.iter().copied().reduce(f32::min)?;
    let most = levels.iter().copied().reduce(f32::max)?;
    let above = levels.iter().copied().filter(|level| *level >= most * 0.8 && *level > least);
    // Of negative levels, the highest.
    above.chain((most > least).then_some(most)).reduce(f32::min).map(LabelRule::AtLeast)
}

/// The numbers in the first values of the column of ratings.
pub fn levels(looks: &[Look], columns: &ColumnMapping) -> Vec<f32> {
    let number = |value: &String| match value.to_ascii_lowercase().as_str() {
        "true" => Some(1.0),
        "false" => Some(0.0),
        value => value.replacen(',', ".", 1).parse().ok().filter(|number: &f32| number.is_finite()),
    };
    column(looks, columns).map_or_else(Vec::new, |c| c.values.iter().filter_map(number).collect())
}

/// What the values of the column of ratings show to be wrong with all of them.
pub fn note(looks: &[Look], columns: &ColumnMapping) -> Option<String> {
    let column = column(looks, columns).filter(|column| column.kind.contains("decimal comma"))?;
    let example = column.values.iter().find(|value| value.contains(','))?;
    Some(format!(
        "the column {:?} has decimal commas ({example:?}); numbers are read with a point: write them so, for \
         instance with sed 's/\\([0-9]\\),\\([0-9]\\)/\\1.\\2/g'",
        column.name
    ))
}

fn column<'a>(looks: &'a [Look], columns: &ColumnMapping) -> Option<&'a Column> {
    let ratings = looks.iter().find(|look| look.table.name == columns.ratings)?;
    ratings.table.sample.columns.iter().find(|column| column.name == columns.rating)
}

/// Settings of a section, in its order; those that are as by default are left out, but for the first ones.
const ORDER: &str = "\
    ratings user item rating timestamp time_unit users user_key user_fields user_texts items \
    item_key item_fields item_texts unmatched duplicates missing delimiter encoding";
const ALWAYS: usize = 5;

/// The lines of a config that say what was guessed.
pub fn section(data: &DataConfig) -> Result<String> {
    let mut out = format!(
        "[data]\nformat = \"{}\"\npath = {}\n",
        data.format.name(),
        Value::String(data.path.display().to_string())
    );
    if data.label != DataConfig::default().label {
        out.push_str(&format!(
            "label = {}   # a guess: what counts as a like\n",
            inline(data.label)
        ));
    }
    out.push_str("\n[data.columns]\n");
    let (mine, default) =
        (Value::try_from(&data.columns)?, Value::try_from(ColumnMapping::default())?);
    for (i, name) in ORDER.split(' ').enumerate() {
        if let Some(value) = mine.get(name).filter(|v| i < ALWAYS || Some(*v) != default.get(name))
        {
            out.push_str(&format!("{name} = {value}\n"));
        }
    }
    Ok(out)
}

/// A rule as it is written in a config.
pub fn inline(rule: LabelRule) -> String {
    match rule {
        LabelRule::Greater(stars) => format!("{{ greater = {stars:?} }}"),
        LabelRule::AtLeast(stars) => format!("{{ at_least = {stars:?} }}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, values: &[&str]) -> Column {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Column { name: name.into(), kind: "text".into(), readable: true, values }
    }

    fn look(name: &str, columns: Vec<Column>) -> Look {
        let sample = TableSample { columns, problem: None };
        Look { table: TableReport { name: name.into(), sample }, columns: ColumnMapping::default() }
    }

    #[test]
    fn names_are_words() {
        for name in ["Book-Title", "bookTitle", "book_title", "BOOK title"] {
            assert_eq!(words(name), ["book", "title"], "{name}");
        }
        assert_eq!(words("userId"), ["user", "id"]);
        assert_eq!(words("ISBN"), ["isbn"]);
    }

    #[test]
    fn tables_of_users_and_items_are_mapped() {
        let looks = [
            look(
                "Books.csv",
                vec![
                    column("ISBN", &["1", "2"]),
                    column("Book-Title", &["A", "B"]),
                    column("Book-Author", &["C", "D"]),
                    column("Year-Of-Publication", &["1", "2"]),
                    column("Image-URL-S", &["x", "y"]),
                ],
            ),
            look(
                "Ratings.csv",
                vec![
                    column("User-ID", &["7", "7"]),
                    column("ISBN", &["1", "2"]),
                    column("Book-Rating", &["0", "5"]),
                ],
            ),
            look("Users.csv", vec![column("User-ID", &["7", "8"]), column("Age", &["1", "2"])]),
            look("notes.csv", vec![column("text", &["x"])]),
        ];
        let found = mapping(&looks, &ColumnMapping::default()).unwrap();
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!((found.ratings.as_str(), found.items.as_str()), ("Ratings.csv", "Books.csv"));
        assert_eq!((found.users.as_str(), found.timestamp.as_str()), ("Users.csv", ""));
        assert_eq!(found.item_fields, names(&["Book-Author", "Year-Of-Publication"]));
        assert_eq!(found.item_texts, names(&["Book-Title"]));
        assert_eq!(found.user_fields, names(&["Age"]));
        assert_eq!((found.item_key.as_str(), found.user_key.as_str()), ("", ""));
    }

    #[test]
    fn a_table_is_one_of_items_by_any_name_of_the_id_that_is_there_once() {
        let ratings = || {
            let names = ["user", "item", "rating"];
            look("ratings.csv", names.map(|name| column(name, &["1", "1"])).into())
        };
        let things = |name, id, values: &[&str]| {
            look(name, vec![column(id, values), column("genre", &["x", "y"])])
        };
        for (name, id, values, [items, users]) in [
            ("catalogue.csv", "id", ["1", "2"], ["catalogue.csv", ""]),
            ("users.csv", "id", ["1", "2"], ["", "users.csv"]),
            ("catalogue.csv", "movieId", ["1", "2"], ["catalogue.csv", ""]),
            ("catalogue.csv", "movieId", ["1", "1"], ["", ""]),
            ("catalogue.csv", "code", ["1", "2"], ["", ""]),
        ] {
            let found = mapping(&[ratings(), things(name, id, &values)], &ColumnMapping::default())
                .unwrap();
            assert_eq!((found.items.as_str(), found.users.as_str()), (items, users), "{name} {id}");
            let key = if items.is_empty() { "" } else { id };
            assert_eq!(found.item_key, key, "{name} {id}");
        }
    }

    #[test]
    fn what_differs_for_one_item_is_not_known_of_it() {
        let with = |titles: &[&str]| {
            let names = ["user", "item", "rating"];
            let mut columns: Vec<Column> = names.map(|name| column(name, &["1", "1"])).into();
            columns.push(column("title", titles));
            mapping(&[look("ratings.csv", columns)], &ColumnMapping::default()).unwrap().item_texts
        };
        assert_eq!(with(&["A", "A"]), ["title"]);
        assert!(with(&["A", "B"]).is_empty());
    }

    #[test]
    fn units_by_magnitude() {
        let name = |value: &str| {
            let unit = time_unit(&column("t", &["", value]));
            unit.map(|unit| Value::try_from(unit).unwrap().as_str().unwrap_or("").to_owned())
        };
        assert_eq!(name("1600004773").as_deref(), Some("s"));
        assert_eq!(name("1600004773.0").as_deref(), Some("s"));
        assert_eq!(name("1600004773000").as_deref(), Some("ms"));
        assert_eq!(name("2020-09-13").as_deref(), Some("iso8601"));
        assert_eq!(name("20200913").as_deref(), Some("iso8601"));
        assert_eq!(time_unit(&column("t", &["", ""])), None);
    }

    #[test]
    fn rules_cut_in_two() {
        for (levels, expected) in [
            (&[0.5, 3.5, 4.0, 5.0][..], Some(4.0)),
            (&[0.0, 1.0], Some(1.0)),
            (&[0.0, 5.0, 8.0, 10.0], Some(8.0)),
            (&[4.0, 5.0], Some(5.0)),
            (&[-2.0, -1.0], Some(-1.0)),
            (&[-1.0, 1.0], Some(1.0)),
            (&[1.0], None),
            (&[], None),
        ] {
            assert_eq!(rule(levels), expected.map(LabelRule::AtLeast), "{levels:?}");
        }
    }
}
