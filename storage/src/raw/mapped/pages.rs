//! The pages of a Parquet column, read and unpacked for the decoder.
//!
//! The decoder allocates what the header of a page says of itself. So pages are read here, where nothing is
//! believed: a page lies inside its column and the column inside the file, it unpacks to what it says and to
//! no more than a limit, and its dictionary and its lists have no more values than could be in it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use parquet::basic::{Compression, Encoding, Type};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;

use super::delta;
use super::thrift::{FALSE, I32, Input, STRUCT, Stop, TRUE};
use super::unpack::unpack;

/// Longest header read: one has the column's smallest and largest value in it.
const MAX_HEADER: usize = 1 << 20;
/// Bytes that are read at first: enough for most headers.
const HEADER: usize = 512;
/// Largest page, unpacked. Writers make pages of about 1 MiB; some put a whole row group's column into one.
const MAX_PAGE: i64 = 256 << 20;
/// Most values in the lists of a row group: a run of a few bytes can say that one list has 2^31.
const MAX_LISTED: i64 = 1 << 24;

/// The pages of a column in a row group.
pub(super) struct Pages {
    /// Column and row group, for errors.
    name: String,
    file: File,
    /// Where the next page's header is.
    at: u64,
    end: u64,
    /// Pages so far.
    page: u64,
    codec: Compression,
    /// Values that are still to come, nulls included.
    left: i64,
    /// The highest levels of repetition and definition.
    levels: [i16; 2],
    physical: Type,
    /// Bytes of a value of a type of a fixed number of them.
    width: usize,
}

impl Pages {
    /// The pages of a column of a file of `size` bytes.
    pub(super) fn of(
        file: &File,
        size: u64,
        column: &ColumnChunkMetaData,
        name: String,
    ) -> Result<Self> {
        let descr = column.column_descr();
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let (start, len) = (u64::try_from(start), u64::try_from(column.compressed_size()));
        let end = start
            .ok()
            .zip(len.ok())
            .and_then(|(start, len)| Some((start, start.checked_add(len)?)));
        let Some((at, end)) = end.filter(|(_, end)| *end <= size) else {
            return Err(problem(format!("{name} lies outside the file")));
        };
        if descr.max_rep_level() > 0 && column.num_values() > MAX_LISTED {
            return Err(problem(format!(
                "{name}: its lists have {} values, more than {MAX_LISTED}: make row groups smaller",
                column.num_values()
            )));
        }
        Ok(Self {
            name,
            file: file.try_clone()?,
            at,
            end,
            page: 0,
            codec: column.compression(),
            left: column.num_values(),
            levels: [descr.max_rep_level(), descr.max_def_level()],
            physical: descr.physical_type(),
            width: usize::try_from(descr.type_length()).unwrap_or(0),
        })
    }

    fn next_page(&mut self) -> Result<Option<Page>> {
        while self.at < self.end {
            let (header, len) = read_header(&self.file, self.at, self.end)?;
            let data = self.at + len as u64;
            let next = u64::try_from(header.packed).ok().and_then(|len| data.checked_add(len));
            let Some(next) = next.filter(|next| *next <= self.end) else {
                return Err(problem(format!("{} bytes reach out of its column", header.packed)));
            };
            if !(0..=MAX_PAGE).contains(&header.unpacked) {
                return Err(problem(format!(
                    "{} bytes unpacked, more than the limit of {MAX_PAGE}",
                    header.unpacked
                )));
            }
            let mut bytes = vec![0; header.packed as usize];
            self.file.read_exact_at(&mut bytes, data)?;
            (self.at, self.page) = (next, self.page + 1);
            match header.content {
                Content::Dictionary { values, encoding } => {
                    return self.dictionary(header.unpacked, values, encoding, &bytes).map(Some);
                }
                Content::Data { values, encoding, levels } => {
                    let size = header.unpacked as usize;
                    return self.data(size, values, encoding, levels, bytes).map(Some);
                }
                Content::Other => {}
            }
        }
        Ok(None)
    }

    fn dictionary(&self, size: i64, values: i64, encoding: Encoding, bytes: &[u8]) -> Result<Page> {
        // Of the types that have dictionaries none takes less for a value.
        let least = if self.physical == Type::FIXED_LEN_BYTE_ARRAY { self.width.max(1) } else { 4 };
        let most = size / least as i64;
        let Some(num_values) = u32::try_from(values).ok().filter(|_| values <= most) else {
            return Err(problem(format!("no dictionary of {size} bytes has its values")));
        };
        let buf = self.unpack(bytes, size as usize)?.into();
        Ok(Page::DictionaryPage { buf, num_values, encoding, is_sorted: false })
    }

    fn data(
        &mut self,
        size: usize,
        values: i64,
        encoding: Encoding,
        levels: Levels,
        bytes: Vec<u8>,
    ) -> Result<Page> {
        self.left = self.left.saturating_sub(values);
        let num_values = u32::try_from(values).ok().filter(|_| self.left >= 0);
        let num_values = num_values.ok_or_else(|| problem("more values than its column has"))?;
        match levels {
            Levels::First { definition, repetition } => {
                let mut buf = self.unpack(&bytes, size)?;
                let encoding = self.plain(&mut buf, encoding, num_values, |buf| {
                    // Levels lie behind their lengths.
                    self.levels.iter().filter(|level| **level > 0).try_fold(0_usize, |at, _| {
                        let len = buf.get(at..)?.first_chunk::<4>()?;
                        at.checked_add(4)?.checked_add(u32::from_le_bytes(*len) as usize)
                    })
                })?;
                Ok(Page::DataPage {
                    buf: buf.into(),
                    num_values,
                    encoding,
                    def_level_encoding: definition,
                    rep_level_encoding: repetition,
                    statistics: None,
                })
            }
            Levels::Second { nulls, rows, definition, repetition, packed } => {
                let number = |number| {
                    u32::try_from(number).map_err(|_| problem("a header of negative numbers"))
                };
                let (definition, repetition) = (number(definition)?, number(repetition)?);
                let (num_nulls, num_rows) = (number(nulls)?, number(rows)?);
                // Levels come first and are never compressed.
                let len = definition as usize + repetition as usize;
                let (Some((front, rest)), Some(size)) =
                    (bytes.split_at_checked(len), size.checked_sub(len))
                else {
                    return Err(problem("levels that reach out of it"));
                };
                let mut buf =
                    if packed { [front, &self.unpack(rest, size)?].concat() } else { bytes };
                let encoding = self.plain(&mut buf, encoding, num_values, |_| Some(len))?;
                Ok(Page::DataPageV2 {
                    buf: buf.into(),
                    num_values,
                    encoding,
                    num_nulls,
                    num_rows,
                    def_levels_byte_len: definition,
                    rep_levels_byte_len: repetition,
                    is_compressed: false,
                    statistics: None,
                })
            }
        }
    }

    fn unpack(&self, bytes: &[u8], size: usize) -> Result<Vec<u8>> {
        // An empty page may have been compressed or not.
        if size == 0 {
            return Ok(Vec::new());
        }
        unpack(self.codec, bytes, size).map_err(problem)
    }

    /// Makes delta-encoded text behind the levels plain; other values are left as they are. Returns the
    /// encoding.
    fn plain(
        &self,
        page: &mut Vec<u8>,
        encoding: Encoding,
        values: u32,
        levels: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<Encoding> {
        let prefixed = encoding == Encoding::DELTA_BYTE_ARRAY;
        if !prefixed && encoding != Encoding::DELTA_LENGTH_BYTE_ARRAY {
            return Ok(encoding);
        }
        let fixed = (self.physical == Type::FIXED_LEN_BYTE_ARRAY).then_some(self.width);
        let from = levels(page).filter(|from| *from <= page.len());
        let from = from.ok_or_else(|| problem("levels that reach out of it"))?;
        let bytes = page.get(from..).unwrap_or_default();
        // A page of nulls alone may have nothing at all there.
        if !bytes.is_empty() {
            let plain = delta::plain(bytes, prefixed, values as usize, fixed, MAX_PAGE as usize);
            page.splice(from.., plain.map_err(problem)?);
        }
        Ok(Encoding::PLAIN)
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.page;
        self.next_page().map_err(|error| {
            let what = match error {
                ParquetError::General(what) => what,
                other => other.to_string(),
            };
            problem(format!("{}, page {page}: {what}", self.name))
        })
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        Err(ParquetError::NYI("pages are read one after the other".into()))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        Err(ParquetError::NYI("pages are read one after the other".into()))
    }

    /// Lists may go on in the next page; whether they do is seen there.
    fn at_record_boundary(&mut self) -> Result<bool> {
        Ok(self.left == 0)
    }
}

fn problem(what: impl Into<String>) -> ParquetError {
    ParquetError::General(what.into())
}

/// What a page says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    unpacked: i64,
    packed: i64,
    content: Content,
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Dictionary {
        values: i64,
        encoding: Encoding,
    },
    Data {
        values: i64,
        encoding: Encoding,
        levels: Levels,
    },
    /// A page that is passed over.
    Other,
}

/// Levels of a page of data, of the first and the second version of the format.
#[derive(Debug, PartialEq, Eq)]
enum Levels {
    First { definition: Encoding, repetition: Encoding },
    Second { nulls: i64, rows: i64, definition: i64, repetition: i64, packed: bool },
}

/// The header at a place of the file, and its length.
fn read_header(file: &File, at: u64, end: u64) -> Result<(Header, usize)> {
    let left = usize::try_from(end - at).unwrap_or(MAX_HEADER).min(MAX_HEADER);
    let mut size = HEADER.min(left);
    loop {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, at)?;
        let mut input = Input::new(&bytes);
        match header(&mut input) {
            Ok(header) => return Ok((header, size - input.rest().len())),
            Err(Stop::Damaged) => return Err(problem("its header can't be read")),
            Err(Stop::End) if size == left => return Err(problem("its header has no end")),
            Err(Stop::End) => size = (size * 16).min(left),
        }
    }
}

/// See `PageHeader` in the format's `parquet.thrift`.
fn header(input: &mut Input<'_>) -> Result<Header, Stop> {
    let (mut unpacked, mut packed, mut content) = (None, None, Content::Other);
    input.fields(|input, number, kind| {
        match (number, kind) {
            (2, I32) => unpacked = Some(input.integer()?),
            (3, I32) => packed = Some(input.integer()?),
            (5, STRUCT) => {
                let ([values, encoding, definition, repetition], _) =
                    integers(input, [1, 2, 3, 4], 0)?;
                let [encoding, definition, repetition] =
                    [encoding, definition, repetition].map(named);
                let levels = Levels::First { definition: definition?, repetition: repetition? };
                content = Content::Data { values, encoding: encoding?, levels };
            }
            (8, STRUCT) => {
                let ([values, nulls, rows, encoding, definition, repetition], packed) =
                    integers(input, [1, 2, 3, 4, 5, 6], 7)?;
                let packed = packed.unwrap_or(true);
                let levels = Levels::Second { nulls, rows, definition, repetition, packed };
                content = Content::Data { values, encoding: named(encoding)?, levels };
            }
            (7, STRUCT) => {
                let ([values, encoding], _) = integers(input, [1, 2], 0)?;
                content = Content::Dictionary { values, encoding: named(encoding)? };
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (Some(unpacked), Some(packed)) = (unpacked, packed) else { return Err(Stop::Damaged) };
    Ok(Header { unpacked, packed, content })
}

fn named(encoding: i64) -> Result<Encoding, Stop> {
    let mut all = Encoding::VARIANTS.iter().copied();
    all.find(|known| *known as i64 == encoding).ok_or(Stop::Damaged)
}

/// The integers that a structure must have as these fields, and the truth value that it may have as another.
fn integers<const N: usize>(
    input: &mut Input<'_>,
    numbers: [i64; N],
    truth: i64,
) -> Result<([i64; N], Option<bool>), Stop> {
    let (mut found, mut values, mut is_true) = ([false; N], [0; N], None);
    input.fields(|input, number, kind| {
        if number == truth && matches!(kind, TRUE | FALSE) {
            is_true = Some(kind == TRUE);
            return Ok(true);
        }
        let place = numbers.iter().position(|wanted| (*wanted, I32) == (number, kind));
        let Some((value, found)) = place.and_then(|i| values.get_mut(i).zip(found.get_mut(i)))
        else {
            return Ok(false);
        };
        (*value, *found) = (input.integer()?, true);
        Ok(true)
    })?;
    if found.contains(&false) { Err(Stop::Damaged) } else { Ok((values, is_true)) }
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
        let levels = Levels::First { definition: Encoding::RLE, repetition: Encoding::RLE };
        let content = Content::Data { values: 3, encoding: Encoding::PLAIN, levels };
        let expected = Header { unpacked: 20, packed: 10, content };
        assert_eq!(header(&mut input), Ok(expected));
        assert_eq!(input.rest().len(), 1);
        for len in 0..HEADER_BYTES.len() - 1 {
            let header = header(&mut Input::new(&HEADER_BYTES[..len]));
            assert_eq!(header, Err(Stop::End), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = header(&mut Input::new(&bytes));
        }
    }
}
