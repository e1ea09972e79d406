//! Shards: any bytes, and any header and body behind correct hashes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{choice, file, piece, shard};
use reclora_storage::mmap::Access;
use reclora_storage::shard::Shard;

fuzz_target!(|data: &[u8]| {
    let (variant, rest) = choice(data);
    let bytes = if variant.is_multiple_of(2) {
        rest.to_vec()
    } else {
        let (header, body) = piece(rest);
        shard(header, usize::from(variant / 2), body)
    };
    let path = file("x.shard", &bytes);
    for access in [Access::Map, Access::Read] {
        let Ok(shard) = Shard::open_with(&path, "k", access) else { continue };
        let _ = shard.verify();
        for name in ["a", "b", "empty", "c"] {
            let _ = (shard.u8(name), shard.u16(name), shard.u32(name));
            let _ = (shard.u64(name), shard.i64(name), shard.f32(name));
        }
    }
});
