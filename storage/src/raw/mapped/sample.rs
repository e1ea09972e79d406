//! A look into a table whose mapping is not known yet.

use std::path::Path;

use serde::Serialize;

use super::column::Column;
use super::csv::CsvTable;
use super::parquet::{self, ParquetTable};
use super::{ColumnMapping, Table, wanted};
use crate::error::{Result, StorageError};
use crate::raw::DatasetFormat;

/// Rows that are looked at.
const ROWS: usize = 100;

/// The columns of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableSample {
    /// Every column, also those that can't be read.
    pub columns: Vec<Column>,
    /// What is wrong with the first row that can't be read, where there is one among the first rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Reads the names of a table's columns and its first rows.
///
/// # Errors
/// The file is missing, empty, damaged, or no table of this format.
pub fn sample(format: DatasetFormat, path: &Path, columns: &ColumnMapping) -> Result<TableSample> {
    match format {
        DatasetFormat::Parquet => parquet_sample(path),
        _ => csv_sample(path, columns),
    }
}

/// Column by column, so that one that is damaged hides no other.
fn parquet_sample(path: &Path) -> Result<TableSample> {
    let mut sample = TableSample { columns: parquet::all_columns(path)?, problem: None };
    for column in sample.columns.iter_mut().filter(|c| c.readable && c.values.is_empty()) {
        let mut read = || -> Result<()> {
            let mut table = ParquetTable::open(path, vec![wanted("ratings", &column.name)])?;
            while column.values.len() < ROWS && table.advance()? {
                column.values.push(table.value(0).to_owned());
            }
            Ok(())
        };
        match read() {
            Ok(()) | Err(StorageError::EmptyRawFile { .. }) => {}
            Err(error) => {
                column.readable = false;
                sample.problem.get_or_insert(error.to_string());
            }
        }
    }
    Ok(sample)
}

fn csv_sample(path: &Path, columns: &ColumnMapping) -> Result<TableSample> {
    let names = CsvTable::names(path, columns)?;
    let all = names.iter().map(|name| wanted("ratings", name)).collect();
    let mut table = CsvTable::open(path, columns, all)?;
    let mut problem = None;
    let mut values = vec![Vec::new(); names.len()];
    for _ in 0..ROWS {
        match table.advance() {
            Ok(true) => {
                for (i, values) in values.iter_mut().enumerate() {
                    values.push(table.value(i).to_owned());
                }
            }
            Ok(false) => break,
            Err(error) => {
                problem.get_or_insert(error.to_string());
                // Behind a row that can't be used the next one may be one.
                if !matches!(error, StorageError::Raw { .. } | StorageError::Cell { .. }) {
                    break;
                }
            }
        }
    }
    let columns = names.into_iter().zip(values).map(|(name, values)| {
        let kind = looks_like(&values).to_owned();
        Column { name, kind, readable: true, values }
    });
    Ok(TableSample { columns: columns.collect(), problem })
}

/// What all values that are there look like.
fn looks_like(values: &[String]) -> &'static str {
    let there = || values.iter().map(String::as_str).filter(|value| !value.is_empty());
    let all = |is: &dyn Fn(&str) -> bool| there().all(is);
    let is_decimal_comma = |value: &str| {
        let number = value.replacen(',', ".", 1);
        value.contains(',') && !value.contains('.') && number.parse::<f64>().is_ok()
    };
    let is_time = |value: &str| {
        // As `2011-08-01` begins, or `2011/08/01`.
        let date = value.as_bytes().get(..10).unwrap_or_default();
        date.iter().enumerate().all(|(i, byte)| match i {
            4 | 7 => matches!(byte, b'-' | b'/'),
            _ => byte.is_ascii_digit(),
        }) && !date.is_empty()
    };
    if there().next().is_none() {
        "empty"
    } else if all(&|v| v.parse::<i128>().is_ok()) {
        "integer"
    } else if all(&|v| v.parse::<f64>().is_ok()) {
        "number"
    } else if all(&|v| v.eq_ignore_ascii_case("true") || v.eq_ignore_ascii_case("false")) {
        "boolean"
    } else if all(&is_time) {
        "time"
    } else if all(&|v| v.parse::<f64>().is_ok() || is_decimal_comma(v)) {
        "number with a decimal comma"
    } else {
        "text"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_values_look_like() {
        for (values, kind) in [
            (&["", ""][..], "empty"),
            (&["1", "", "-20"], "integer"),
            (&["1", "2.5", "1e3"], "number"),
            (&["True", "false"], "boolean"),
            (&["2011-08-01", "2011-08-01T20:41:57Z"], "time"),
            (&["2,5", "3", "-1,25"], "number with a decimal comma"),
            (&["1,000,000", "2,5"], "text"),
            (&["1", "a"], "text"),
        ] {
            let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
            assert_eq!(looks_like(&values), kind, "{values:?}");
        }
    }
}
