//! A look into a table whose mapping is not known yet.

use std::path::Path;

use serde::Serialize;

use super::{ColumnMapping, CsvTable, Table, parquet, wanted};
use crate::error::Result;
use crate::raw::DatasetFormat;

/// Rows that are looked at.
const ROWS: usize = 3;

/// The columns of a table with the values of its first rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableSample {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The first rows, a value per column.
    pub rows: Vec<Vec<String>>,
}

/// Reads the names of a table's columns and its first rows. Columns of types that can't be read as text
/// (nested ones, say) are left out.
///
/// # Errors
/// The file is missing, empty, damaged, or no table of this format.
pub fn sample(format: DatasetFormat, path: &Path, columns: &ColumnMapping) -> Result<TableSample> {
    let names = match format {
        DatasetFormat::Parquet => parquet::names(path)?,
        _ => CsvTable::names(path, columns)?,
    };
    let all = names.iter().map(|name| wanted("ratings", name)).collect();
    let mut table = Table::open(format, path, columns, all)?;
    let mut rows = Vec::new();
    while rows.len() < ROWS && table.advance()? {
        rows.push((0..names.len()).map(|i| table.value(i).to_owned()).collect());
    }
    Ok(TableSample { columns: names, rows })
}
