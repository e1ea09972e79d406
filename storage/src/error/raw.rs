//! What can be wrong with a raw file, for a message that names the place.

use std::path::PathBuf;

/// What is wrong with a value of a raw file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RawProblem {
    /// The line has another number of columns than the layout.
    #[error("{found} columns where the layout has {expected} ({layout})")]
    ColumnCount {
        /// Columns of the layout.
        expected: usize,
        /// Columns of the line.
        found: usize,
        /// The layout, in words.
        layout: &'static str,
    },
    /// The header line is not that of the layout.
    #[error("the header is {found:?}, not {expected:?}")]
    Header {
        /// Header of the layout.
        expected: &'static str,
        /// Header of the file.
        found: String,
    },
    /// An identifier is empty.
    #[error("empty")]
    Empty,
    /// Not a number.
    #[error("{0:?} is not a number")]
    NotANumber(String),
    /// No value, or what stands for none.
    #[error("missing{}{advice}", shown(.found))]
    Missing {
        /// What stands for it, like `NULL`; mostly nothing.
        found: Box<str>,
        /// What can be done, in words.
        advice: &'static str,
    },
    /// A time that is not written as times are there.
    #[error("{found:?} is not a time: {wanted}")]
    NotATime {
        /// The value.
        found: Box<str>,
        /// What the times look like.
        expected: &'static str,
        /// Who wants that, and what would read the value, in words.
        wanted: Box<str>,
    },
    /// A time that no rating has.
    #[error("{found} is in the year {year}, {advice}")]
    FarTime {
        /// The value.
        found: Box<str>,
        /// Its year.
        year: i64,
        /// Why it can't be that, and how it would have to be read, in words.
        advice: Box<str>,
    },
    /// A number that is infinite or none.
    #[error("{0:?} is not a finite number")]
    NotFinite(String),
    /// More distinct ratings than levels can be told apart.
    #[error(
        "{found:?} is the {count}th distinct rating, and at most 256 levels can be told apart; bin the ratings \
         before (for instance to halves: round(2 * rating) / 2)"
    )]
    TooManyLevels {
        /// The rating.
        found: String,
        /// How many distinct ones there are with it.
        count: usize,
    },
    /// A user's or item's value differs from an earlier row's.
    #[error(
        "{found:?} where line {first} has {before:?}: what is known of a user or item must be the same in all its \
         rows; put it into a table of its own (data.columns.users, data.columns.items)"
    )]
    Differs {
        /// The value.
        found: Box<str>,
        /// The earlier value.
        before: Box<str>,
        /// Line of the earlier row.
        first: u64,
    },
    /// A line that is not the JSON the layout says.
    #[error("not the JSON of this layout: {0}")]
    NotJson(String),
    /// A quoted value that never ends.
    #[error("a quoted value that begins here does not end")]
    OpenQuote,
    /// A row or value longer than any real one.
    #[error("longer than {limit} bytes: a quote that is never closed?")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// A rating outside the format's levels.
    #[error("{found} is not a rating of this format: {levels}")]
    NotALevel {
        /// The rating.
        found: String,
        /// The levels, in words.
        levels: String,
    },
    /// A code that the layout's documentation does not list.
    #[error("{found:?} is not one of {expected}")]
    UnknownCode {
        /// The code.
        found: String,
        /// The known codes, in words.
        expected: &'static str,
    },
    /// The same line again.
    #[error("the same line as line {first}; data.duplicates = \"first\" or \"last\" keeps one")]
    DuplicateLine {
        /// Line number of the first one.
        first: u64,
    },
    /// A second rating of the same item by the same user.
    #[error(
        "user {user} has rated item {item} already, in line {first}; data.duplicates = \"first\" or \"last\" \
         keeps one"
    )]
    SecondRating {
        /// The user's key.
        user: String,
        /// The item's key.
        item: String,
        /// Line number of the first rating.
        first: u64,
    },
    /// More ratings than a row number can count.
    #[error("more than 4294967295 ratings; this version can't take more")]
    TooManyRatings,
    /// A key that a table defines twice.
    #[error(
        "{key:?} is defined already, in line {first}; data.duplicates = \"first\" or \"last\" keeps one"
    )]
    DuplicateKey {
        /// The key.
        key: String,
        /// Line number of the first definition.
        first: u64,
    },
    /// A rating refers to a row that its table lacks.
    #[error("{key:?} is not in {table}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The table's file.
        table: PathBuf,
    },
    /// Bytes that are not UTF-8 in a file that must be.
    #[error("not valid UTF-8 (byte {position} of the line)")]
    NotUtf8 {
        /// Position of the first wrong byte, from 0.
        position: usize,
    },
    /// A line longer than any real one.
    #[error("longer than {limit} bytes: not a text file of ratings?")]
    LineTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// A blank line between two rows.
    #[error("blank line inside the file")]
    BlankLine,
}

/// What stands where a value is missing, if anything does.
fn shown(found: &str) -> String {
    if found.is_empty() { String::new() } else { format!(" ({found:?})") }
}

impl RawProblem {
    /// Whether it is of one row, and the next one can be read.
    pub(crate) fn is_of_one_row(&self) -> bool {
        !matches!(
            self,
            Self::Header { .. }
                | Self::TooManyLevels { .. }
                | Self::TooLong { .. }
                | Self::LineTooLong { .. }
                | Self::TooManyRatings
        )
    }

    /// What such rows are, behind their number: a noun without its plural, and the rest.
    pub(crate) fn describe(&self) -> (&'static str, String) {
        let what = match self {
            Self::DuplicateLine { .. } | Self::SecondRating { .. } => {
                return ("rating", " given twice".into());
            }
            Self::NotATime { expected, .. } => return ("row", format!(": not {expected}")),
            Self::DuplicateKey { .. } => "an id that an earlier row has",
            Self::ColumnCount { .. } => "another number of columns",
            Self::Empty => "without an id",
            Self::Missing { .. } => "without a value",
            Self::NotANumber(_) => "not a number",
            Self::FarTime { .. } => "times that no rating has",
            Self::NotFinite(_) => "not a finite number",
            Self::Differs { .. } => "not what an earlier row says of the user or item",
            Self::NotJson(_) => "not the JSON of this layout",
            Self::OpenQuote => "quotes that do not end",
            Self::NotALevel { .. } => "not a rating of this format",
            Self::UnknownCode { .. } => "codes that are not known",
            Self::UnknownKey { .. } => "not in its table",
            Self::NotUtf8 { .. } => "not UTF-8",
            Self::BlankLine => "blank",
            // Each of these ends the reading by itself.
            Self::Header { .. }
            | Self::TooManyLevels { .. }
            | Self::TooLong { .. }
            | Self::LineTooLong { .. }
            | Self::TooManyRatings => "not to be read",
        };
        ("row", format!(": {what}"))
    }
}
