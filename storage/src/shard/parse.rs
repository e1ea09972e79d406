//! Checks of a shard that is opened.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use xxhash_rust::xxh3::xxh3_64;

use super::{ALIGNMENT, END_MAGIC, Header, MAGIC, MAX_HEADER, PREFIX, SHARD_VERSION, align};
use crate::codec;
use crate::error::Result;

/// Most bytes that come before the first column.
const MAX_PREFIX: u64 = (PREFIX + MAX_HEADER + 2 * ALIGNMENT) as u64;

/// A header that has been checked against the length of its file, but not against any hash.
pub(super) struct Outline {
    pub header: Header,
    /// Length of all before the first column.
    prefix: u64,
    /// Where the trailer starts.
    end: u64,
}

/// Checks all but the columns' content; returns the header and the columns' hashes.
pub(super) fn parse(bytes: &[u8], kind: &str) -> Result<(Header, Vec<u64>), String> {
    let outline = parse_header(bytes, bytes.len() as u64)?;
    let trailer = bytes.get(outline.end as usize..).ok_or("truncated")?;
    let hashes = check_trailer(&outline, bytes, trailer)?;
    // After the hashes, so that a damaged name is reported as damage.
    if outline.header.kind != kind {
        return Err(format!("holds `{}` where `{kind}` is expected", outline.header.kind));
    }
    Ok((outline.header, hashes))
}

/// [`parse`] of a file that is not in memory: what may precede the first column, and the trailer, are
/// read. Any kind will do.
pub(crate) fn parse_file(file: &mut File, length: u64) -> Result<(Header, Vec<u64>), String> {
    let mut read = |at: u64, count: u64| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.take(count).read_to_end(&mut bytes))
            .map_err(|error| format!("cannot be read: {error}"))?;
        Ok::<_, String>(bytes)
    };
    let start = read(0, MAX_PREFIX)?;
    let outline = parse_header(&start, length)?;
    // As long as the header's columns need, which its own length bounds.
    let trailer = read(outline.end, length - outline.end)?;
    let hashes = check_trailer(&outline, &start, &trailer)?;
    Ok((outline.header, hashes))
}

/// Checks the header at the start of `bytes`, the first of a file of `length`.
fn parse_header(bytes: &[u8], length: u64) -> Result<Outline, String> {
    if bytes.get(..8) != Some(&MAGIC) {
        return Err("not a reclora shard (wrong magic, or an empty or truncated file)".into());
    }
    let version = u32_at(bytes, 8)?;
    if version != SHARD_VERSION {
        return Err(format!("shard version {version}; this build reads version {SHARD_VERSION}"));
    }
    let header_len = u32_at(bytes, 12)? as usize;
    if header_len > MAX_HEADER {
        return Err(format!("a header of {header_len} bytes, more than {MAX_HEADER}"));
    }
    let encoded = bytes.get(PREFIX..PREFIX + header_len).ok_or("truncated inside the header")?;
    let header: Header =
        codec::decode(encoded, MAX_HEADER).map_err(|e| format!("unreadable header: {e}"))?;

    let prefix = match header.columns.first() {
        Some(first) => first.offset,
        None => align((PREFIX + header_len) as u64).ok_or("overflow")?,
    };
    let end = check_layout(&header, (PREFIX + header_len) as u64, prefix)?;
    let trailer_len = 8 * (header.columns.len() as u64 + 4);
    match end.checked_add(trailer_len) {
        Some(expected) if expected == length => Ok(Outline { header, prefix, end }),
        Some(expected) if expected > length => {
            Err(format!("truncated: {length} of {expected} bytes"))
        }
        _ => Err(format!("{length} bytes, more than the header describes")),
    }
}

/// The columns must lie as the writer lays them. Returns where the trailer starts.
fn check_layout(header: &Header, header_end: u64, start: u64) -> Result<u64, String> {
    let limit = align(header_end).and_then(|m| m.checked_add(ALIGNMENT as u64));
    let mut names = HashSet::new();
    let mut end = start;
    if start < header_end || limit.is_none_or(|l| start > l) {
        return Err(format!(
            "the first column at byte {start} overlaps the header or leaves a gap"
        ));
    }
    for column in &header.columns {
        let name = &column.name;
        if !names.insert(name.as_str()) {
            return Err(format!("two columns are named `{name}`"));
        }
        if !column.offset.is_multiple_of(ALIGNMENT as u64) {
            return Err(format!("column `{name}` is misaligned"));
        }
        if column.offset != end {
            return Err(format!("column `{name}` overlaps the one before or leaves a gap"));
        }
        end = column
            .end()
            .and_then(align)
            .ok_or_else(|| format!("the size of column `{name}` overflows"))?;
    }
    Ok(end)
}

/// Checks the trailer, and the hash of what precedes the columns, with which `start` begins; returns
/// the columns' hashes.
fn check_trailer(outline: &Outline, start: &[u8], trailer: &[u8]) -> Result<Vec<u64>, String> {
    let (hashed, rest) = trailer
        .len()
        .checked_sub(24)
        .and_then(|n| trailer.split_at_checked(n))
        .ok_or("truncated")?;
    let length = outline.end + trailer.len() as u64;
    if rest.get(16..) != Some(&END_MAGIC) || u64_at(rest, 8)? != length {
        return Err("the trailer is damaged".into());
    }
    if u64_at(rest, 0)? != xxh3_64(hashed) {
        return Err("the trailer is damaged (its hash differs)".into());
    }
    if start.get(..outline.prefix as usize).map(xxh3_64) != Some(u64_at(hashed, 0)?) {
        return Err("the header is damaged (its hash differs)".into());
    }
    (8..hashed.len()).step_by(8).map(|i| u64_at(hashed, i)).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    let array = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or("truncated")?;
    Ok(u32::from_le_bytes(array))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, String> {
    let array = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).ok_or("truncated")?;
    Ok(u64::from_le_bytes(array))
}
