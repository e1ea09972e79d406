//! The footer of a Parquet file, looked at before the decoder sees it.
//!
//! The decoder trusts a list's length twice: it reserves memory for as many row groups as a list claims to
//! have (2^31 of them end the process), and it skips an unknown list of truth values by counting (2^31 of
//! them take a minute), as it reads nothing of them. So no list may claim more than the footer has bytes.
//! To see the lists that the decoder sees, the footer is read as it reads it: what a field holds is decided
//! by its number, not by the type that the file gives, so the two must agree.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::thrift::Value::{Byte, Bytes, Double, List, Struct, Varint};
use super::thrift::{Fields, Input};

/// Length of the footer, and the format's magic.
const TAIL: u64 = 8;

/// The footer of a file of `size` bytes.
pub(super) fn read(file: &File, size: u64) -> Result<Vec<u8>, String> {
    let read =
        |bytes: &mut [u8], at| file.read_exact_at(bytes, at).map_err(|error| error.to_string());
    let mut tail = [0; TAIL as usize];
    let Some(end) = size.checked_sub(TAIL) else { return Err("is too short".into()) };
    read(&mut tail, end)?;
    let [a, b, c, d, magic @ ..] = tail;
    match &magic {
        b"PAR1" => {}
        b"PARE" => return Err("is encrypted, which can't be read".into()),
        _ => return Err("does not end as Parquet does".into()),
    }
    let len = u32::from_le_bytes([a, b, c, d]);
    let Some(start) = end.checked_sub(u64::from(len)) else {
        return Err(format!("its footer claims {len} bytes"));
    };
    let mut bytes = vec![0; len as usize];
    read(&mut bytes, start)?;
    Input::new(&bytes).structure(FILE).map_err(|_| "its footer can't be read")?;
    Ok(bytes)
}

// The structures of the format (parquet.thrift), as far as the decoder reads them: the numbers of their
// fields and what these hold. It skips all others by the types that the file gives, and so do we.

const FILE: Fields = &[
    (&[1, 3], Varint),
    (&[2], List(&Struct(SCHEMA_ELEMENT))),
    (&[4], List(&Struct(ROW_GROUP))),
    (&[5], List(&Struct(KEY_VALUE))),
    (&[6], Bytes),
    (&[7], List(&Struct(EMPTY_UNION))),
];

const SCHEMA_ELEMENT: Fields =
    &[(&[1, 2, 3, 5, 6, 7, 8, 9], Varint), (&[4], Bytes), (&[10], Struct(LOGICAL_TYPE))];

const LOGICAL_TYPE: Fields = &[
    (&[1, 2, 3, 4, 6, 11, 12, 13, 14, 15], Struct(&[])),
    (&[5], Struct(&[(&[1, 2], Varint)])),
    (&[7, 8], Struct(TIME)),
    (&[10, 16], Struct(&[(&[1], Byte)])),
    (&[17], Struct(&[(&[1], Bytes)])),
    (&[18], Struct(&[(&[1], Bytes), (&[2], Varint)])),
];

/// Of a time or time stamp: whether it is UTC, and its unit.
const TIME: Fields = &[(&[2], Struct(EMPTY_UNION))];

/// One of some structures without fields.
const EMPTY_UNION: Fields = &[(&[1, 2, 3], Struct(&[]))];

const KEY_VALUE: Fields = &[(&[1, 2], Bytes)];

const ROW_GROUP: Fields = &[
    (&[1], List(&Struct(COLUMN_CHUNK))),
    (&[2, 3, 5, 7], Varint),
    (&[4], List(&Struct(&[(&[1], Varint)]))),
];

const COLUMN_CHUNK: Fields = &[(&[1], Bytes), (&[2, 4, 5, 6, 7], Varint), (&[3], Struct(COLUMN))];

const COLUMN: Fields = &[
    (&[1, 4, 5, 6, 7, 9, 10, 11, 14, 15], Varint),
    (&[2], List(&Varint)),
    (&[12], Struct(STATISTICS)),
    (&[13], List(&Struct(&[(&[1, 2, 3], Varint)]))),
    (&[16], Struct(&[(&[1], Varint), (&[2, 3], List(&Varint))])),
    (&[17], Struct(&[(&[1], Struct(BOX)), (&[2], List(&Varint))])),
];

const STATISTICS: Fields = &[(&[1, 2, 5, 6], Bytes), (&[3, 4], Varint)];

const BOX: Fields = &[(&[1, 2, 3, 4, 5, 6, 7, 8], Double)];
