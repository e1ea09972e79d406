//! The binary codec, with types that allocate.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::choice;
use reclora_storage::codec::{decode, encode};

type Nested = Vec<(String, Option<Vec<f32>>, BTreeMap<String, u64>)>;

fuzz_target!(|data: &[u8]| {
    let (_, bytes) = choice(data);
    let _ = decode::<Vec<u8>>(bytes, 1 << 16);
    let _ = decode::<Vec<u64>>(bytes, 1 << 16);
    let _ = decode::<Vec<Vec<String>>>(bytes, 1 << 16);
    if let Ok(value) = decode::<Nested>(bytes, 1 << 16) {
        let again = encode(&value).expect("what was decoded can be encoded");
        // Numbers have more than one encoding, values only one meaning.
        let back: Nested = decode(&again, usize::MAX).expect("what was encoded can be decoded");
        assert_eq!(format!("{value:?}"), format!("{back:?}"));
    }
});
