//! Collectives over TCP: every pair of ranks exchanges directly.
//!
//! A thread owns the sockets: one task per peer writes what it is given and one reads whatever comes,
//! so a collective can hand over all it has to send and then wait only for what it needs. Buffers of
//! any size can't block each other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::codec::{CONTROL_LIMIT, PAYLOAD_LIMIT, decode, encode, read_frame, write_frame};
use crate::communicator::{Communicator, one_piece_per_rank};
use crate::error::{CommError, Result};
use crate::tree;

/// How long the end of a communicator waits for its last messages to leave.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// What a message belongs to. Both sides must agree on all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    sequence: u64,
    kind: Kind,
    name: String,
    /// Elements of the buffer, where all ranks must have the same number.
    length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    ReduceScatter,
    AllGather,
    AllToAll,
    Broadcast,
    Barrier,
}

impl std::fmt::Display for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Header { sequence, kind, name, length } = self;
        write!(f, "{kind:?} \"{name}\" #{sequence} of {length} elements")
    }
}

type Payload = Arc<Vec<u8>>;
type Outgoing = (Vec<u8>, Payload);

/// What a reader hands over: a message, or why no more will come.
type Incoming = std::result::Result<(Header, Vec<u8>), String>;

/// A rank's connections to all others.
#[derive(Debug)]
pub struct TcpCommunicator {
    rank: usize,
    timeout: Duration,
    sequence: u64,
    peers: Vec<Peer>,
    incoming: Receiver<(usize, Incoming)>,
    closing: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Peer {
    /// `None` for this rank itself.
    outgoing: Option<UnboundedSender<Outgoing>>,
    arrived: VecDeque<(Header, Vec<u8>)>,
    lost: Option<String>,
}

impl TcpCommunicator {
    pub(crate) fn start(
        runtime: tokio::runtime::Runtime,
        rank: usize,
        streams: Vec<Option<TcpStream>>,
        timeout: Duration,
    ) -> Result<Self> {
        let (sender, incoming) = channel();
        let mut peers = Vec::new();
        let mut connections = Vec::new();
        for (index, stream) in streams.into_iter().enumerate() {
            let mut peer = Peer::default();
            if let Some(stream) = stream {
                let (outgoing, queue) = unbounded_channel();
                peer.outgoing = Some(outgoing);
                connections.push((index, stream, queue));
            }
            peers.push(peer);
        }
        let (closing, closed) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("collectives".into())
            .spawn(move || runtime.block_on(serve(connections, sender, closed)))
            .map_err(|why| CommError::system("start the network thread", why))?;
        let (closing, thread) = (Some(closing), Some(thread));
        Ok(Self { rank, timeout, sequence: 0, peers, incoming, closing, thread })
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.peers.len()).filter(move |&peer| peer != rank)
    }

    fn header(&mut self, kind: Kind, name: &str, length: usize) -> Header {
        let sequence = self.sequence;
        self.sequence += 1;
        Header { sequence, kind, name: name.into(), length: length as u64 }
    }

    fn send(&mut self, to: usize, header: &Header, payload: Payload) -> Result<()> {
        let bytes = encode(header).map_err(|what| CommError::system("encode a message", what))?;
        if let Some(outgoing) = &self.peers[to].outgoing {
            // A writer that has ended has lost its peer; the reader says so with the cause.
            let _ = outgoing.send((bytes, payload));
        }
        Ok(())
    }

    /// The payloads of `from`, in that order, for the collective `header`.
    fn receive(&mut self, header: &Header, from: &[usize]) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let missing: Vec<usize> =
                from.iter().copied().filter(|&p| self.peers[p].arrived.is_empty()).collect();
            if missing.is_empty() {
                return from.iter().map(|&peer| self.take(header, peer)).collect();
            }
            if let Some((rank, why)) =
                missing.iter().find_map(|&p| Some((p, self.peers[p].lost.clone()?)))
            {
                let (collective, sequence) = (header.name.clone(), header.sequence);
                return Err(CommError::PeerLost { collective, sequence, rank, why });
            }
            match self.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((peer, Ok(message))) => self.peers[peer].arrived.push_back(message),
                Ok((peer, Err(why))) => self.peers[peer].lost = Some(why),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(CommError::Timeout {
                        collective: header.name.clone(),
                        sequence: header.sequence,
                        missing,
                        timeout: self.timeout,
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(CommError::system(&header.name, "the network thread has ended"));
                }
            }
        }
    }

    fn take(&mut self, ours: &Header, rank: usize) -> Result<Vec<u8>> {
        match self.peers[rank].arrived.pop_front() {
            Some((theirs, payload)) if theirs == *ours => Ok(payload),
            Some((theirs, _)) => Err(CommError::Mismatch {
                rank,
                ours: ours.to_string(),
                theirs: theirs.to_string(),
            }),
            None => Err(CommError::system(&ours.name, "a message that came is gone")),
        }
    }

    /// Gives every other rank `payload`, and returns theirs in rank order, this rank's own left out.
    fn exchange(&mut self, header: &Header, payload: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let payload = Arc::new(payload);
        for peer in self.others() {
            self.send(peer, header, payload.clone())?;
        }
        let others: Vec<_> = self.others().collect();
        self.receive(header, &others)
    }

    /// This rank's slice of the sum: every rank owns a slice, gets the others' pieces of it, and
    /// adds them in tree order.
    fn reduce_scatter(&mut self, name: &str, buffer: &[f32]) -> Result<Vec<f32>> {
        let header = self.header(Kind::ReduceScatter, name, buffer.len());
        for peer in self.others() {
            let piece = to_bytes(&buffer[self.slice(peer, buffer.len())]);
            self.send(peer, &header, Arc::new(piece))?;
        }
        let own = buffer[self.slice(self.rank, buffer.len())].to_vec();
        let others: Vec<_> = self.others().collect();
        let received = self.receive(&header, &others)?;
        let mut pieces = Vec::with_capacity(self.peers.len());
        for (peer, bytes) in others.into_iter().zip(received) {
            pieces.push(from_bytes(&bytes, own.len(), peer)?);
        }
        pieces.insert(self.rank, own);
        Ok(tree::sum(pieces).unwrap_or_default())
    }

    fn slice(&self, rank: usize, length: usize) -> std::ops::Range<usize> {
        let world_size = self.peers.len();
        length * rank / world_size..length * (rank + 1) / world_size
    }
}

impl Communicator for TcpCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.peers.len()
    }

    fn all_reduce_sum(&mut self, name: &str, buffer: &mut [f32]) -> Result<()> {
        let own = self.reduce_scatter(name, buffer)?;
        let header = self.header(Kind::AllGather, name, buffer.len());
        let received = self.exchange(&header, to_bytes(&own))?;
        let range = self.slice(self.rank, buffer.len());
        buffer[range].copy_from_slice(&own);
        for (peer, bytes) in self.others().zip(received) {
            let range = self.slice(peer, buffer.len());
            let values = from_bytes(&bytes, range.len(), peer)?;
            buffer[range].copy_from_slice(&values);
        }
        Ok(())
    }

    fn all_gather(&mut self, name: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let header = self.header(Kind::AllGather, name, 0);
        let mut gathered = self.exchange(&header, bytes.to_vec())?;
        gathered.insert(self.rank, bytes.to_vec());
        Ok(gathered)
    }

    fn all_to_all(&mut self, name: &str, mut pieces: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        one_piece_per_rank(name, &pieces, self.world_size())?;
        let header = self.header(Kind::AllToAll, name, 0);
        let own = std::mem::take(&mut pieces[self.rank]);
        for (peer, piece) in pieces.into_iter().enumerate() {
            self.send(peer, &header, Arc::new(piece))?;
        }
        let others: Vec<_> = self.others().collect();
        let mut received = self.receive(&header, &others)?;
        received.insert(self.rank, own);
        Ok(received)
    }

    fn broadcast(&mut self, name: &str, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let world_size = self.world_size();
        if root >= world_size {
            return Err(CommError::NoSuchRank { collective: name.into(), rank: root, world_size });
        }
        let header = self.header(Kind::Broadcast, name, 0);
        if root == self.rank {
            let payload = Arc::new(bytes.clone());
            for peer in self.others() {
                self.send(peer, &header, payload.clone())?;
            }
        } else if let Some(received) = self.receive(&header, &[root])?.pop() {
            *bytes = received;
        }
        Ok(())
    }

    fn barrier(&mut self, name: &str) -> Result<()> {
        let header = self.header(Kind::Barrier, name, 0);
        self.exchange(&header, Vec::new()).map(drop)
    }
}

impl Drop for TcpCommunicator {
    fn drop(&mut self) {
        // Writers end when their queue does; the thread ends with the last writer.
        self.peers.iter_mut().for_each(|peer| drop(peer.outgoing.take()));
        drop(self.closing.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8], length: usize, rank: usize) -> Result<Vec<f32>> {
    let (words, rest) = bytes.as_chunks::<4>();
    if words.len() != length || !rest.is_empty() {
        let what = format!("{} bytes for {length} values", bytes.len());
        return Err(CommError::malformed(format!("rank {rank}"), what));
    }
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

type Connection = (usize, TcpStream, UnboundedReceiver<Outgoing>);

/// Moves messages until the communicator is closed and its last messages have left.
async fn serve(
    connections: Vec<Connection>,
    incoming: Sender<(usize, Incoming)>,
    closed: oneshot::Receiver<()>,
) {
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    for (peer, stream, queue) in connections {
        let (read_half, write_half) = stream.into_split();
        readers.spawn(read(peer, read_half, incoming.clone()));
        writers.spawn(write(write_half, queue));
    }
    let _ = closed.await;
    let flush = async { while writers.join_next().await.is_some() {} };
    // A peer that does not read must not keep this process.
    let _ = tokio::time::timeout(FLUSH_LIMIT, flush).await;
}

async fn write(mut stream: OwnedWriteHalf, mut queue: UnboundedReceiver<Outgoing>) {
    while let Some((header, payload)) = queue.recv().await {
        if write_frame(&mut stream, &header).await.is_err()
            || write_frame(&mut stream, &payload).await.is_err()
        {
            return;
        }
    }
}

async fn read(peer: usize, mut stream: OwnedReadHalf, incoming: Sender<(usize, Incoming)>) {
    loop {
        let message = read_message(&mut stream).await;
        let over = message.is_err();
        if incoming.send((peer, message)).is_err() || over {
            return;
        }
    }
}

pub(crate) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> Incoming {
    let why = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        _ => error.to_string(),
    };
    let header = read_frame(stream, CONTROL_LIMIT as u64).await.map_err(why)?;
    let header = decode(&header)?;
    let payload = read_frame(stream, PAYLOAD_LIMIT).await.map_err(why)?;
    Ok((header, payload))
}
