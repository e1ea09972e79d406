//! What a peer's bytes pass through before it has proved anything, and after: for the fuzz targets.

use crate::codec::{CONTROL_LIMIT, decode, read_frame};
use crate::control::Introduction;
use crate::handshake::{Challenge, Hello, Signed};
use crate::rendezvous::{Answer, Request};
use crate::tcp::read_message;

/// Reads `bytes` as every kind of message that comes over a connection.
pub fn messages(bytes: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return };
    runtime.block_on(async {
        let mut stream = bytes;
        while let Ok(frame) = read_frame(&mut stream, CONTROL_LIMIT as u64).await {
            let _ = decode::<Hello>(&frame);
            let _ = decode::<Challenge>(&frame);
            let _ = decode::<Request>(&frame);
            let _ = decode::<Answer>(&frame);
            let _ = decode::<Introduction>(&frame);
            if let Ok(signed) = decode::<Signed>(&frame) {
                let _ = decode::<Request>(&signed.message);
            }
        }
        let mut stream = bytes;
        while read_message(&mut stream).await.is_ok() {}
    });
}
