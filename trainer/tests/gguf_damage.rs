//! GGUF files that are damaged or made to harm: refused with the file, the place and what to do; never
//! a panic, never more memory than the file's own size explains.

use std::path::Path;

use crate::gguf_file::{GgufFile, Q8_0, Value, refused, refused_bytes};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::backbone::Backbone;
use reclora_trainer::engine::{AdaptedModel, Prompt, Workspace};

const TOKENS: [u32; 5] = [1, 7, 3, 10, 2];

fn logits(path: &Path) -> Result<Vec<f32>, String> {
    let backbone = Backbone::load(path).map_err(|error| error.to_string())?;
    let prompt = Prompt { tokens: &TOKENS, representation: &[] };
    let model = AdaptedModel::bare(&backbone);
    let logits = model.logits_at(&mut Workspace::new(), &prompt, TOKENS.len() - 1, None);
    logits.map_err(|error| error.to_string())
}

#[test]
fn truncated_anywhere() {
    let file = GgufFile::tiny();
    let (bytes, header) = (file.bytes(), file.header().len());
    for length in (4..header).chain((header..bytes.len()).step_by(7)) {
        refused_bytes(&["truncated"], &bytes[..length]);
    }
}

#[test]
fn headers_that_claim_too_much() {
    refused(&["version 1", "supported: 2, 3"], |file| file.version = 1);
    refused(&["version 4"], |file| file.version = 4);
    refused(&["big-endian"], |file| file.version = 3_u32.swap_bytes());
    let whole = GgufFile::tiny().bytes();
    for (at, what) in [(8, "tensors"), (16, "metadata entries")] {
        for count in [1_u64 << 20, 1 << 40, u64::MAX] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            refused_bytes(&[&format!("claims {count} {what}"), "copy or download"], &bytes);
        }
    }
    let huge = u64::MAX.to_le_bytes().to_vec();
    refused(&["key general.x", "bytes expected"], |file| {
        file.set("general.x", Value::Raw(8, huge.clone()));
    });
    for kind in [0_u32, 4, 8, 10] {
        let array = [&kind.to_le_bytes(), &huge[..]].concat();
        refused(&["elements of general.x"], |file| file.set("general.x", Value::Raw(9, array)));
    }
    refused(&["longer than 65535 bytes"], |file| file.set(&"k".repeat(65_536), 1));
    refused(&["name of tensor", "longer than 64 bytes"], |file| {
        file.tensors[0].name = "n".repeat(65);
    });
}

#[test]
fn damaged_metadata() {
    let raw = |kind, bytes: &[u8]| Value::Raw(kind, bytes.to_vec());
    refused(&["general.name: is there twice"], |file| {
        file.metadata.push(("general.name".into(), Value::U32(1)));
    });
    refused(&["is empty"], |file| file.set("", 1));
    refused(&["general.x: its type 13"], |file| file.set("general.x", raw(13, &[])));
    refused(&["general.x: is no bool"], |file| file.set("general.x", raw(7, &[2])));
    refused(&["general.x: is not UTF-8"], |file| {
        file.set("general.x", raw(8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0x28]));
    });
    refused(&["general.x: arrays of arrays"], |file| {
        let nested = [9_u32.to_le_bytes().to_vec(), vec![1, 0, 0, 0, 0, 0, 0, 0]].concat();
        file.set("general.x", raw(9, &[nested, vec![0; 12]].concat()));
    });
    for alignment in [0, 7, 12, 1 << 20] {
        refused(&["general.alignment"], |file| file.set("general.alignment", alignment));
    }
    refused(&["general.alignment"], |file| file.set("general.alignment", "32"));
}

#[test]
fn damaged_tensors() {
    refused(&["tensor blk.0.attn_k.weight: is there twice"], |file| {
        file.tensor("blk.0.attn_q.weight").name = "blk.0.attn_k.weight".into();
    });
    refused(&["output_norm.weight: its type 77"], |file| {
        file.tensor("output_norm.weight").kind = 77
    });
    refused(&["output_norm.weight: has type I32; supported: F32, F16"], |file| {
        file.tensor("output_norm.weight").kind = 26;
    });
    for rank in [0, 5] {
        refused(&["output_norm.weight: has", "dimensions"], |file| {
            file.tensor("output_norm.weight").dims = vec![1; rank];
        });
    }
    for dims in [vec![0], vec![0, 4], vec![u64::MAX, 2], vec![1 << 32, 1 << 32]] {
        refused(&["output_norm.weight: its shape"], |file| {
            file.tensor("output_norm.weight").dims = dims;
        });
    }
    refused(&["output_norm.weight", "beyond the file's end"], |file| {
        file.tensor("output_norm.weight").dims = vec![1 << 61];
    });
    refused(&["output_norm.weight: its rows of 12 are no whole blocks of Q8_0"], |file| {
        file.tensor("output_norm.weight").kind = Q8_0;
    });
    for offset in [1, 31, 33] {
        refused(&["output_norm.weight: its offset", "alignment 32"], |file| {
            file.tensor("output_norm.weight").offset = Some(offset);
        });
    }
    for offset in [1 << 20, (u64::MAX >> 5) << 5] {
        refused(&["output_norm.weight", "beyond the file's end"], |file| {
            file.tensor("output_norm.weight").offset = Some(offset);
        });
    }
    refused(&["overlaps tensor"], |file| file.tensor("output_norm.weight").offset = Some(0));
}

/// The most address space this process has had, in bytes: reserved memory counts, used or not.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Loads damaged bytes as a backbone and as a tokenizer: errors name the file, memory is bounded.
fn survives(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    if let Err(error) = logits(&path) {
        let known = error.contains("model.gguf: ") || error.contains("not finite");
        assert!(known || error.contains("token"), "{error}");
    }
    if let Err(error) = reclora_trainer::tokenizer::Tokenizer::load(&path) {
        assert!(error.to_string().contains("model.gguf: "), "{error}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn damage_never_panics_nor_takes_memory() {
    let file = GgufFile::tiny();
    let (whole, header) = (file.bytes(), file.header().len());
    survives(&whole); // What the first load needs once, threads above all.
    let before = peak_memory();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for _ in 0..3000 {
        let mut bytes = whole.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..header);
            bytes[at] = if random.random() { random.random() } else { bytes[at] ^ 0x80 };
        }
        bytes.truncate(random.random_range(bytes.len() / 2..bytes.len() * 3).min(bytes.len()));
        survives(&bytes);
    }
    let grown = peak_memory() - before;
    assert!(grown < 256 << 20, "{grown} bytes");
}

proptest! {
    #[test]
    fn any_bytes_after_the_magic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        survives(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
    }

    #[test]
    fn any_small_counts_and_bytes(
        tensors in 0_u64..3,
        entries in 0_u64..3,
        bytes in proptest::collection::vec(0_u8..13, 0..400),
    ) {
        let counts = [tensors.to_le_bytes(), entries.to_le_bytes()].concat();
        survives(&[b"GGUF\x03\0\0\0", &counts[..], &bytes[..]].concat());
    }
}
