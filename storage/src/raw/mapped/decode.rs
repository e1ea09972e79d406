//! Values of a Parquet column as text.

use std::cell::Cell;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;

use half::f16;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{DataType, Int96};
use parquet::errors::{ParquetError, Result};

use super::shape::{Kind, Shape};
use crate::raw::time::{NANOS, as_seconds, day, moment};

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

impl Kind {
    /// `written` has times as people write them.
    fn int64(self, value: i64, written: bool) -> String {
        match self {
            Self::Plain => value.to_string(),
            Self::Unsigned => (value as u64).to_string(),
            Self::Days if written => day(value),
            Self::Days => value.saturating_mul(86_400).to_string(),
            Self::Ticks(ticks) if written => moment(i128::from(value) * i128::from(NANOS / ticks)),
            Self::Ticks(ticks) if value % ticks == 0 => (value / ticks).to_string(),
            Self::Ticks(ticks) => as_seconds(i128::from(value) * i128::from(NANOS / ticks)),
            Self::Decimal(scale) => point(value.into(), scale),
            // Of other types than numbers.
            Self::Uuid | Self::Half => String::new(),
        }
    }

    fn int32(self, value: i32, written: bool) -> String {
        match self {
            Self::Unsigned => (value as u32).to_string(),
            _ => self.int64(i64::from(value), written),
        }
    }

    /// Text, or what else is stored as bytes.
    fn bytes(self, bytes: &[u8]) -> Result<String> {
        let damaged = |what: &str| Err(ParquetError::General(what.into()));
        match self {
            Self::Decimal(scale) => match big_endian(bytes) {
                Some(value) => Ok(point(value, scale)),
                None => damaged("a decimal of more than 128 bits"),
            },
            Self::Uuid => match <[u8; 16]>::try_from(bytes) {
                Ok(bytes) => Ok(uuid(u128::from_be_bytes(bytes))),
                Err(_) => damaged("a UUID that has not 16 bytes"),
            },
            Self::Half => match <[u8; 2]>::try_from(bytes) {
                Ok(bytes) => Ok(number(f16::from_le_bytes(bytes))),
                Err(_) => damaged("a number of 16 bits that has not 2 bytes"),
            },
            _ => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(text.to_owned()),
                Err(_) => damaged("text that is not UTF-8"),
            },
        }
    }
}

/// A number in two's complement, of any length, if 128 bits hold it.
fn big_endian(bytes: &[u8]) -> Option<i128> {
    let sign = if bytes.first()? & 0x80 == 0 { 0 } else { 0xff };
    let (more, last) = bytes.split_at(bytes.len().saturating_sub(16));
    let mut wide = [sign; 16];
    wide.get_mut(16 - last.len()..)?.copy_from_slice(last);
    let value = i128::from_be_bytes(wide);
    let extends = more.iter().all(|byte| *byte == sign) && (value < 0) == (sign != 0);
    extends.then_some(value)
}

/// A number whose last `scale` digits are behind the point.
fn point(value: i128, scale: u32) -> String {
    if scale == 0 {
        return value.to_string();
    }
    let scale = scale as usize;
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{}{whole}.{fraction}", if value < 0 { "-" } else { "" })
}

fn uuid(value: u128) -> String {
    let mut text = format!("{value:032x}");
    for at in [20, 16, 12, 8] {
        text.insert(at, '-');
    }
    text
}

/// Appends the next `rows` values of a column, empty where they are null. Returns how many there were.
pub(super) fn read_batch(
    reader: &mut ColumnReader,
    shape: Shape,
    rows: usize,
    out: &mut Vec<String>,
) -> Result<usize> {
    let Shape { kind, written, .. } = shape;
    match reader {
        ColumnReader::BoolColumnReader(r) => column(r, shape, rows, out, |v| Ok(v.to_string())),
        ColumnReader::Int32ColumnReader(r) => {
            column(r, shape, rows, out, |v| Ok(kind.int32(*v, written)))
        }
        ColumnReader::Int64ColumnReader(r) => {
            column(r, shape, rows, out, |v| Ok(kind.int64(*v, written)))
        }
        ColumnReader::Int96ColumnReader(r) => column(r, shape, rows, out, |v| {
            let nanos = int96(v);
            Ok(if written { moment(nanos) } else { as_seconds(nanos) })
        }),
        ColumnReader::FloatColumnReader(r) => column(r, shape, rows, out, |v| Ok(number(*v))),
        ColumnReader::DoubleColumnReader(r) => column(r, shape, rows, out, |v| Ok(number(*v))),
        ColumnReader::ByteArrayColumnReader(r) => {
            column(r, shape, rows, out, |v| kind.bytes(v.data()))
        }
        ColumnReader::FixedLenByteArrayColumnReader(r) => {
            column(r, shape, rows, out, |v| kind.bytes(v.data()))
        }
    }
}

/// A number; what is none is how pandas writes that there is no value.
fn number<T: PartialOrd + Display>(value: T) -> String {
    if value.partial_cmp(&value).is_none() { String::new() } else { value.to_string() }
}

/// Nanoseconds since 1970 of a time of day in nanoseconds and a Julian day, whose number at 1970 is 2,440,588.
fn int96(time: &Int96) -> i128 {
    let [low, high, day] = [0, 1, 2].map(|i| time.data().get(i).copied().unwrap_or_default());
    let nanos = (i64::from(high) << 32) | i64::from(low);
    let day = i128::from(day.cast_signed()) - 2_440_588;
    day * 86_400 * i128::from(NANOS) + i128::from(nanos)
}

/// Most bytes that the values of one batch may take. A dictionary's value takes none in a page, however often
/// it stands there.
const BATCH_LIMIT: usize = 64 << 20;
/// What is said of values that take more.
pub(super) const TOO_MUCH: &str = "take more than 64 MiB";

/// Between the values of a list, as MovieLens writes genres.
const SEPARATOR: char = '|';

fn column<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    shape: Shape,
    rows: usize,
    out: &mut Vec<String>,
    text: impl Fn(&T::T) -> Result<String>,
) -> Result<usize> {
    let (mut values, mut levels, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    let (mut found, mut bytes) = (0, 0);
    let mut text = |value: &T::T| {
        let text = text(value)?;
        bytes += text.len() + 1;
        if bytes > BATCH_LIMIT {
            return Err(ParquetError::General(format!("{rows} values {TOO_MUCH}")));
        }
        Ok(text)
    };
    while found < rows {
        values.clear();
        levels.clear();
        repeated.clear();
        let (records, given, _) = reader.read_records(
            rows - found,
            Some(&mut levels),
            Some(&mut repeated),
            &mut values,
        )?;
        if records == 0 {
            break;
        }
        found += records;
        if !shape.list && given == records {
            for value in &values {
                out.push(text(value)?);
            }
            continue;
        }
        // Fewer values than rows: some are null, and the levels say which; or more: lists.
        let mut values = values.iter();
        let mut next = |level: i16| -> Result<Option<String>> {
            if level < shape.defined { Ok(None) } else { values.next().map(&mut text).transpose() }
        };
        if shape.list {
            join(repeated.iter().zip(&levels), &mut next, out)?;
        } else {
            for level in &levels {
                out.push(next(*level)?.unwrap_or_default());
            }
        }
    }
    Ok(found)
}

/// Appends the lists of rows as one text each; an empty one, and null, is an empty text. Nulls in a list are
/// left out.
fn join<'a>(
    levels: impl Iterator<Item = (&'a i16, &'a i16)>,
    next: &mut impl FnMut(i16) -> Result<Option<String>>,
    out: &mut Vec<String>,
) -> Result<()> {
    let mut begun = false;
    for (repeated, level) in levels {
        if *repeated == 0 {
            out.push(String::new());
            begun = false;
        }
        let (Some(value), Some(list)) = (next(*level)?, out.last_mut()) else { continue };
        if begun {
            list.push(SEPARATOR);
        }
        list.push_str(&value);
        begun = true;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        let cases = [
            (450, 2, "4.50"),
            (-5, 2, "-0.05"),
            (0, 1, "0.0"),
            (-123, 0, "-123"),
            (i128::MAX, 38, "1.70141183460469231731687303715884105727"),
            (i128::MIN, 0, "-170141183460469231731687303715884105728"),
        ];
        for (value, scale, text) in cases {
            assert_eq!(point(value, scale), text);
        }
    }

    #[test]
    fn numbers_of_any_number_of_bytes() {
        for value in [0, 1, -1, 127, 128, -128, -129, i128::MAX, i128::MIN] {
            assert_eq!(big_endian(&value.to_be_bytes()), Some(value));
            let sign = if value < 0 { 0xff } else { 0 };
            let longer = [&[sign; 5][..], &value.to_be_bytes()].concat();
            assert_eq!(big_endian(&longer), Some(value));
        }
        assert_eq!(big_endian(&[0xff]), Some(-1));
        assert_eq!(big_endian(&[0, 0x80]), Some(128));
        assert_eq!(big_endian(&[]), None);
        assert_eq!(big_endian(&[1; 17]), None);
        // The sign is in front of it, and another one inside.
        assert_eq!(big_endian(&[&[0][..], &[0xff; 16]].concat()), None);
    }

    #[test]
    fn ids_of_128_bits_as_text() {
        let value = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
        assert_eq!(uuid(value), "01234567-89ab-cdef-0011-223344556677");
    }
}
