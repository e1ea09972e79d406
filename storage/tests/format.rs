//! FORMAT.md is enough to write a reader: this one was written from it, and knows nothing of the crate.

use std::path::Path;

use crate::common;
use reclora_storage::dataset::{self, Dataset};
use reclora_storage::protocol;
use reclora_storage::raw::DatasetFormat;
use reclora_storage::shard::{Column, write_shard};
use xxhash_rust::xxh3::xxh3_64;

/// A committed file with a column of every type.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/every_type.shard");

/// What FORMAT.md says a shard is.
struct Reader {
    kind: String,
    columns: Vec<(String, u64, Vec<u8>)>,
}

/// The header's bytes that are not read yet.
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn bytes(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn number(&mut self) -> u64 {
        let wide = match self.bytes(1)[0] {
            small @ 0..251 => return small.into(),
            251 => 2,
            252 => 4,
            253 => 8,
            other => panic!("no number starts with {other}"),
        };
        little(self.bytes(wide))
    }

    fn string(&mut self) -> String {
        let length = self.number() as usize;
        String::from_utf8(self.bytes(length).to_vec()).unwrap()
    }
}

fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn align(offset: usize) -> usize {
    offset.div_ceil(64) * 64
}

impl Reader {
    /// Reads a whole shard and checks every hash of it.
    fn read(file: &[u8]) -> Self {
        assert_eq!(&file[..8], b"RCLSHARD");
        assert_eq!(little(&file[8..12]), 1);
        let header_end = 16 + little(&file[12..16]) as usize;
        let mut header = Header(&file[16..header_end]);
        let kind = header.string();
        let (mut columns, mut hashes) = (Vec::new(), Vec::new());
        let mut end = align(header_end);
        for index in 0..header.number() {
            let (name, kind) = (header.string(), header.number());
            let (offset, rows) = (header.number() as usize, header.number() as usize);
            if index == 0 {
                assert!(offset == end || offset == end + 64, "{offset}");
            } else {
                assert_eq!(offset, end);
            }
            if index == 0 {
                hashes.push(xxh3_64(&file[..offset]));
            }
            let size = [1, 2, 4, 8, 8, 4][kind as usize];
            end = align(offset + rows * size);
            hashes.push(xxh3_64(&file[offset..end]));
            columns.push((name, kind, file[offset..offset + rows * size].to_vec()));
        }
        assert!(header.0.is_empty());
        if hashes.is_empty() {
            hashes.push(xxh3_64(&file[..end]));
        }
        let trailer = &file[end..];
        assert_eq!(trailer.len(), 8 * (columns.len() + 4));
        let (hashed, rest) = trailer.split_at(hashes.len() * 8);
        assert!(hashed.chunks(8).map(little).eq(hashes));
        assert_eq!(little(&rest[..8]), xxh3_64(hashed));
        assert_eq!(little(&rest[8..16]), file.len() as u64);
        assert_eq!(&rest[16..], b"DRAHSLCR");
        Self { kind, columns }
    }

    /// A column of unsigned numbers, by its name and the number of its type.
    fn numbers(&self, name: &str, kind: u64) -> Vec<u64> {
        let found = self.columns.iter().find(|column| column.0 == name);
        let (_, found_kind, bytes) = found.unwrap_or_else(|| panic!("no column {name}"));
        assert_eq!(*found_kind, kind, "{name}");
        bytes.chunks([1, 2, 4, 8, 8, 4][kind as usize]).map(little).collect()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.numbers(name, 0).into_iter().map(|byte| byte as u8).collect()
    }

    fn strings(&self, name: &str) -> Vec<String> {
        let bytes = self.bytes(&format!("{name}.bytes"));
        let offsets = self.numbers(&format!("{name}.offsets"), 3);
        let row = |pair: &[u64]| bytes[pair[0] as usize..pair[1] as usize].to_vec();
        offsets.windows(2).map(|pair| String::from_utf8(row(pair)).unwrap()).collect()
    }
}

/// What the golden file holds.
fn write_golden(path: &Path) {
    let columns = [
        ("bytes", Column::U8(b"golden")),
        ("u16", Column::U16(&[0, 1, u16::MAX])),
        ("größe", Column::U32(&[7, u32::MAX])),
        ("u64", Column::U64(&[u64::MAX, 251])),
        ("i64", Column::I64(&[-2, i64::MIN])),
        ("f32", Column::F32(&[1.5, -0.0, f32::NEG_INFINITY])),
        ("empty", Column::U8(&[])),
        // 65 values: longer than one unit of alignment, and a row count of one byte.
        ("long", Column::U8(&[3; 65])),
    ];
    write_shard(path, "golden", &columns).unwrap();
}

#[test]
fn the_golden_file_is_read_and_written_byte_for_byte() {
    let golden = std::fs::read(GOLDEN).unwrap();
    let reader = Reader::read(&golden);
    assert_eq!(reader.kind, "golden");
    let names: Vec<&str> = reader.columns.iter().map(|column| column.0.as_str()).collect();
    assert_eq!(names, ["bytes", "u16", "größe", "u64", "i64", "f32", "empty", "long"]);
    assert_eq!(reader.bytes("bytes"), b"golden");
    assert_eq!(reader.numbers("u16", 1), [0, 1, 65535]);
    assert_eq!(reader.numbers("größe", 2), [7, 4_294_967_295]);
    assert_eq!(reader.numbers("u64", 3), [u64::MAX, 251]);
    assert_eq!(reader.numbers("i64", 4), [u64::MAX - 1, 1 << 63]);
    assert_eq!(reader.numbers("f32", 5), [0x3fc0_0000, 0x8000_0000, 0xff80_0000]);
    assert!(reader.bytes("empty").is_empty());
    assert_eq!(reader.bytes("long"), [3; 65]);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("again.shard");
    write_golden(&path);
    assert!(std::fs::read(&path).unwrap() == golden, "the writer writes other bytes");
}

#[test]
fn shards_of_every_header_length_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.shard");
    for columns in (0..40).chain([300]) {
        let names: Vec<String> = (0..columns).map(|i| format!("c{i}")).collect();
        let values = vec![columns as u16; columns];
        let given: Vec<_> = names.iter().map(|n| (n.as_str(), Column::U16(&values))).collect();
        write_shard(&path, "k", &given).unwrap();
        let reader = Reader::read(&std::fs::read(&path).unwrap());
        assert_eq!(reader.columns.len(), columns);
        for name in names {
            assert_eq!(reader.numbers(&name, 1), vec![columns as u64; columns]);
        }
    }
}

#[test]
fn a_dataset_is_read_from_the_text_alone() {
    let tables = common::movietweetings().read(DatasetFormat::Movietweetings).unwrap();
    let prepared = protocol::prepare(&tables, &common::config(1, 1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    dataset::write(&prepared, "small", dir.path()).unwrap();
    let known = Dataset::open(dir.path()).unwrap();
    let reader = Reader::read(&std::fs::read(dir.path().join("dataset.shard")).unwrap());
    assert_eq!(reader.kind, "dataset");
    let schema: serde_json::Value = serde_json::from_slice(&reader.bytes("schema")).unwrap();
    assert_eq!((&schema["version"], &schema["name"]), (&2.into(), &"small".into()));
    let first_time = schema["first_time"].as_i64().unwrap();

    let (offsets, items) = (reader.numbers("user_offsets", 3), reader.numbers("item", 2));
    let (ratings, times) = (reader.numbers("rating", 0), reader.numbers("timestamp", 2));
    let rows = reader.numbers("sample", 2);
    assert_eq!(rows.len() as u64, known.num_samples());
    assert!(!rows.is_empty());
    for (index, row) in rows.iter().enumerate() {
        let user = offsets.iter().rposition(|start| start <= row).unwrap();
        let (start, row) = (offsets[user], *row as usize);
        let sample = known.sample(index as u64).unwrap();
        assert_eq!((sample.user, sample.item), (user as u32, items[row] as u32));
        assert_eq!(u64::from(sample.position), row as u64 - start);
        let time = first_time + times[row] as i64;
        assert_eq!((sample.rating, sample.timestamp), (ratings[row] as u8, time));
        assert_eq!(schema["likes"][ratings[row] as usize], sample.label);
        let history: Vec<u32> =
            items[start as usize..row].iter().map(|item| *item as u32).collect();
        assert_eq!(known.history(sample.user, sample.position).items, history);
    }
    let (keys, titles) = (reader.strings("item.key"), reader.strings("item.text0"));
    assert_eq!(schema["item_texts"][0], "title");
    for (item, (key, title)) in keys.iter().zip(&titles).enumerate() {
        assert_eq!(known.item_key(item as u32), key);
        assert_eq!(known.item_text(item as u32, "title").unwrap(), title);
    }
    let by_key = reader.numbers("item.by_key", 2);
    assert!(by_key.windows(2).all(|w| keys[w[0] as usize] < keys[w[1] as usize]));
}
