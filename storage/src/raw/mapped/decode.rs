//! Values of a Parquet column as text.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;

use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType, Int96};
use parquet::errors::{ParquetError, Result};
use parquet::schema::types::ColumnDescPtr;

use crate::raw::time::{NANOS, as_seconds};

thread_local! {
    /// Whether this thread is inside `guarded`.
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread is one of the Parquet decoder, which becomes the error of a damaged
/// file: nothing for a panic hook to report.
pub fn is_decoding() -> bool {
    DECODING.get()
}

/// Calls the decoder. On some damaged files it panics where it should return an error.
pub(super) fn guarded<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    DECODING.set(true);
    // What a panic leaves half done is dropped: the error ends the reading of the table.
    let result = std::panic::catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(false);
    result.unwrap_or_else(|_| Err(ParquetError::General("its pages contradict each other".into())))
}

/// How a column's values become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As numbers and words are written.
    Plain,
    /// An integer without sign.
    Unsigned,
    /// Days since 1970, given in seconds.
    Days,
    /// This many ticks a second since 1970, given in seconds with as many decimals as they have.
    Ticks(i64),
}

impl Kind {
    /// The kind of a column, or why it can't be read.
    pub(super) fn of(column: &ColumnDescPtr) -> Result<Self, String> {
        if column.path().parts().len() != 1 || column.max_rep_level() != 0 {
            return Err("nested".into());
        }
        let (converted, logical) = (column.converted_type(), column.logical_type_ref());
        let refused = || {
            let logical = logical.map_or_else(|| format!("{converted}"), |l| format!("{l:?}"));
            Err(format!("of type {} ({logical})", column.physical_type()))
        };
        match (column.physical_type(), logical, converted) {
            (Type::INT64, Some(LogicalType::Timestamp(time)), _) => Ok(match time.unit {
                TimeUnit::MILLIS => Self::Ticks(1_000),
                TimeUnit::MICROS => Self::Ticks(1_000_000),
                TimeUnit::NANOS => Self::Ticks(1_000_000_000),
            }),
            (Type::INT64, None, ConvertedType::TIMESTAMP_MILLIS) => Ok(Self::Ticks(1_000)),
            (Type::INT64, None, ConvertedType::TIMESTAMP_MICROS) => Ok(Self::Ticks(1_000_000)),
            (Type::INT96, ..) => Ok(Self::Ticks(1)),
            (Type::INT32, Some(LogicalType::Date), _) | (Type::INT32, _, ConvertedType::DATE) => {
                Ok(Self::Days)
            }
            (Type::INT32 | Type::INT64, Some(LogicalType::Integer(int)), _) => {
                Ok(if int.is_signed { Self::Plain } else { Self::Unsigned })
            }
            (
                Type::INT32 | Type::INT64,
                None,
                ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
                | ConvertedType::UINT_64,
            ) => Ok(Self::Unsigned),
            (
                Type::INT32 | Type::INT64,
                None,
                ConvertedType::NONE
                | ConvertedType::INT_8
                | ConvertedType::INT_16
                | ConvertedType::INT_32
                | ConvertedType::INT_64,
            )
            | (Type::BOOLEAN | Type::FLOAT | Type::DOUBLE, ..) => Ok(Self::Plain),
            (
                Type::BYTE_ARRAY,
                None | Some(LogicalType::String | LogicalType::Enum | LogicalType::Json),
                ConvertedType::NONE
                | ConvertedType::UTF8
                | ConvertedType::ENUM
                | ConvertedType::JSON,
            ) => Ok(Self::Plain),
            _ => refused(),
        }
    }

    /// Whether values are times, given in seconds.
    pub(super) fn is_time(self) -> bool {
        matches!(self, Self::Days | Self::Ticks(_))
    }

    fn int64(self, value: i64) -> String {
        match self {
            Self::Plain => value.to_string(),
            Self::Unsigned => (value as u64).to_string(),
            Self::Days => value.saturating_mul(86_400).to_string(),
            Self::Ticks(ticks) if value % ticks == 0 => (value / ticks).to_string(),
            Self::Ticks(ticks) => as_seconds(i128::from(value) * i128::from(NANOS / ticks)),
        }
    }

    fn int32(self, value: i32) -> String {
        match self {
            Self::Unsigned => (value as u32).to_string(),
            _ => self.int64(i64::from(value)),
        }
    }
}

/// Appends the next `rows` values of a column, empty where they are null. Returns how many there were.
pub(super) fn read_batch(
    reader: &mut ColumnReader,
    kind: Kind,
    rows: usize,
    out: &mut Vec<String>,
) -> Result<usize> {
    match reader {
        ColumnReader::BoolColumnReader(r) => column(r, rows, out, |v| Ok(v.to_string())),
        ColumnReader::Int32ColumnReader(r) => column(r, rows, out, |v| Ok(kind.int32(*v))),
        ColumnReader::Int64ColumnReader(r) => column(r, rows, out, |v| Ok(kind.int64(*v))),
        ColumnReader::Int96ColumnReader(r) => column(r, rows, out, |v| Ok(int96(v))),
        ColumnReader::FloatColumnReader(r) => column(r, rows, out, |v| Ok(v.to_string())),
        ColumnReader::DoubleColumnReader(r) => column(r, rows, out, |v| Ok(v.to_string())),
        ColumnReader::ByteArrayColumnReader(r) => column(r, rows, out, text),
        // `Kind::of` refuses columns of this type.
        ColumnReader::FixedLenByteArrayColumnReader(_) => {
            Err(ParquetError::NYI("values of a fixed number of bytes".into()))
        }
    }
}

/// A time of day in nanoseconds, and a Julian day, whose number at 1970 is 2,440,588.
fn int96(time: &Int96) -> String {
    let [low, high, day] = [0, 1, 2].map(|i| time.data().get(i).copied().unwrap_or_default());
    let nanos = (i64::from(high) << 32) | i64::from(low);
    let day = i128::from(day.cast_signed()) - 2_440_588;
    as_seconds(day * 86_400 * i128::from(NANOS) + i128::from(nanos))
}

/// Most bytes that the values of one batch may take. A dictionary's value takes none in a page, however often
/// it stands there.
const BATCH_LIMIT: usize = 64 << 20;
/// What is said of values that take more.
pub(super) const TOO_MUCH: &str = "take more than 64 MiB";

fn text(value: &ByteArray) -> Result<String> {
    let text = std::str::from_utf8(value.data());
    text.map(str::to_owned).map_err(|_| ParquetError::General("text that is not UTF-8".into()))
}

fn column<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    rows: usize,
    out: &mut Vec<String>,
    text: impl Fn(&T::T) -> Result<String>,
) -> Result<usize> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    let (mut found, mut bytes) = (0, 0);
    let mut text = |value: &T::T| {
        let text = text(value)?;
        bytes += text.len();
        if bytes > BATCH_LIMIT {
            return Err(ParquetError::General(format!("{rows} values {TOO_MUCH}")));
        }
        Ok(text)
    };
    while found < rows {
        values.clear();
        levels.clear();
        let (records, given, _) =
            reader.read_records(rows - found, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            break;
        }
        found += records;
        if given == records {
            for value in &values {
                out.push(text(value)?);
            }
            continue;
        }
        // Fewer values than rows: some are null, and the levels say which.
        let mut values = values.iter();
        for level in &levels {
            out.push(if *level == 0 {
                String::new()
            } else {
                values.next().map(&mut text).transpose()?.unwrap_or_default()
            });
        }
    }
    Ok(found)
}
