//! Two processes show each other that they know the job's secret, without sending it.
//!
//! The dialler sends a nonce; the listener answers with a nonce of its own and a proof over both; the
//! dialler checks it and sends its message with a proof over both nonces and the message. Proofs of
//! the two sides and of the two purposes (store, mesh) are over different words, so none can be
//! played back elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::codec::{CONTROL_LIMIT, decode, encode, read_frame, write_frame};
use crate::error::{CommError, Result};
use crate::secret::{Secret, random};

/// Version of the wire protocol; ranks of different versions do not talk.
pub const PROTOCOL_VERSION: u32 = 2;

/// How long one connection may take to prove itself.
pub(crate) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Connections that may be proving themselves at one time; others queue.
const HANDSHAKES: usize = 128;

/// What all processes of a job must agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Names the executable: version and hash.
    pub build_id: String,
    /// Hash of the configuration.
    pub config_hash: String,
}

impl Identity {
    /// Why `other` can't take part, with both values; `None` if it can.
    pub(crate) fn refusal(&self, other: &Identity) -> Option<String> {
        let differs = |what: &str, ours: &str, theirs: &str| {
            (ours != theirs).then(|| format!("its {what} is {theirs}, the job's is {ours}"))
        };
        differs("build", &self.build_id, &other.build_id)
            .or_else(|| differs("config hash", &self.config_hash, &other.config_hash))
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A rank and the store.
    Store,
    /// Two ranks.
    Mesh,
    /// The launchers of two nodes.
    Agent,
}

impl Purpose {
    fn words(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Purpose::Store => (b"reclora store listener", b"reclora store dialler"),
            Purpose::Mesh => (b"reclora mesh listener", b"reclora mesh dialler"),
            Purpose::Agent => (b"reclora agent listener", b"reclora agent dialler"),
        }
    }
}

/// First message of the dialler.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    magic: [u8; 8],
    version: u32,
    nonce: [u8; 32],
}

const MAGIC: [u8; 8] = *b"RECLORA\n";

/// Answer of the listener.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Challenge {
    Proof { nonce: [u8; 32], proof: Vec<u8> },
    Version(u32),
}

/// Second message of the dialler.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Signed {
    pub(crate) message: Vec<u8>,
    proof: Vec<u8>,
}

/// Sends `value` as one control frame.
pub(crate) async fn send<T: Serialize>(
    stream: &mut TcpStream,
    peer: &str,
    value: &T,
) -> Result<()> {
    write_frame(stream, &encode(value)?).await.map_err(|error| CommError::unreachable(peer, error))
}

/// Receives one control frame.
pub(crate) async fn receive<T: DeserializeOwned>(stream: &mut TcpStream, peer: &str) -> Result<T> {
    let bytes =
        read_frame(stream, CONTROL_LIMIT as u64).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => CommError::malformed(peer, error),
            _ => CommError::unreachable(peer, error),
        })?;
    decode(&bytes).map_err(|what| CommError::malformed(peer, what))
}

/// The dialler's side: checks the listener, then sends `message` signed.
pub(crate) async fn dial<T: Serialize>(
    stream: &mut TcpStream,
    peer: &str,
    purpose: Purpose,
    secret: &Secret,
    message: &T,
) -> Result<()> {
    let ours = random()?;
    let hello = Hello { magic: MAGIC, version: PROTOCOL_VERSION, nonce: ours };
    send(stream, peer, &hello).await?;
    let (listener, dialler) = purpose.words();
    let theirs = match receive(stream, peer).await? {
        Challenge::Version(version) => {
            return Err(CommError::malformed(
                peer,
                format!("it speaks protocol {version}, this rank {PROTOCOL_VERSION}"),
            ));
        }
        Challenge::Proof { nonce, proof } => {
            if !secret.verify(&[listener, &ours, &nonce], &proof) {
                return Err(CommError::WrongSecret { peer: peer.into() });
            }
            nonce
        }
    };
    let message = encode(message)?;
    let proof = secret.prove(&[dialler, &theirs, &ours, &message]);
    send(stream, peer, &Signed { message, proof }).await
}

/// The listener's side: proves itself, then returns the dialler's message once its proof holds.
pub(crate) async fn accept<T: DeserializeOwned>(
    stream: &mut TcpStream,
    peer: &str,
    purpose: Purpose,
    secret: &Secret,
) -> Result<T> {
    let hello: Hello = receive(stream, peer).await?;
    if hello.magic != MAGIC {
        return Err(CommError::malformed(peer, "it does not begin as this protocol"));
    }
    if hello.version != PROTOCOL_VERSION {
        send(stream, peer, &Challenge::Version(PROTOCOL_VERSION)).await?;
        let what = format!("it speaks protocol {}, this job {PROTOCOL_VERSION}", hello.version);
        return Err(CommError::malformed(peer, what));
    }
    let ours = random()?;
    let (listener, dialler) = purpose.words();
    let proof = secret.prove(&[listener, &hello.nonce, &ours]);
    send(stream, peer, &Challenge::Proof { nonce: ours, proof }).await?;
    let signed: Signed = receive(stream, peer).await?;
    if !secret.verify(&[dialler, &ours, &hello.nonce, &signed.message], &signed.proof) {
        return Err(CommError::WrongSecret { peer: peer.into() });
    }
    decode(&signed.message).map_err(|what| CommError::malformed(peer, what))
}

/// Lets in whoever proves to know the secret, with its message and address; garbage and slow connections
/// hold nobody up.
pub(crate) async fn admit<T: DeserializeOwned + Send + 'static>(
    listener: TcpListener,
    purpose: Purpose,
    secret: Secret,
    arrived: mpsc::Sender<(T, TcpStream, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((mut stream, peer)) = listener.accept().await else {
            // Out of file descriptors, most likely: others must end first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (secret, arrived) = (secret.clone(), arrived.clone());
        tokio::spawn(async move {
            let name = peer.to_string();
            let proof = accept(&mut stream, &name, purpose, &secret);
            if let Ok(Ok(message)) = timeout(HANDSHAKE_LIMIT, proof).await {
                let _ = arrived.send((message, stream, peer)).await;
            }
            drop(place);
        });
    }
}
