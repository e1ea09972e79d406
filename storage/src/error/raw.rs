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
    /// A timestamp that is not an integer.
    #[error("{0:?} is not an integer (seconds since 1970)")]
    NotATimestamp(String),
    /// A time that is not in the unit of the mapping.
    #[error("{found:?} is not a time: data.columns.time_unit = {unit:?} wants {expected}")]
    NotATime {
        /// The value.
        found: Box<str>,
        /// Name of the unit.
        unit: &'static str,
        /// What the unit's times look like.
        expected: &'static str,
    },
    /// A time that is not of the layout's one form.
    #[error("{found:?} is not a time like {example:?}")]
    NotLike {
        /// The value.
        found: String,
        /// A time that is.
        example: &'static str,
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
    #[error("the same line as line {first}")]
    DuplicateLine {
        /// Line number of the first one.
        first: u64,
    },
    /// A second rating of the same item by the same user.
    #[error("user {user} has rated item {item} already, in line {first}")]
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
    #[error("{key:?} is defined already, in line {first}")]
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
