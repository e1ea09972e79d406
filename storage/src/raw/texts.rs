//! Which words of users and items a layout has for prompts: known before any of it is read.

use std::path::Path;

use super::tables::FILM_TEXTS;
use super::{ColumnMapping, DatasetFormat, bookcrossing, goodreads, movielens_1m};
use crate::error::Result;

/// Names of the text columns of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextColumns {
    /// Those of users.
    pub users: Vec<String>,
    /// Those of items.
    pub items: Vec<String>,
}

/// The text columns that [`super::read`] gives. Of the files only names are looked at.
///
/// # Errors
/// The directory can't be read, where the columns depend on what is in it.
pub fn text_columns(
    format: DatasetFormat,
    dir: &Path,
    columns: &ColumnMapping,
) -> Result<TextColumns> {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let [users, items] = match format {
        DatasetFormat::Movietweetings
        | DatasetFormat::Movielens10m
        | DatasetFormat::Movielens25m => [list(&[]), list(&FILM_TEXTS)],
        DatasetFormat::Movielens100k | DatasetFormat::Movielens1m => {
            [list(&movielens_1m::USER_TEXTS), list(&FILM_TEXTS)]
        }
        DatasetFormat::Bookcrossing => {
            [list(&bookcrossing::USER_COLUMNS), list(&bookcrossing::BOOK_COLUMNS)]
        }
        DatasetFormat::Goodreads => [list(&[]), list(&goodreads::text_columns(dir)?)],
        DatasetFormat::Csv | DatasetFormat::Parquet => {
            [columns.user_texts.clone(), columns.item_texts.clone()]
        }
    };
    Ok(TextColumns { users, items })
}
