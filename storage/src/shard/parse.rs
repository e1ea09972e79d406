//! Checks of a shard that is opened.

use std::collections::HashSet;

use xxhash_rust::xxh3::xxh3_64;

use super::{END_MAGIC, Header, MAGIC, MAX_HEADER, PREFIX, SHARD_VERSION, align};
use crate::codec;
use crate::error::Result;
use crate::mmap::ALIGNMENT;

/// Checks all but the columns' content; returns the header and the columns' hashes.
pub(super) fn parse(bytes: &[u8], kind: &str) -> Result<(Header, Vec<u64>), String> {
    let length = bytes.len() as u64;
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

    let prefix_len = match header.columns.first() {
        Some(first) => first.offset,
        None => align((PREFIX + header_len) as u64).ok_or("overflow")?,
    };
    let end = check_layout(&header, (PREFIX + header_len) as u64, prefix_len)?;
    let trailer_len = 8 * (header.columns.len() as u64 + 4);
    match end.checked_add(trailer_len) {
        Some(expected) if expected == length => {}
        Some(expected) if expected > length => {
            return Err(format!("truncated: {length} of {expected} bytes"));
        }
        _ => return Err(format!("{length} bytes, more than the header describes")),
    }
    let hashes = check_trailer(bytes, end as usize, prefix_len as usize)?;
    // After the hashes, so that a damaged name is reported as damage.
    if header.kind != kind {
        return Err(format!("holds `{}` where `{kind}` is expected", header.kind));
    }
    Ok((header, hashes))
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

/// Checks the trailer at byte `at` and the prefix's hash; returns the columns' hashes.
fn check_trailer(bytes: &[u8], at: usize, prefix_len: usize) -> Result<Vec<u64>, String> {
    let trailer = bytes.get(at..).ok_or("truncated")?;
    let (hashed, rest) = trailer
        .len()
        .checked_sub(24)
        .and_then(|n| trailer.split_at_checked(n))
        .ok_or("truncated")?;
    if rest.get(16..) != Some(&END_MAGIC) || u64_at(rest, 8)? != bytes.len() as u64 {
        return Err("the trailer is damaged".into());
    }
    if u64_at(rest, 0)? != xxh3_64(hashed) {
        return Err("the trailer is damaged (its hash differs)".into());
    }
    if bytes.get(..prefix_len).map(xxh3_64) != Some(u64_at(hashed, 0)?) {
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
