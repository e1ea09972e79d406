//! Writes what the fuzzers begin with: small whole files of every kind, into `corpus/TARGET/`.

#[allow(dead_code, reason = "the tests of storage use the rest")]
#[path = "../../storage/tests/common/mod.rs"]
mod common;
#[path = "../../trainer/tests/gguf_file/mod.rs"]
mod gguf_file;
#[path = "../../trainer/tests/tiny/mod.rs"]
mod tiny;

use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use reclora_comm::Solo;
use reclora_fuzz::{as_piece, backbone};
use reclora_storage::codec::encode;
use reclora_storage::manifest::StageDir;
use reclora_storage::shard::{Column, write_shard};
use reclora_storage::{dataset, protocol};
use reclora_trainer::adapter::Adapter;
use reclora_trainer::config::{AdapterConfig, CrmConfig};
use reclora_trainer::crm::{Crm, CrmShape};
use reclora_trainer::parameters::TableShare;
use reclora_trainer::training::checkpoint::{self, Layout, TrainState};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    shards(dir)?;
    datasets(dir)?;
    manifests(dir)?;
    raw()?;
    parquet()?;
    models(dir)?;
    parameters(dir)?;
    checkpoints(dir)?;
    messages()
}

/// A seed: the byte that chooses the variant, then the content.
fn put(target: &str, name: &str, variant: u8, content: &[u8]) -> Outcome<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&dir)?;
    Ok(std::fs::write(dir.join(name), [&[variant], content].concat())?)
}

fn shards(dir: &Path) -> Outcome<()> {
    let path = dir.join("x.shard");
    let two = [("a", Column::U8(&[7; 64])), ("b", Column::U64(&[1, 2]))];
    for (name, columns) in [("none", &two[..0]), ("one", &two[..1]), ("two", &two[..])] {
        write_shard(&path, "k", columns)?;
        let bytes = std::fs::read(&path)?;
        put("shard", name, 0, &bytes)?;
        let length = u32::from_le_bytes(bytes[12..16].try_into()?) as usize;
        let (header, columns) = (&bytes[16..16 + length], columns.len());
        let body = &bytes[64..bytes.len() - 8 * (columns + 4)];
        let content = [&as_piece(header)[..], body].concat();
        put("shard", &format!("{name}-content"), 1 + 2 * columns as u8, &content)?;
    }
    Ok(())
}

fn datasets(dir: &Path) -> Outcome<()> {
    let tables =
        common::movietweetings().read(reclora_storage::raw::DatasetFormat::Movietweetings)?;
    dataset::write(&protocol::prepare(&tables, &common::config(1, 0))?, "seed", dir)?;
    let shard = reclora_storage::shard::Shard::open(&dir.join(dataset::FILE), dataset::KIND)?;
    let mut content = Vec::new();
    for (name, kind) in reclora_fuzz::DATASET_COLUMNS {
        let bytes = match kind {
            1 => shard.u8(name)?.to_vec(),
            4 => shard.u32(name)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            _ => shard.u64(name)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        content.extend(as_piece(&bytes));
    }
    put("dataset", "small", 0, &content)
}

fn manifests(dir: &Path) -> Outcome<()> {
    let stage = StageDir::new(dir.join("stage"), "prepare", "f");
    stage.prepare()?;
    std::fs::write(stage.path().join("a"), "a")?;
    stage.complete(
        [("rows".to_owned(), 3)].into(),
        [("x".to_owned(), "y".to_owned())].into(),
        1.5,
    )?;
    put("manifest", "small", 0, &std::fs::read(stage.path().join("manifest.json"))?)?;
    let nested = vec![("text".to_owned(), Some(vec![1.5_f32]), [("k".to_owned(), 300_u64)])];
    put(
        "codec",
        "nested",
        0,
        &encode(
            &nested
                .into_iter()
                .map(|(a, b, c)| (a, b, std::collections::BTreeMap::from(c)))
                .collect::<Vec<_>>(),
        )?,
    )?;
    put("codec", "numbers", 0, &encode(&[1_u64, 251, 70_000, u64::MAX].to_vec())?)
}

fn raw() -> Outcome<()> {
    let names: [&[&str]; 4] = [
        &["movies.dat", "ratings.dat"],
        &["u.item", "u.user", "u.data"],
        &["movies.dat", "users.dat", "ratings.dat"],
        &["movies.csv", "ratings.csv"],
    ];
    for (variant, (names, (_, files))) in names.iter().zip(common::every_format()).enumerate() {
        let (mut plain, mut packed) = (Vec::new(), Vec::new());
        for name in *names {
            let bytes = std::fs::read(files.path().join(name))?;
            plain.extend(as_piece(&bytes));
            packed.extend(as_piece(&files.put_gz("x.gz", &bytes)));
        }
        put("raw", &format!("{variant}-plain"), variant as u8, &plain)?;
        put("raw", &format!("{variant}-gz"), variant as u8 | 0x38, &packed)?;
    }
    let files = common::movielens_10m();
    let names = ["movies.dat", "ratings.dat"];
    let pieces = names.map(|name| std::fs::read(files.path().join(name)).map(|b| as_piece(&b)));
    put("raw", "movielens-10m", 6, &pieces.into_iter().collect::<Result<Vec<_>, _>>()?.concat())?;
    csv()
}

/// CSV: a time of each kind, rows without a value, and an item rated twice.
fn csv() -> Outcome<()> {
    let times: [(&str, u8, &[&str]); 5] = [
        ("s", 0, &["1600004773", "1600004773.25", "-1.0", "1600086400400"]),
        ("ms", 1, &["1600004773250", "1600004773250.5"]),
        ("us", 2, &["1600004773250125"]),
        ("ns", 3, &["1600004773250125001"]),
        (
            "iso8601",
            4,
            &[
                "2020-09-13 13:46:13 UTC",
                "2020-09-13T13:46:13.25Z",
                "2020/09/13 06:46:13.000 -07:00",
                "20200913t134613,5z",
                "2020-09-13",
            ],
        ),
    ];
    for (name, settings, times) in times {
        let mut text = "user,item,rating,timestamp\n".to_owned();
        for (i, time) in times.iter().enumerate() {
            text += &format!(
                "u,{i},{i}.5,{time}\nv,a,NULL,{time}\nv,b,1,\nw,a,3,{time}\nw,a,2,{time}\n"
            );
        }
        // Refusing and dropping, keeping the first and the last.
        for (kept, variant) in [("refuse", 7), ("first", 7 | 1 << 6), ("last", 7 | 2 << 6)] {
            let dropping = if variant == 7 { settings } else { settings | 8 | 16 | 64 };
            let content = [&[dropping][..], &as_piece(text.as_bytes())].concat();
            put("raw", &format!("csv-{name}-{kept}"), variant, &content)?;
        }
    }
    Ok(())
}

/// Files as other tools write them, in every compression and of every type; and small ones with pages of both
/// versions, with dictionaries and without, and with nulls.
fn parquet() -> Outcome<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/parquet");
    std::fs::create_dir_all(&corpus)?;
    for entry in
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../storage/tests/peer"))?
    {
        let path = entry?.path();
        if let Some(name) =
            path.file_name().filter(|_| path.extension().is_some_and(|e| e == "parquet"))
        {
            std::fs::copy(&path, corpus.join(name))?;
        }
    }
    let schema = "message ratings { required binary user (UTF8); optional int64 item; \
                  required double rating; required int32 timestamp; }";
    let schema = Arc::new(parse_message_type(schema)?);
    let codecs = [
        ("plain", Compression::UNCOMPRESSED),
        ("snappy", Compression::SNAPPY),
        ("gzip", Compression::GZIP(Default::default())),
    ];
    for (name, codec) in codecs {
        for (version, dictionary) in [
            (WriterVersion::PARQUET_1_0, true),
            (WriterVersion::PARQUET_1_0, false),
            (WriterVersion::PARQUET_2_0, true),
            (WriterVersion::PARQUET_2_0, false),
        ] {
            let properties = WriterProperties::builder()
                .set_compression(codec)
                .set_writer_version(version)
                .set_dictionary_enabled(dictionary)
                .build();
            let mut bytes = Vec::new();
            let mut writer =
                SerializedFileWriter::new(&mut bytes, Arc::clone(&schema), properties.into())?;
            let mut group = writer.next_row_group()?;
            let mut column = 0;
            while let Some(mut out) = group.next_column()? {
                let users =
                    ["u", "v", "u", "w"].map(|user| ByteArray::from(user.as_bytes().to_vec()));
                match column {
                    0 => out.typed::<ByteArrayType>().write_batch(&users, None, None)?,
                    1 => out.typed::<Int64Type>().write_batch(
                        &[7, 8, 9],
                        Some(&[1, 1, 0, 1]),
                        None,
                    )?,
                    2 => {
                        out.typed::<DoubleType>().write_batch(&[1.0, 2.5, 1.0, 4.0], None, None)?
                    }
                    _ => out.typed::<Int32Type>().write_batch(&[1, 2, 3, 4], None, None)?,
                };
                out.close()?;
                column += 1;
            }
            group.close()?;
            writer.close()?;
            let version = version.as_num();
            std::fs::write(corpus.join(format!("{name}-{version}-{dictionary}")), bytes)?;
        }
    }
    Ok(())
}

fn models(dir: &Path) -> Outcome<()> {
    let sizes = tiny::Sizes {
        hidden: 4,
        intermediate: 4,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 2,
        vocab: 3,
        tied: true,
    };
    let tensors = tiny::tensors(&sizes, 1);
    let gguf = gguf_file::GgufFile::of(&sizes, &tensors);
    put("gguf", "tiny", 0, &gguf.bytes())?;
    let path = dir.join("model.safetensors");
    let (mut renamed, mut both) = (tensors.clone(), tensors.clone());
    let table = renamed.remove("model.embed_tokens.weight").ok_or("an embedding")?;
    renamed.insert("lm_head.weight".to_owned(), table.clone());
    both.insert("lm_head.weight".to_owned(), table);
    for (name, tensors) in [("small", &tensors), ("renamed", &renamed), ("both", &both)] {
        tiny::save(&path, tensors);
        whole_and_header(&format!("safetensors/{name}"), &path)?;
    }
    Ok(())
}

fn parameters(dir: &Path) -> Outcome<()> {
    let path = dir.join("adapter.safetensors");
    for (name, experts) in [("two", 2), ("one", 1)] {
        let config = AdapterConfig { experts, rank: 1, gate_hidden: 2, ..AdapterConfig::default() };
        Adapter::new(&backbone(), &config, 3, 1)?.save(&path)?;
        whole_and_header(&format!("adapter/{name}"), &path)?;
    }
    let config = CrmConfig { embedding_dim: 2, hidden_dim: 2, ..CrmConfig::default() };
    let crm = Crm::new(
        &config,
        CrmShape {
            features: 5,
            fields: 2,
            item_field: 1,
            user_field: 0,
            numbers: 0,
            similarities: false,
        },
    )?;
    let path = dir.join("crm.safetensors");
    crm.save(&crm.init(1), &path)?;
    whole_and_header("crm", &path)
}

/// A safetensors file as it is, and its header alone.
fn whole_and_header(target: &str, path: &Path) -> Outcome<()> {
    let bytes = std::fs::read(path)?;
    let length = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let (target, name) = target.split_once('/').unwrap_or((target, "small"));
    put(target, name, 0, &bytes)?;
    put(target, &format!("{name}-header"), 1, &bytes[8..8 + length])
}

fn checkpoints(dir: &Path) -> Outcome<()> {
    let state = TrainState {
        step: 3,
        parameters: vec![1.0, 2.0],
        best: Some((1, vec![0.5])),
        ..TrainState::default()
    };
    let dir = dir.join("checkpoints");
    checkpoint::save(&dir, &state, Layout::Whole, &mut Solo)?;
    let loaded = checkpoint::load(&dir, TableShare::default(), &mut Solo)?;
    assert_eq!(loaded, Some(state.clone()));
    put("checkpoint", "content", 1, &encode(&state)?)
}

fn messages() -> Outcome<()> {
    let frame = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
    let hello = encode(&(*b"RECLORA\n", 1_u32, [7_u8; 32]))?;
    let address: std::net::SocketAddr = "127.0.0.1:29500".parse()?;
    let request = encode(&(1_usize, 2_usize, ("build", "hash"), address))?;
    let signed = encode(&(&request, vec![9_u8; 32]))?;
    let header = encode(&(5_u64, 1_u32, "gradients", 8_u64))?;
    put("comm", "hello", 0, &frame(&hello))?;
    put("comm", "signed", 0, &frame(&signed))?;
    put("comm", "request", 0, &frame(&request))?;
    put("comm", "message", 0, &[frame(&header), frame(&[1; 64])].concat())
}
