//! Delta-encoded text (DELTA_LENGTH_BYTE_ARRAY and DELTA_BYTE_ARRAY) as the plain one.
//!
//! The decoder asks for as much memory as such a page says of itself: for 2^58 bytes, which ends the process,
//! or for as many copies of a long text as there are values. So the page is made plain before, within limits,
//! and the decoder never sees it.

use super::thrift::{Input, Stop};

/// Most texts in a page.
const MAX_TEXTS: usize = 1 << 24;

/// The lengths and the rest of the page, or why there are none.
type Lengths<'a> = Result<(Vec<u32>, &'a [u8]), String>;

/// `values` as the plain encoding has them: each behind its length, or all of `fixed` bytes. At most `values`
/// of them, and at most `limit` bytes.
pub(super) fn plain(
    bytes: &[u8],
    prefixed: bool,
    values: usize,
    fixed: Option<usize>,
    limit: usize,
) -> Result<Vec<u8>, String> {
    let most = values.min(MAX_TEXTS);
    let (prefixes, bytes) = if prefixed { lengths(bytes, most)? } else { (Vec::new(), bytes) };
    let (suffixes, mut bytes) = lengths(bytes, most)?;
    if prefixed && prefixes.len() != suffixes.len() {
        return Err("its texts have other numbers of beginnings and ends".into());
    }
    let pairs = || {
        let prefixes = prefixes.iter().chain(std::iter::repeat(&0));
        prefixes.zip(&suffixes).map(|(prefix, suffix)| (*prefix as usize, *suffix as usize))
    };
    let mut out = Vec::with_capacity(size(pairs(), bytes.len(), fixed, limit)?);
    let mut previous = 0..0;
    for (prefix, suffix) in pairs() {
        let (own, rest) = bytes.split_at_checked(suffix).unwrap_or_default();
        bytes = rest;
        if fixed.is_none() {
            out.extend(((prefix + suffix) as u32).to_le_bytes());
        }
        let start = out.len();
        out.extend_from_within(previous.start..previous.start + prefix);
        out.extend_from_slice(own);
        previous = start..out.len();
    }
    Ok(out)
}

/// Bytes of all texts by the lengths of their beginnings and ends, which are checked before anything is made of
/// them: no text begins with more than the one before has, ends are in the `left` bytes, and all of it is no more
/// than `limit`.
fn size(
    lengths: impl Iterator<Item = (usize, usize)>,
    left: usize,
    fixed: Option<usize>,
    limit: usize,
) -> Result<usize, String> {
    let (mut previous, mut ends, mut all) = (0, 0, 0);
    for (prefix, suffix) in lengths {
        if prefix > previous {
            return Err("a text begins with more than the one before has".into());
        }
        previous = prefix + suffix;
        if let Some(fixed) = fixed.filter(|fixed| *fixed != previous) {
            return Err(format!("a value of {previous} bytes, where each has {fixed}"));
        }
        (ends, all) = (ends + suffix, all + previous + 4);
    }
    if ends > left {
        return Err("its texts are longer than the page".into());
    }
    if all > limit {
        return Err(format!("its texts take {all} bytes, and the limit is {limit}"));
    }
    Ok(all)
}

/// Lengths in DELTA_BINARY_PACKED: blocks of differences, each of as few bits as its part of the block needs.
fn lengths(bytes: &[u8], most: usize) -> Lengths<'_> {
    let mut input = Input::new(bytes);
    let damaged = |_: Stop| "its lengths can't be read".to_owned();
    let mut number = || input.length().map_err(damaged);
    let [block, parts, count] = [number()?, number()?, number()?];
    if count > most {
        return Err(format!("{count} texts, where it has {most} values"));
    }
    let mut value = input.integer().map_err(damaged)? as i32;
    let part = block.checked_div(parts).filter(|part| part * parts == block && part % 8 == 0);
    let part = part.filter(|part| *part > 0).ok_or(Stop::Damaged).map_err(damaged)?;
    let mut lengths = Vec::new();
    if count > 0 {
        lengths.push(length(value)?);
    }
    while lengths.len() < count {
        let smallest = input.integer().map_err(damaged)? as i32;
        let widths = input.take(parts).map_err(damaged)?;
        for width in widths {
            let here = part.min(count - lengths.len());
            if here == 0 {
                break;
            }
            let size = (part / 8).checked_mul(usize::from(*width)).filter(|_| *width <= 32);
            let bytes = size.ok_or(Stop::Damaged).and_then(|n| input.take(n)).map_err(damaged)?;
            let mut bits = Bits { bytes, held: 0, len: 0 };
            for _ in 0..here {
                let difference = bits.next(u32::from(*width));
                value = value.wrapping_add(smallest).wrapping_add(difference as i32);
                lengths.push(length(value)?);
            }
        }
    }
    Ok((lengths, input.rest()))
}

fn length(value: i32) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("a text of {value} bytes"))
}

/// Numbers of up to 32 bits, the lowest bits first.
struct Bits<'a> {
    bytes: &'a [u8],
    held: u64,
    len: u32,
}

impl Bits<'_> {
    /// The next number; 0 behind the end.
    fn next(&mut self, width: u32) -> u32 {
        while self.len < width {
            let (first, rest) = self.bytes.split_first().unwrap_or((&0, &[]));
            self.bytes = rest;
            self.held |= u64::from(*first) << self.len;
            self.len += 8;
        }
        let value = self.held & ((1 << width) - 1);
        self.held >>= width;
        self.len -= width;
        value as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A length of 7 digits of 7 bits each, in a block whose parts say so.
    const HUGE: [u8; 14] = [0x80, 1, 4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x03, 0, 0, 0];

    #[test]
    fn s3_no_number_of_texts_is_believed() {
        let error = plain(&HUGE, false, 3, None, 1 << 20).unwrap_err();
        assert!(error.contains("texts, where it has 3 values"), "{error}");
        // 1,000 times the beginning of the text before: a block of differences of no bits.
        let lengths = |first: u8, then: u8, count: [u8; 2]| {
            [&[0x80, 8, 1][..], &count, &[first, then, 0]].concat()
        };
        let long = [b'x'; 60];
        let page = [
            // 0, then 60 each; 60, then 0 each.
            &[0x80, 8, 1, 2, 0, 120, 0][..],
            &[0x80, 8, 1, 2, 120, 119, 0],
            &long,
        ]
        .concat();
        assert_eq!(plain(&page, true, 2, None, 128).unwrap().len(), 128);
        let error = plain(&page, true, 2, None, 127).unwrap_err();
        assert!(error.contains("take 128 bytes, and the limit is 127"), "{error}");
        // Texts behind the end of the page.
        let error = plain(&lengths(120, 0, [0xe8, 7]), false, 1000, None, 1 << 20).unwrap_err();
        assert!(error.contains("longer than the page"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_texts_or_none(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            start in any::<bool>(),
            prefixed in any::<bool>(),
        ) {
            let bytes = if start { [&[0x80, 1, 4, 9][..], &bytes].concat() } else { bytes };
            let _ = plain(&bytes, prefixed, 50, None, 1 << 16);
        }
    }
}
