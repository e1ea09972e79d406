//! The footer of a Parquet file, looked at before the decoder sees it.
//!
//! The decoder trusts a list's length twice: it reserves memory for as many row groups as a list claims to
//! have (2^31 of them end the process), and it skips an unknown list of truth values by counting (2^31 of
//! them take a minute), as it reads nothing of them. So no list may claim more than the footer has bytes.
//! To see the lists that the decoder sees, the footer is read as it reads it: what a field holds is decided
//! by its number, not by the type that the file gives, so the two must agree.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::thrift::Input;
use super::thrift::Value::{self, Byte, Bytes, Double, List, Struct, Varint};

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
    Input::new(&bytes).structure(&FILE).map_err(|_| "its footer can't be read")?;
    Ok(bytes)
}

// The structures of the format (parquet.thrift), as far as the decoder reads them: the numbers of their
// fields and what these hold. It skips all others by the types that the file gives, and so do we.

static FILE: [(i64, Value); 7] = [
    (1, Varint),
    (2, List(&Struct(&SCHEMA_ELEMENT))),
    (3, Varint),
    (4, List(&Struct(&ROW_GROUP))),
    (5, List(&Struct(&KEY_VALUE))),
    (6, Bytes),
    (7, List(&Struct(&EMPTY_UNION))),
];

static SCHEMA_ELEMENT: [(i64, Value); 10] = [
    (1, Varint),
    (2, Varint),
    (3, Varint),
    (4, Bytes),
    (5, Varint),
    (6, Varint),
    (7, Varint),
    (8, Varint),
    (9, Varint),
    (10, Struct(&LOGICAL_TYPE)),
];

static LOGICAL_TYPE: [(i64, Value); 17] = [
    (1, Struct(&[])),
    (2, Struct(&[])),
    (3, Struct(&[])),
    (4, Struct(&[])),
    (5, Struct(&[(1, Varint), (2, Varint)])),
    (6, Struct(&[])),
    (7, Struct(&TIME)),
    (8, Struct(&TIME)),
    (10, Struct(&[(1, Byte)])),
    (11, Struct(&[])),
    (12, Struct(&[])),
    (13, Struct(&[])),
    (14, Struct(&[])),
    (15, Struct(&[])),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Bytes)])),
    (18, Struct(&[(1, Bytes), (2, Varint)])),
];

/// Of a time or time stamp: whether it is UTC, and its unit.
static TIME: [(i64, Value); 1] = [(2, Struct(&EMPTY_UNION))];

/// One of some structures without fields.
static EMPTY_UNION: [(i64, Value); 3] = [(1, Struct(&[])), (2, Struct(&[])), (3, Struct(&[]))];

static KEY_VALUE: [(i64, Value); 2] = [(1, Bytes), (2, Bytes)];

static ROW_GROUP: [(i64, Value); 6] = [
    (1, List(&Struct(&COLUMN_CHUNK))),
    (2, Varint),
    (3, Varint),
    (4, List(&Struct(&[(1, Varint)]))),
    (5, Varint),
    (7, Varint),
];

static COLUMN_CHUNK: [(i64, Value); 7] = [
    (1, Bytes),
    (2, Varint),
    (3, Struct(&COLUMN)),
    (4, Varint),
    (5, Varint),
    (6, Varint),
    (7, Varint),
];

static COLUMN: [(i64, Value); 15] = [
    (1, Varint),
    (2, List(&Varint)),
    (4, Varint),
    (5, Varint),
    (6, Varint),
    (7, Varint),
    (9, Varint),
    (10, Varint),
    (11, Varint),
    (12, Struct(&STATISTICS)),
    (13, List(&Struct(&[(1, Varint), (2, Varint), (3, Varint)]))),
    (14, Varint),
    (15, Varint),
    (16, Struct(&[(1, Varint), (2, List(&Varint)), (3, List(&Varint))])),
    (17, Struct(&[(1, Struct(&BOX)), (2, List(&Varint))])),
];

static STATISTICS: [(i64, Value); 6] =
    [(1, Bytes), (2, Bytes), (3, Varint), (4, Varint), (5, Bytes), (6, Bytes)];

static BOX: [(i64, Value); 8] = [
    (1, Double),
    (2, Double),
    (3, Double),
    (4, Double),
    (5, Double),
    (6, Double),
    (7, Double),
    (8, Double),
];
