//! S-1: shards round-trip, and nothing but what the writer writes is read.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use reclora_storage::codec::encode;
use reclora_storage::mmap::Access;
use reclora_storage::shard::{Column, MAX_HEADER, SHARD_VERSION, Shard, write_shard};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

/// The format's header, written here a second time so that any header can be forged.
#[derive(Serialize)]
struct Header {
    kind: String,
    columns: Vec<ColumnHeader>,
}

#[derive(Clone, Serialize)]
struct ColumnHeader {
    name: String,
    dtype: DType,
    offset: u64,
    rows: u64,
}

#[derive(Clone, Copy, Serialize)]
#[allow(dead_code, reason = "all types of the format; not each is written here")]
enum DType {
    U8,
    U16,
    U32,
    U64,
    I64,
    F32,
}

fn column(name: &str, dtype: DType, offset: u64, rows: u64) -> ColumnHeader {
    ColumnHeader { name: name.into(), dtype, offset, rows }
}

fn header(columns: &[ColumnHeader]) -> Vec<u8> {
    encode(&Header { kind: "k".into(), columns: columns.to_vec() }).unwrap()
}

/// A shard with any header and body, and correct hashes all over.
fn forge(encoded: &[u8], columns: usize, body: &[u8]) -> Vec<u8> {
    forge_with(SHARD_VERSION, encoded.len() as u32, encoded, columns, body)
}

fn forge_with(version: u32, len: u32, encoded: &[u8], columns: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"RCLSHARD".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(encoded);
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    let mut trailer = xxh3_64(&bytes).to_le_bytes().to_vec();
    for _ in 0..columns {
        trailer.extend(xxh3_64(body).to_le_bytes());
    }
    trailer.extend(xxh3_64(&trailer).to_le_bytes());
    bytes.extend(body);
    let length = (bytes.len() + trailer.len() + 16) as u64;
    bytes.extend(trailer);
    bytes.extend(length.to_le_bytes());
    bytes.extend(b"DRAHSLCR");
    bytes
}

fn open_bytes(bytes: &[u8]) -> Result<Shard, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("forged.shard");
    std::fs::write(&path, bytes).unwrap();
    let result = Shard::open(&path, "k");
    result.and_then(|s| s.verify().map(|()| s)).map_err(|e| {
        let text = e.to_string();
        assert!(text.contains("forged.shard"), "{text}");
        text
    })
}

#[track_caller]
fn refused(bytes: &[u8], words: &str) {
    let error = open_bytes(bytes).map(|_| ()).unwrap_err();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

fn small(dir: &Path) -> PathBuf {
    let path = dir.join("small.shard");
    let columns = [
        ("a", Column::U8(&[1, 2, 3][..])),
        ("b", Column::U32(&[4, 5, 6, 7])),
        ("empty", Column::I64(&[])),
        ("c", Column::F32(&[1.5, f32::NAN])),
    ];
    write_shard(&path, "k", &columns).unwrap();
    path
}

#[test]
fn every_type_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let columns = [
        ("u8", Column::U8(&[1, 255][..])),
        ("u16", Column::U16(&[1, u16::MAX])),
        ("u32", Column::U32(&[1, u32::MAX])),
        ("u64", Column::U64(&[1, u64::MAX])),
        ("i64", Column::I64(&[i64::MIN, i64::MAX])),
        ("f32", Column::F32(&[-0.0, f32::INFINITY])),
    ];
    write_shard(&path, "all types", &columns).unwrap();
    for access in [Access::Automatic, Access::Map, Access::Read] {
        let shard = Shard::open_with(&path, "all types", access).unwrap();
        shard.verify().unwrap();
        assert_eq!(shard.u8("u8").unwrap(), [1, 255]);
        assert_eq!(shard.u16("u16").unwrap(), [1, u16::MAX]);
        assert_eq!(shard.u32("u32").unwrap(), [1, u32::MAX]);
        assert_eq!(shard.u64("u64").unwrap(), [1, u64::MAX]);
        assert_eq!(shard.i64("i64").unwrap(), [i64::MIN, i64::MAX]);
        assert_eq!(shard.f32("f32").unwrap(), [-0.0, f32::INFINITY]);
        assert_eq!(shard.path(), path);
        for error in [shard.u8("none").unwrap_err(), shard.u8("u16").unwrap_err()] {
            assert!(error.to_string().contains("no column"), "{error}");
        }
    }
}

#[test]
fn the_writer_writes_what_the_forger_forges() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    write_shard(&path, "k", &[("a", Column::U8(&[7; 64][..]))]).unwrap();
    let forged = forge(&header(&[column("a", DType::U8, 64, 64)]), 1, &[7; 64]);
    assert_eq!(std::fs::read(&path).unwrap(), forged);
    assert_eq!(open_bytes(&forged).unwrap().u8("a").unwrap(), [7; 64]);
}

#[test]
fn no_columns_and_many_columns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    write_shard(&path, "k", &[]).unwrap();
    Shard::open(&path, "k").unwrap().verify().unwrap();
    let names: Vec<String> = (0..500).map(|i| format!("column {i}")).collect();
    let values: Vec<u16> = (0..500).collect();
    let columns: Vec<(&str, Column<'_>)> =
        names.iter().map(|n| (n.as_str(), Column::U16(&values))).collect();
    write_shard(&path, "k", &columns).unwrap();
    let shard = Shard::open(&path, "k").unwrap();
    shard.verify().unwrap();
    assert_eq!(shard.u16("column 499").unwrap(), values);
}

#[test]
fn bad_input_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let a = Column::U8(&[]);
    let error = write_shard(&path, "k", &[("a", a), ("a", a)]).unwrap_err().to_string();
    assert!(error.contains("two columns"), "{error}");
    let long = "x".repeat(MAX_HEADER);
    assert!(write_shard(&path, "k", &[(&long, a)]).unwrap_err().to_string().contains("header"));
    assert!(!path.exists());
}

#[test]
fn s1_every_changed_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = small(dir.path());
    let good = std::fs::read(&path).unwrap();
    let damaged = dir.path().join("damaged.shard");
    for at in 0..good.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            std::fs::write(&damaged, &bytes).unwrap();
            for access in [Access::Map, Access::Read] {
                let result = Shard::open_with(&damaged, "k", access).and_then(|s| s.verify());
                assert!(result.is_err(), "byte {at} ^ {change:#x} was not noticed");
            }
        }
    }
}

#[test]
fn s1_every_truncation_and_every_longer_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read(small(dir.path())).unwrap();
    open_bytes(&good).unwrap();
    for len in 0..good.len() {
        assert!(open_bytes(&good[..len]).is_err(), "{len} bytes were accepted");
    }
    let mut longer = good.clone();
    longer.push(0);
    refused(&longer, "more than the header describes");
    refused(&[&good[..], &good[..]].concat(), "more than the header describes");
    refused(&good[..good.len() - 1], "truncated");
}

#[test]
fn missing_empty_and_foreign_files() {
    let dir = tempfile::tempdir().unwrap();
    let error = Shard::open(&dir.path().join("none"), "k").unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
    assert!(Shard::open(dir.path(), "k").is_err());
    refused(b"", "not a reclora shard");
    refused(b"RCLSHAR", "not a reclora shard");
    refused(b"PAR1 and then some more bytes that are no shard", "not a reclora shard");
    refused(b"RCLSHARD", "truncated");
}

#[test]
fn other_versions_and_kinds() {
    let one = header(&[column("a", DType::U8, 64, 64)]);
    let other = forge_with(2, one.len() as u32, &one, 1, &[0; 64]);
    refused(&other, "version 2; this build reads version 1");
    let dir = tempfile::tempdir().unwrap();
    let path = small(dir.path());
    let error = Shard::open(&path, "lens").unwrap_err().to_string();
    assert!(error.contains("holds `k` where `lens` is expected"), "{error}");
}

#[test]
fn headers_too_large_or_unreadable() {
    let one = header(&[column("a", DType::U8, 64, 64)]);
    refused(&forge_with(1, u32::MAX, &one, 1, &[0; 64]), "a header of 4294967295 bytes");
    refused(&forge_with(1, 60_000, &one, 1, &[0; 64]), "truncated inside the header");
    refused(&forge_with(1, one.len() as u32 - 1, &one, 1, &[0; 64]), "unreadable header");
    refused(&forge_with(1, one.len() as u32 + 1, &one, 1, &[0; 64]), "left over");
    refused(&forge(&[0xff; 32], 1, &[0; 64]), "unreadable header");
    // A column list that claims 2^64 - 1 entries, and a kind of 2^60 bytes.
    let claim = |n: u64| [&[253][..], &n.to_le_bytes()].concat();
    refused(&forge(&[&[1, b'k'][..], &claim(u64::MAX)].concat(), 0, &[]), "unreadable header");
    refused(&forge(&claim(1 << 60), 0, &[]), "unreadable header");
}

#[test]
fn columns_overlapping_misaligned_or_out_of_bounds() {
    let two = |offset, rows| {
        let columns = [column("a", DType::U8, 64, 64), column("b", DType::U64, offset, rows)];
        forge(&header(&columns), 2, &[0; 128])
    };
    refused(&two(64, 8), "overlaps");
    refused(&two(192, 8), "gap");
    refused(&two(0, 8), "overlaps");
    refused(&two(129, 8), "misaligned");
    refused(&two(u64::MAX - 63, 8), "overlaps the one before or leaves a gap");
    refused(&two(128, u64::MAX), "overflows");
    refused(&two(128, u64::MAX / 8), "overflows");
    refused(&two(128, 1 << 50), "truncated");
    refused(&two(128, 9), "truncated");
    let first = |offset| forge(&header(&[column("a", DType::U8, offset, 64)]), 1, &[0; 64]);
    refused(&first(0), "overlaps the header");
    refused(&first(65), "misaligned");
    refused(&first(1 << 40), "leaves a gap");
    refused(&first(u64::MAX), "leaves a gap");
    let same = [column("a", DType::U8, 64, 64), column("a", DType::U8, 128, 64)];
    refused(&forge(&header(&same), 2, &[0; 128]), "two columns are named `a`");
}

/// A column of any type with random rows.
#[derive(Clone, Debug)]
enum Owned {
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<u32>),
}

fn any_column() -> impl Strategy<Value = Owned> {
    fn rows<T: Arbitrary + 'static>() -> impl Strategy<Value = Vec<T>> {
        proptest::collection::vec(any::<T>(), 0..80)
    }
    prop_oneof![
        rows().prop_map(Owned::U8),
        rows().prop_map(Owned::U16),
        rows().prop_map(Owned::U32),
        rows().prop_map(Owned::U64),
        rows().prop_map(Owned::I64),
        rows().prop_map(Owned::F32),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_columns_round_trip(columns in proptest::collection::vec(any_column(), 0..6)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let floats = |bits: &[u32]| bits.iter().map(|b| f32::from_bits(*b)).collect::<Vec<_>>();
        let float_columns: Vec<Vec<f32>> = columns
            .iter()
            .map(|c| if let Owned::F32(bits) = c { floats(bits) } else { Vec::new() })
            .collect();
        let names: Vec<String> = (0..columns.len()).map(|i| format!("ç{i}")).collect();
        let given: Vec<(&str, Column<'_>)> = (0..columns.len())
            .map(|i| (names[i].as_str(), match &columns[i] {
                Owned::U8(v) => Column::U8(v),
                Owned::U16(v) => Column::U16(v),
                Owned::U32(v) => Column::U32(v),
                Owned::U64(v) => Column::U64(v),
                Owned::I64(v) => Column::I64(v),
                Owned::F32(_) => Column::F32(&float_columns[i]),
            }))
            .collect();
        write_shard(&path, "random", &given).unwrap();
        let shard = Shard::open(&path, "random").unwrap();
        shard.verify().unwrap();
        for (name, column) in names.iter().zip(&columns) {
            match column {
                Owned::U8(v) => prop_assert_eq!(shard.u8(name).unwrap(), v),
                Owned::U16(v) => prop_assert_eq!(shard.u16(name).unwrap(), v),
                Owned::U32(v) => prop_assert_eq!(shard.u32(name).unwrap(), v),
                Owned::U64(v) => prop_assert_eq!(shard.u64(name).unwrap(), v),
                Owned::I64(v) => prop_assert_eq!(shard.i64(name).unwrap(), v),
                Owned::F32(v) => {
                    let bits: Vec<u32> = shard.f32(name).unwrap().iter().map(|f| f.to_bits()).collect();
                    prop_assert_eq!(&bits, v);
                }
            }
        }
    }

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), magic: bool) {
        let start: &[u8] = if magic { b"RCLSHARD\x01\0\0\0" } else { b"" };
        prop_assert!(open_bytes(&[start, &bytes].concat()).is_err());
    }

    #[test]
    fn random_headers_with_correct_hashes_never_panic(
        columns in proptest::collection::vec((any::<u64>(), any::<u64>(), 0_u64..4, 0_u64..40), 0..4),
        body in 0_usize..4,
    ) {
        let columns: Vec<ColumnHeader> = columns
            .into_iter()
            .enumerate()
            .map(|(i, (offset, rows, near, few))| {
                let small = offset % 3 != 0;
                let offset = if small { near * 64 } else { offset };
                column(&i.to_string(), DType::U16, offset, if small { few } else { rows })
            })
            .collect();
        let body = vec![0; body * 64];
        if let Ok(shard) = open_bytes(&forge(&header(&columns), columns.len(), &body)) {
            for c in &columns {
                prop_assert_eq!(shard.u16(&c.name).unwrap().len() as u64, c.rows);
            }
        }
    }
}
