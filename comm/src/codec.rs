//! Frames: a length, then that many bytes. No length is trusted.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::CommError;

/// Largest control message: everything but the payload of a collective.
pub(crate) const CONTROL_LIMIT: usize = 64 * 1024;
/// Largest payload one rank sends another in one collective.
pub(crate) const PAYLOAD_LIMIT: u64 = 8 << 30;

/// Encodes a control message.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CommError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .map_err(|error| CommError::system("encode a message", error))
}

/// Decodes a control message; every byte must belong to it.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let config = bincode::config::standard().with_limit::<CONTROL_LIMIT>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| format!("it can't be decoded ({error})"))?;
    if used == bytes.len() { Ok(value) } else { Err("it has bytes left over".into()) }
}

/// Writes one frame.
pub(crate) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> std::io::Result<()> {
    stream.write_all(&(bytes.len() as u64).to_le_bytes()).await?;
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Reads one frame of at most `limit` bytes. Memory grows with the bytes that came, not with the
/// length that was claimed.
pub(crate) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    limit: u64,
) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 8];
    stream.read_exact(&mut length).await?;
    let length = u64::from_le_bytes(length);
    if length > limit {
        let what = format!("a frame of {length} bytes is over the limit of {limit}");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    }
    let mut bytes = Vec::with_capacity(length.min(1 << 20) as usize);
    stream.take(length).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 == length {
        Ok(bytes)
    } else {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::Hello;
    use proptest::prelude::*;

    fn read(bytes: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(read_frame(&mut &bytes[..], limit))
    }

    #[test]
    fn a_claimed_length_is_not_allocated() {
        let mut bytes = (PAYLOAD_LIMIT).to_le_bytes().to_vec();
        bytes.extend_from_slice(b"short");
        let error = read(&bytes, PAYLOAD_LIMIT).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        let error = read(&u64::MAX.to_le_bytes(), 100).unwrap_err();
        assert!(error.to_string().contains("over the limit of 100"), "{error}");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Hello>(&bytes);
            let _ = decode::<Vec<String>>(&bytes);
            let _ = read(&bytes, 200);
        }

        #[test]
        fn frames_come_back(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut wire = Vec::new();
            runtime.block_on(write_frame(&mut wire, &bytes)).unwrap();
            prop_assert_eq!(read(&wire, 300).unwrap(), bytes);
        }
    }
}
