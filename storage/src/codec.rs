//! The one place that knows the binary codec (bincode, standard configuration).
//!
//! Decoding never trusts a length: the input may not be longer than `limit`, and what a claimed
//! length may allocate is bounded by a small multiple of it.

use bincode::config::standard;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, StorageError};

/// Encodes a value.
///
/// # Errors
/// The type cannot be serialised (for example a map without a known length).
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    bincode::serde::encode_to_vec(value, standard())
        .map_err(|e| StorageError::Codec { direction: "encode", problem: e.to_string() })
}

/// Decodes a value from all of `bytes`, which may be at most `limit` long.
///
/// # Errors
/// Too long, malformed, or bytes left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T> {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    if bytes.len() > limit {
        return Err(failed(format!("{} bytes, more than the limit of {limit}", bytes.len())));
    }
    // The codec's own limit is a constant and counts decoded sizes: a number that takes one byte
    // encoded counts up to 16. So the tier is the next one that holds 16 times the input.
    match bytes.len() {
        n if n <= 4 * KIB => decode_tier::<T, { 64 * KIB }>(bytes),
        n if n <= 256 * KIB => decode_tier::<T, { 4 * MIB }>(bytes),
        n if n <= 16 * MIB => decode_tier::<T, { 256 * MIB }>(bytes),
        n if n <= 1024 * MIB => decode_tier::<T, { 16 * 1024 * MIB }>(bytes),
        n => Err(failed(format!("{n} bytes, more than this codec handles (1 GiB)"))),
    }
}

fn decode_tier<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T> {
    let config = standard().with_limit::<LIMIT>();
    let (value, used) = bincode::serde::decode_from_slice::<T, _>(bytes, config)
        .map_err(|e| failed(e.to_string()))?;
    if used != bytes.len() {
        return Err(failed(format!("{} bytes left over", bytes.len() - used)));
    }
    Ok(value)
}

fn failed(problem: String) -> StorageError {
    StorageError::Codec { direction: "decode", problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Value = (Vec<(String, u64)>, Option<Vec<f32>>, i64);

    #[test]
    fn a_claimed_length_allocates_nothing() {
        // A string that claims 2^60 bytes: the limit refuses it before any allocation.
        let mut bytes = vec![253_u8];
        bytes.extend_from_slice(&(1_u64 << 60).to_le_bytes());
        assert!(decode::<String>(&bytes, 1024).is_err());
        assert!(decode::<Vec<u8>>(&bytes, 1024).is_err());
        assert!(decode::<Vec<u64>>(&bytes, 1024).is_err());
    }

    #[test]
    fn refuses_long_and_left_over() {
        let bytes = encode("hello").unwrap();
        assert!(decode::<String>(&bytes, 3).unwrap_err().to_string().contains("limit of 3"));
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode::<String>(&longer, 100).unwrap_err().to_string().contains("left over"));
    }

    #[test]
    fn small_numbers_are_not_refused_by_the_limit() {
        let value = vec![1_u64; 200_000];
        let bytes = encode(&value).unwrap();
        assert_eq!(decode::<Vec<u64>>(&bytes, bytes.len()).unwrap(), value);
    }

    proptest! {
        #[test]
        fn round_trip(value in any::<Value>()) {
            let bytes = encode(&value).unwrap();
            let back: Value = decode(&bytes, bytes.len()).unwrap();
            prop_assert_eq!(format!("{value:?}"), format!("{back:?}"));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<Value>(&bytes, 512);
        }
    }
}
