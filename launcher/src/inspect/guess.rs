//! Which columns of an unknown table are what, by their names and first values.

use std::path::Path;

use reclora_storage::raw::{self, ColumnMapping, DatasetFormat, TableSample, TimeUnit};
use reclora_trainer::config::DataConfig;
use toml::Value;

use crate::error::Result;

const USERS: [&str; 8] =
    ["user", "userid", "uid", "customer", "customerid", "reviewer", "reviewerid", "visitorid"];
const ITEMS: [&str; 14] = [
    "item",
    "itemid",
    "iid",
    "movie",
    "movieid",
    "book",
    "bookid",
    "isbn",
    "product",
    "productid",
    "parentasin",
    "asin",
    "trackid",
    "businessid",
];
const RATINGS: [&str; 7] =
    ["rating", "ratings", "score", "stars", "overall", "bookrating", "value"];
const TIMES: [&str; 9] = [
    "timestamp",
    "time",
    "ts",
    "unixreviewtime",
    "datetime",
    "date",
    "createdat",
    "ratedat",
    "reviewtime",
];
const TITLES: [&str; 5] = ["title", "itemtitle", "booktitle", "movietitle", "itemname"];

/// The first rows of a table and, where users, items and ratings can be told, its mapping.
pub fn table(
    format: DatasetFormat,
    dir: &Path,
    name: &str,
) -> Result<(TableSample, Option<ColumnMapping>)> {
    let path = match format {
        DatasetFormat::Csv if !dir.join(name).is_file() => dir.join(format!("{name}.gz")),
        _ => dir.join(name),
    };
    let mut columns = ColumnMapping { ratings: name.to_owned(), ..ColumnMapping::default() };
    let mut sample = raw::sample(format, &path, &columns)?;
    if format == DatasetFormat::Csv {
        for delimiter in [";", "\t", "|"] {
            let other = ColumnMapping { delimiter: delimiter.into(), ..columns.clone() };
            // What another delimiter makes of the file may be no table at all.
            let Ok(found) = raw::sample(format, &path, &other) else { continue };
            if found.columns.len() > sample.columns.len() {
                (columns, sample) = (other, found);
            }
        }
    }
    let found = |names: &[&str]| {
        let plain = |column: &str| -> String {
            column.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
        };
        names.iter().find_map(|name| sample.columns.iter().find(|c| plain(c) == *name)).cloned()
    };
    let (user, item, rating) = (found(&USERS), found(&ITEMS), found(&RATINGS));
    let (Some(user), Some(item), Some(rating)) = (user, item, rating) else {
        return Ok((sample, None));
    };
    let timestamp = found(&TIMES).unwrap_or_default();
    let time_unit = time_unit(&sample, &timestamp);
    let item_texts: Vec<String> = found(&TITLES).into_iter().collect();
    let columns = ColumnMapping { user, item, rating, timestamp, time_unit, item_texts, ..columns };
    Ok((sample, Some(columns)))
}

/// The unit of the first time of a column.
fn time_unit(sample: &TableSample, column: &str) -> TimeUnit {
    let at = sample.columns.iter().position(|name| name == column);
    let first = at.and_then(|at| sample.rows.first()?.get(at)).map_or("", String::as_str);
    match first.parse::<i64>().map(i64::abs) {
        // Seconds until the year 5138, each finer unit from 1973 on.
        Ok(100_000_000_000_000_000..) => TimeUnit::Ns,
        Ok(100_000_000_000_000..) => TimeUnit::Us,
        Ok(100_000_000_000..) => TimeUnit::Ms,
        Err(_) if first.contains('-') => TimeUnit::Iso8601,
        _ => TimeUnit::S,
    }
}

/// The lines of a config that say what was guessed.
pub fn section(data: &DataConfig) -> String {
    let text = |value: &str| Value::String(value.to_owned());
    let mut out = format!(
        "[data]\nformat = \"{}\"\npath = {}\n\n[data.columns]\n",
        data.format.name(),
        text(&data.path.display().to_string())
    );
    let (mine, default) = (&data.columns, ColumnMapping::default());
    let mut line = |name: &str, value: Value| out.push_str(&format!("{name} = {value}\n"));
    line("ratings", text(&mine.ratings));
    line("user", text(&mine.user));
    line("item", text(&mine.item));
    line("rating", text(&mine.rating));
    line("timestamp", text(&mine.timestamp));
    if mine.time_unit != default.time_unit {
        line("time_unit", text(mine.time_unit.name()));
    }
    if mine.delimiter != default.delimiter {
        line("delimiter", text(&mine.delimiter));
    }
    if !mine.item_texts.is_empty() {
        line("item_texts", Value::Array(mine.item_texts.iter().map(|t| text(t)).collect()));
    }
    out
}
