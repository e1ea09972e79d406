//! Rows that can't be used, reported together: how many of each kind, and the first of each.

use std::mem::{Discriminant, discriminant};
use std::path::Path;

use crate::error::{RawProblem, Result, StorageError};

/// Rows of one file that can't be used. Kinds are few, and of each only the first row is kept.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

/// Rows of one kind.
#[derive(Debug)]
struct Fault {
    count: u64,
    first: StorageError,
}

/// Where an error of one row is, and what it is.
struct Row<'a> {
    path: &'a Path,
    line: u64,
    /// The column; `line` where it is the whole row.
    column: &'a str,
    problem: &'a RawProblem,
}

/// The row whose error this is; none where it ends the reading.
fn row(error: &StorageError) -> Option<Row<'_>> {
    let (path, line, column, problem) = match error {
        StorageError::Raw { path, line, field, problem } => (path, *line, *field, problem),
        StorageError::Cell { path, line, column, problem } => (path, *line, &**column, problem),
        _ => return None,
    };
    problem.is_of_one_row().then_some(Row { path, line, column, problem })
}

/// Whether an error is of one row, so that the next one can be read.
pub(super) fn is_of_one_row(error: &StorageError) -> bool {
    row(error).is_some()
}

impl Faults {
    /// Whether every row can be used.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads rows for as long as `next` says that there are more. Rows that can't be used are noted; anything
    /// else ends the reading, with what was noted before.
    pub(super) fn rows(&mut self, mut next: impl FnMut() -> Result<bool>) -> Result<()> {
        loop {
            match next() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if is_of_one_row(&error) => self.note(error, 1),
                Err(error) => return self.ended(Err(error)),
            }
        }
    }

    /// Takes note of so many rows of one kind, the first of which is this one.
    pub(super) fn note(&mut self, first: StorageError, count: u64) {
        let known = self.0.iter_mut().find(|fault| fault.kind() == kind(&first));
        match known {
            Some(fault) => fault.count += count,
            None => self.0.push(Fault { count, first }),
        }
    }

    /// Adds what was noted of rows behind.
    pub(super) fn append(&mut self, behind: Self) {
        behind.0.into_iter().for_each(|fault| self.note(fault.first, fault.count));
    }

    /// What ended the reading, with what was noted before.
    pub(super) fn ended<T>(&mut self, result: Result<T>) -> Result<T> {
        result.map_err(|end| {
            let (path, list) = match self.report() {
                None => return end,
                Some(StorageError::Table { path, problem }) => (path, problem),
                Some(one) => {
                    let path = row(&one).map(|row| row.path.to_path_buf());
                    (path.unwrap_or_default(), one.to_string())
                }
            };
            let problem = format!("{list}\n  and nothing behind can be read: {end}");
            StorageError::Table { path, problem }
        })
    }

    /// An error if any row can't be used; the row's own if it is the only one.
    pub(super) fn check(&mut self) -> Result<()> {
        self.report().map_or(Ok(()), Err)
    }

    fn report(&mut self) -> Option<StorageError> {
        let mut faults = std::mem::take(&mut self.0);
        let rows: u64 = faults.iter().map(|fault| fault.count).sum();
        if rows <= 1 {
            return faults.pop().map(|fault| fault.first);
        }
        let path = faults.iter().find_map(|fault| row(&fault.first)).map(|row| row.path);
        let path = path.unwrap_or(Path::new("")).to_path_buf();
        let lines: Vec<String> = faults.iter().map(|fault| fault.line(&path)).collect();
        let list = format!("{rows} rows can't be used\n{}", lines.join("\n"));
        Some(StorageError::Table { path, problem: list })
    }
}

/// What tells kinds apart: the column, and the kind of problem.
fn kind(error: &StorageError) -> Option<(&str, Discriminant<RawProblem>)> {
    row(error).map(|row| (row.column, discriminant(row.problem)))
}

impl Fault {
    fn kind(&self) -> Option<(&str, Discriminant<RawProblem>)> {
        kind(&self.first)
    }

    /// `3 ratings given twice (first: line 218: ...)`; `path` is the file that has been named already.
    fn line(&self, path: &Path) -> String {
        let Some(row) = row(&self.first) else { return self.first.to_string() };
        let (noun, what) = row.problem.describe();
        let plural = if self.count == 1 { "" } else { "s" };
        let file = row.path.file_name().filter(|_| row.path != path);
        let file = file.map(|name| format!("{}, ", name.to_string_lossy())).unwrap_or_default();
        let column = match &self.first {
            StorageError::Cell { column, .. } => format!(", column {column:?}"),
            _ if row.column == "line" => String::new(),
            _ => format!(", {}", row.column),
        };
        let Row { line, problem, .. } = row;
        format!(
            "  {} {noun}{plural}{what} (first: {file}line {line}{column}: {problem})",
            self.count
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(line: u64, field: &'static str, problem: RawProblem) -> StorageError {
        StorageError::Raw { path: "dir/x.csv".into(), line, field, problem }
    }

    fn empty(line: u64, field: &'static str) -> StorageError {
        raw(line, field, RawProblem::Empty)
    }

    #[test]
    fn one_row_is_its_own_error_and_several_are_counted_by_kind() {
        let mut faults = Faults::default();
        faults.check().unwrap();
        faults.note(empty(7, "user"), 1);
        assert_eq!(faults.check().unwrap_err().to_string(), "dir/x.csv:7: user: empty");

        let mut rows = vec![
            Ok(true),
            Err(raw(2, "rating", RawProblem::NotANumber("x".into()))),
            Err(empty(3, "user")),
            Err(raw(5, "rating", RawProblem::NotANumber("y".into()))),
            Err(empty(8, "item")),
            Ok(true),
        ]
        .into_iter();
        faults.rows(|| rows.next().unwrap_or(Ok(false))).unwrap();
        let mut behind = Faults::default();
        behind.note(empty(9, "user"), 1);
        let same = RawProblem::DuplicateLine { first: 4 };
        let cell = StorageError::Cell {
            path: "dir/y.csv".into(),
            line: 1,
            column: "who".into(),
            problem: RawProblem::Empty,
        };
        behind.note(cell, 1);
        faults.append(behind);
        faults.note(raw(6, "line", same), 12);
        assert_eq!(
            faults.check().unwrap_err().to_string(),
            "dir/x.csv: 18 rows can't be used\n\
             \x20 2 rows: not a number (first: line 2, rating: \"x\" is not a number)\n\
             \x20 2 rows: without an id (first: line 3, user: empty)\n\
             \x20 1 row: without an id (first: line 8, item: empty)\n\
             \x20 1 row: without an id (first: y.csv, line 1, column \"who\": empty)\n\
             \x20 12 ratings given twice (first: line 6: the same line as line 4; data.duplicates = \"first\" \
             or \"last\" keeps one)"
        );
        faults.check().unwrap();
    }

    #[test]
    fn what_ends_the_reading_comes_behind_what_was_noted() {
        let end = || StorageError::EmptyRawFile { path: "z".into() };
        let mut faults = Faults::default();
        let mut rows = vec![Err(end())].into_iter();
        let error = faults.rows(|| rows.next().unwrap()).unwrap_err();
        assert!(matches!(error, StorageError::EmptyRawFile { .. }), "{error}");
        let mut rows = vec![Err(empty(3, "user")), Err(end())].into_iter();
        let error = faults.rows(|| rows.next().unwrap()).unwrap_err().to_string();
        for words in
            ["dir/x.csv:3: user: empty\n", "nothing behind can be read: z: the file has no"]
        {
            assert!(error.contains(words), "{error}");
        }
    }
}
