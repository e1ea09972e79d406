//! The headers of a column's pages, checked before the decoder is given them.
//!
//! The decoder believes what a page's header says of itself, and allocates as much. So each is compared
//! with the file first: pages lie one behind the other in their column, none claims to hold more than its
//! bytes can be unpacked to, and together they have as many values as the column. Only what is compared is
//! taken out of a header (Thrift's compact protocol); the rest is skipped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Longest header read: one has the column's smallest and largest value in it.
const MAX_HEADER: usize = 1 << 20;
/// Bytes that are read at first: enough for most headers.
const HEADER: usize = 512;
/// Largest page, unpacked. Writers make pages of about 1 MiB; some put a whole row group's column into one.
const MAX_PAGE: i64 = 256 << 20;
/// More than any compression allowed here (deflate) can unpack one byte to.
const MAX_RATIO: i64 = 1032;
/// Structures within each other in a header.
const MAX_DEPTH: usize = 8;

/// A column in a row group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Where its first page's header is.
    pub start: u64,
    /// Bytes of all its pages.
    pub len: u64,
    /// Its values, nulls included.
    pub values: i64,
    /// Whether pages may be smaller in the file than in memory.
    pub compressed: bool,
}

/// What a page says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PageHeader {
    uncompressed: Option<i64>,
    compressed: Option<i64>,
    /// Of a data page.
    values: Option<i64>,
    /// Of a page of the dictionary.
    dictionary_values: Option<i64>,
}

/// Checks all pages of a column; the problem, if there is one, in words.
pub(super) fn check(file: &File, chunk: Chunk) -> Result<(), String> {
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
        let mut input = Input { bytes: &bytes, depth: 0 };
        match input.page_header() {
            Ok(header) => return Ok((header, size - input.bytes.len())),
            Err(Stop::Damaged) => return Err("its header can't be read".into()),
            Err(Stop::End) if size == left => return Err("its header has no end".into()),
            Err(Stop::End) => size = (size * 16).min(left),
        }
    }
}

fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(bytes, at)
}

/// Why nothing more can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The bytes end here.
    End,
    /// No encoding of anything.
    Damaged,
}

/// What is left of a header.
struct Input<'a> {
    bytes: &'a [u8],
    depth: usize,
}

/// A field's type in the compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const STRUCT: u8 = 12;

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, Stop> {
        let (first, rest) = self.bytes.split_first().ok_or(Stop::End)?;
        self.bytes = rest;
        Ok(*first)
    }

    fn skip_bytes(&mut self, count: u64) -> Result<(), Stop> {
        let count = usize::try_from(count).map_err(|_| Stop::End)?;
        self.bytes = self.bytes.get(count..).ok_or(Stop::End)?;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, Stop> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Stop::Damaged)
    }

    /// An integer of any width.
    fn integer(&mut self) -> Result<i64, Stop> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Hands the number and the type of each field to `field`, which reads it (and then says so) or not.
    fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, i64, u8) -> Result<bool, Stop>,
    ) -> Result<(), Stop> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Stop::Damaged);
        }
        let mut number: i64 = 0;
        loop {
            let head = self.byte()?;
            if head == 0 {
                self.depth -= 1;
                return Ok(());
            }
            let kind = head & 0x0f;
            number = match head >> 4 {
                0 => self.integer()?,
                step => number.saturating_add(i64::from(step)),
            };
            if !field(self, number, kind)? {
                self.skip(kind)?;
            }
        }
    }

    fn skip(&mut self, kind: u8) -> Result<(), Stop> {
        match kind {
            TRUE | FALSE => Ok(()),
            3 => self.skip_bytes(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip_bytes(8),
            8 => {
                let len = self.varint()?;
                self.skip_bytes(len)
            }
            STRUCT => self.fields(|_, _, _| Ok(false)),
            // Lists, sets and maps: page headers have none.
            _ => Err(Stop::Damaged),
        }
    }

    /// See `PageHeader` in the format's `parquet.thrift`.
    fn page_header(&mut self) -> Result<PageHeader, Stop> {
        let mut header = PageHeader::default();
        self.fields(|input, number, kind| {
            match (number, kind) {
                (2, 5) => header.uncompressed = Some(input.integer()?),
                (3, 5) => header.compressed = Some(input.integer()?),
                // Data pages of version 1 and 2.
                (5 | 8, STRUCT) => header.values = Some(input.first_integer()?),
                (7, STRUCT) => header.dictionary_values = Some(input.first_integer()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(header)
    }

    /// The integer that a structure begins with.
    fn first_integer(&mut self) -> Result<i64, Stop> {
        let mut value = None;
        self.fields(|input, number, kind| {
            let is_first = (number, kind) == (1, 5);
            if is_first {
                value = Some(input.integer()?);
            }
            Ok(is_first)
        })?;
        value.ok_or(Stop::Damaged)
    }
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
        let mut input = Input { bytes: &HEADER_BYTES, depth: 0 };
        let expected = PageHeader {
            uncompressed: Some(20),
            compressed: Some(10),
            values: Some(3),
            dictionary_values: None,
        };
        assert_eq!(input.page_header(), Ok(expected));
        assert_eq!(input.bytes, [0xff]);
        for len in 0..HEADER_BYTES.len() - 1 {
            let mut input = Input { bytes: &HEADER_BYTES[..len], depth: 0 };
            assert_eq!(input.page_header(), Err(Stop::End), "{len} bytes");
        }
    }

    #[test]
    fn structures_without_end_are_refused() {
        let mut input = Input { bytes: &[0x1c; 1000], depth: 0 };
        assert_eq!(input.page_header(), Err(Stop::Damaged));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Input { bytes: &bytes, depth: 0 }.page_header();
        }
    }
}
