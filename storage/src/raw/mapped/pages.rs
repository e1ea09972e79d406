//! The headers of a column's pages, checked before the decoder is given them.
//!
//! The decoder believes what a page's header says of itself, and allocates as much. So each is compared
//! with the file first: pages lie one behind the other in their column, none claims to hold more than its
//! bytes can be unpacked to, and together they have as many values as the column. Only what is compared is
//! taken out of a header; the rest is skipped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;

use super::thrift::{I32, Input, STRUCT, Stop};

/// DELTA_LENGTH_BYTE_ARRAY and DELTA_BYTE_ARRAY. How much memory such a page takes is said inside of it, where
/// nobody can check it before the decoder does as it says.
const DELTA_TEXT: [i64; 2] = [6, 7];
/// What is said of it.
pub(super) const DELTA: &str = "its text is delta-encoded, which can't be read";
/// Longest header read: one has the column's smallest and largest value in it.
const MAX_HEADER: usize = 1 << 20;
/// Bytes that are read at first: enough for most headers.
const HEADER: usize = 512;
/// Largest page, unpacked. Writers make pages of about 1 MiB; some put a whole row group's column into one.
const MAX_PAGE: i64 = 256 << 20;
/// More than any compression allowed here (deflate) can unpack one byte to.
const MAX_RATIO: i64 = 1032;

/// A column in a row group, whose place in the file has been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Where its first page's header is.
    start: u64,
    /// Bytes of all its pages.
    len: u64,
    /// Its values, nulls included.
    values: i64,
    /// Whether pages may be smaller in the file than in memory.
    compressed: bool,
}

impl Chunk {
    pub(super) fn of(column: &ColumnChunkMetaData) -> Self {
        Self {
            start: first_page(column) as u64,
            len: column.compressed_size() as u64,
            values: column.num_values(),
            compressed: column.compression() != Compression::UNCOMPRESSED,
        }
    }
}

/// Where a column's first page is said to be.
pub(super) fn first_page(column: &ColumnChunkMetaData) -> i64 {
    column.dictionary_page_offset().unwrap_or(column.data_page_offset())
}

/// What a page says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PageHeader {
    uncompressed: Option<i64>,
    compressed: Option<i64>,
    /// Of a data page.
    values: Option<i64>,
    encoding: Option<i64>,
    /// Of a page of the dictionary.
    dictionary_values: Option<i64>,
}

/// Length of the footer, and the format's magic.
const TAIL: u64 = 8;

/// Checks the footer of a file of `size` bytes: that it is a structure, in which no list claims to be longer
/// than the footer. The decoder's work is bounded by nothing else.
pub(super) fn check_footer(file: &File, size: u64) -> Result<(), String> {
    let mut tail = [0; TAIL as usize];
    let Some(end) = size.checked_sub(TAIL) else { return Err("is too short".into()) };
    read_at(file, &mut tail, end).map_err(|error| error.to_string())?;
    let [a, b, c, d, ..] = tail;
    let len = u32::from_le_bytes([a, b, c, d]);
    let Some(start) = end.checked_sub(u64::from(len)) else {
        return Err(format!("its footer claims {len} bytes"));
    };
    let mut bytes = vec![0; len as usize];
    read_at(file, &mut bytes, start).map_err(|error| error.to_string())?;
    Input::new(&bytes).skip_struct().map_err(|_| "its footer can't be read".into())
}

/// Checks all pages of a column; the problem, if there is one, in words.
pub(super) fn check(file: &File, chunk: &Chunk) -> Result<(), String> {
    let (mut at, end) = (chunk.start, chunk.start.saturating_add(chunk.len));
    let mut values: i64 = 0;
    for page in 0_u64.. {
        if at >= end {
            break;
        }
        let wrong = |what: &str| format!("page {page}: {what}");
        let (header, len) = read_header(file, at, end).map_err(|what| wrong(&what))?;
        let (Some(uncompressed), Some(compressed)) = (header.uncompressed, header.compressed)
        else {
            return Err(wrong("its header says no sizes"));
        };
        let data = at + len as u64;
        let next = u64::try_from(compressed).ok().and_then(|bytes| data.checked_add(bytes));
        let Some(next) = next.filter(|next| *next <= end) else {
            return Err(wrong(&format!("{compressed} bytes reach out of its column")));
        };
        let most = if chunk.compressed { compressed.saturating_mul(MAX_RATIO) } else { compressed };
        if !(0..=most.min(MAX_PAGE)).contains(&uncompressed) {
            return Err(wrong(&format!(
                "{compressed} bytes can't be unpacked to {uncompressed} (the limit is {MAX_PAGE})"
            )));
        }
        // Of the types that have dictionaries none takes less than 4 bytes for a value.
        if header.dictionary_values.is_some_and(|n| !(0..=uncompressed / 4).contains(&n)) {
            return Err(wrong(&format!("no dictionary of {uncompressed} bytes has its values")));
        }
        if header.encoding.is_some_and(|encoding| DELTA_TEXT.contains(&encoding)) {
            return Err(wrong(DELTA));
        }
        let own = header.values.unwrap_or(0);
        values = values.saturating_add(own);
        if own < 0 || values > chunk.values {
            return Err(wrong(&format!("more values than the {} of the column", chunk.values)));
        }
        at = next;
    }
    if values == chunk.values {
        return Ok(());
    }
    Err(format!("its pages have {values} values, the column {}", chunk.values))
}

/// The header at a place of the file, and its length.
fn read_header(file: &File, at: u64, end: u64) -> Result<(PageHeader, usize), String> {
    let left = usize::try_from(end - at).unwrap_or(MAX_HEADER).min(MAX_HEADER);
    let mut size = HEADER.min(left);
    loop {
        let mut bytes = vec![0; size];
        read_at(file, &mut bytes, at).map_err(|error| error.to_string())?;
        let mut input = Input::new(&bytes);
        match page_header(&mut input) {
            Ok(header) => return Ok((header, size - input.left())),
            Err(Stop::Damaged) => return Err("its header can't be read".into()),
            Err(Stop::End) if size == left => return Err("its header has no end".into()),
            Err(Stop::End) => size = (size * 16).min(left),
        }
    }
}

fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(bytes, at)
}

/// See `PageHeader` in the format's `parquet.thrift`.
fn page_header(input: &mut Input<'_>) -> Result<PageHeader, Stop> {
    let mut header = PageHeader::default();
    input.fields(|input, number, kind| {
        match (number, kind) {
            (2, I32) => header.uncompressed = Some(input.integer()?),
            (3, I32) => header.compressed = Some(input.integer()?),
            // Data pages of version 1 and 2.
            (5, STRUCT) => [header.values, header.encoding] = integers(input, [1, 2])?,
            (8, STRUCT) => [header.values, header.encoding] = integers(input, [1, 4])?,
            (7, STRUCT) => [header.dictionary_values] = integers(input, [1])?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(header)
}

/// The integers that a structure must have as these fields.
fn integers<const N: usize>(
    input: &mut Input<'_>,
    numbers: [i64; N],
) -> Result<[Option<i64>; N], Stop> {
    let mut values = [None; N];
    input.fields(|input, number, kind| {
        let place = numbers.iter().position(|wanted| (*wanted, I32) == (number, kind));
        if let Some(value) = place.and_then(|place| values.get_mut(place)) {
            *value = Some(input.integer()?);
        }
        Ok(place.is_some())
    })?;
    if values.contains(&None) { Err(Stop::Damaged) } else { Ok(values) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A data page of 3 values: type 0, 20 bytes of 10, statistics that are skipped.
    const HEADER_BYTES: [u8; 23] = [
        0x15, 0, 0x15, 40, 0x15, 20, 0x2c, 0x15, 6, 0x15, 0, 0x15, 6, 0x15, 6, 0x1c, 0x18, 1, 7, 0,
        0, 0, 0xff,
    ];

    #[test]
    fn a_header_is_read_and_its_end_found() {
        let mut input = Input::new(&HEADER_BYTES);
        let expected = PageHeader {
            uncompressed: Some(20),
            compressed: Some(10),
            values: Some(3),
            encoding: Some(0),
            dictionary_values: None,
        };
        assert_eq!(page_header(&mut input), Ok(expected));
        assert_eq!(input.left(), 1);
        for len in 0..HEADER_BYTES.len() - 1 {
            let header = page_header(&mut Input::new(&HEADER_BYTES[..len]));
            assert_eq!(header, Err(Stop::End), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = page_header(&mut Input::new(&bytes));
        }
    }
}
