//! Collectives over TCP: every pair of ranks exchanges directly.
//!
//! A collective sends to and receives from all peers at once, on the thread that calls it, straight from
//! and into the caller's memory. All ranks are in the same collective, so whoever can't send any more
//! (buffers of the system are full) still receives, and buffers of any size can't block each other.

mod parts;
mod sum;
mod wire;

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::codec::{CONTROL_LIMIT, PAYLOAD_LIMIT, decode, encode, read_frame};
use crate::communicator::{Communicator, Wire, one_piece_per_rank, refuse_nan};
use crate::error::{CommError, Result};
use crate::record::{Record, Recorder};
use crate::tree::Take;
use parts::{Boundary, exchange};
use sum::{Scratch, Sum};
use wire::Element;

/// What a peer may say before anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Start {
    /// Its part of a collective follows.
    Collective(Header),
    /// Nothing more will come: it has given up on these ranks, and why.
    GivenUp { ranks: Vec<usize>, why: String },
}

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
    AllReduce,
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

impl Start {
    /// As a frame: its length, then itself.
    fn to_frame(&self) -> Result<Vec<u8>> {
        let bytes = encode(self)?;
        Ok([&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat())
    }
}

impl Header {
    /// Without its number.
    fn what(&self) -> String {
        let Header { kind, name, length, .. } = self;
        match length {
            0 => format!("{kind:?} \"{name}\""),
            _ => format!("{kind:?} \"{name}\" of {length} elements"),
        }
    }

    fn to_frame(&self) -> Result<Vec<u8>> {
        Start::Collective(self.clone()).to_frame()
    }

    fn lost(&self, rank: usize, why: String) -> CommError {
        CommError::PeerLost { collective: self.name.clone(), sequence: self.sequence, rank, why }
    }

    /// Refuses anything but this collective.
    fn check(&self, rank: usize, theirs: Start) -> Result<()> {
        match theirs {
            Start::Collective(theirs) if theirs == *self => Ok(()),
            Start::Collective(theirs) => {
                let (ours, theirs) = (self.to_string(), theirs.to_string());
                Err(CommError::Mismatch { rank, ours, theirs })
            }
            Start::GivenUp { ranks, why } => {
                let (collective, sequence) = (self.name.clone(), self.sequence);
                Err(CommError::GivenUp { collective, sequence, by: rank, ranks, why })
            }
        }
    }
}

/// A rank's connections to all others.
#[derive(Debug)]
pub struct TcpCommunicator {
    rank: usize,
    timeout: Duration,
    sequence: u64,
    runtime: Runtime,
    /// `None` for this rank itself.
    peers: Vec<Option<TcpStream>>,
    wire: Wire,
    scratch: Scratch<f32>,
    /// What is sent where values cross the wire in bf16, and the memory for it.
    narrowed: (Vec<u16>, Scratch<u16>),
    recorder: Recorder,
    /// The error after which nothing on the connections can be relied on.
    failed: Option<CommError>,
}

impl TcpCommunicator {
    pub(crate) fn start(
        runtime: Runtime,
        rank: usize,
        peers: Vec<Option<TcpStream>>,
        timeout: Duration,
        wire: Wire,
    ) -> Self {
        let (scratch, narrowed) = (Scratch::default(), Default::default());
        let (sequence, recorder, failed) = (0, Recorder::default(), None);
        Self { rank, timeout, sequence, runtime, peers, wire, scratch, narrowed, recorder, failed }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.peers.len()).filter(move |&peer| peer != rank)
    }

    fn header(&mut self, kind: Kind, name: &str, length: usize) -> Result<Header> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let sequence = self.sequence;
        self.sequence += 1;
        let header = Header { sequence, kind, name: name.into(), length: length as u64 };
        self.recorder.enter(sequence, header.what());
        Ok(header)
    }

    /// Gives each rank its message, where it has one, and returns the messages of `from`, in that order.
    fn exchange(
        &mut self,
        header: &Header,
        messages: &[Option<&[u8]>],
        from: &[usize],
    ) -> Result<Vec<Vec<u8>>> {
        let frame = header.to_frame()?;
        let parts =
            exchange(self.rank, header, &frame, &mut self.peers, messages, from, self.timeout);
        let (outcome, boundaries) = self.runtime.block_on(parts);
        self.finish(outcome, boundaries)
    }

    /// Gives every other rank `message`, and returns theirs in rank order, this rank's own left out.
    fn exchange_one(&mut self, header: &Header, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        let messages: Vec<_> =
            (0..self.peers.len()).map(|peer| (peer != self.rank).then_some(message)).collect();
        let others: Vec<_> = self.others().collect();
        self.exchange(header, &messages, &others)
    }

    fn sum(&mut self, kind: Kind, name: &str, buffer: &mut [f32]) -> Result<Range<usize>> {
        let header = self.header(kind, name, buffer.len())?;
        let frame = header.to_frame()?;
        let (rank, world_size, peers) = (self.rank, self.peers.len(), &mut self.peers);
        let (outcome, boundaries) = match self.wire {
            Wire::F32 => {
                let sum = Sum::new(&header, rank, world_size, buffer, &mut self.scratch);
                self.runtime.block_on(sum.run(&frame, peers, self.timeout))
            }
            Wire::Bf16 => {
                let (sent, scratch) = &mut self.narrowed;
                sent.resize(buffer.len(), 0);
                Element::narrow(buffer, sent);
                let sum = Sum::new(&header, rank, world_size, &mut sent[..], scratch);
                let done = self.runtime.block_on(sum.run(&frame, peers, self.timeout));
                Element::take(&sent[..], Take::Copy, buffer);
                done
            }
        };
        let (own, first_nan) = self.finish(outcome, boundaries)?;
        refuse_nan(name, header.sequence, first_nan)?;
        Ok(own)
    }

    /// The result of a collective. After a failure the others learn whose fault it is, so that they need
    /// not find out from this rank's end.
    fn finish<T>(&mut self, outcome: Result<T>, boundaries: Vec<Boundary>) -> Result<T> {
        self.recorder.leave(outcome.is_ok());
        let Err(error) = &outcome else { return outcome };
        self.failed = Some(error.clone());
        self.tell(error, &boundaries);
        outcome
    }

    /// Tells the other ranks, as far as they listen, on whom this one has given up.
    fn tell(&mut self, error: &CommError, boundaries: &[Boundary]) {
        let (ranks, why) = match error {
            CommError::GivenUp { ranks, why, .. } => (ranks.clone(), why.clone()),
            CommError::Mismatch { rank, .. } => (vec![*rank], error.to_string()),
            other => (other.culprits().to_vec(), other.to_string()),
        };
        let Ok(frame) = Start::GivenUp { ranks, why }.to_frame() else { return };
        for (stream, boundary) in self.peers.iter().zip(boundaries) {
            let message = match boundary {
                Boundary::Message => frame.clone(),
                Boundary::Unit => [&sum::GIVEN_UP.to_le_bytes()[..], &frame].concat(),
                Boundary::None => continue,
            };
            if let Some(stream) = stream {
                // Whatever fits: a peer that does not read must not keep this process.
                let _ = stream.try_write(&message);
            }
        }
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
        self.sum(Kind::AllReduce, name, buffer).map(drop)
    }

    fn reduce_scatter_sum(&mut self, name: &str, buffer: &mut [f32]) -> Result<Range<usize>> {
        self.sum(Kind::ReduceScatter, name, buffer)
    }

    fn all_gather(&mut self, name: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let header = self.header(Kind::AllGather, name, 0)?;
        let mut gathered = self.exchange_one(&header, bytes)?;
        gathered.insert(self.rank, bytes.to_vec());
        Ok(gathered)
    }

    fn all_to_all(&mut self, name: &str, mut pieces: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        one_piece_per_rank(name, &pieces, self.world_size())?;
        let header = self.header(Kind::AllToAll, name, 0)?;
        let own = std::mem::take(&mut pieces[self.rank]);
        let messages = pieces.iter().enumerate();
        let messages: Vec<_> =
            messages.map(|(to, piece)| (to != self.rank).then_some(&piece[..])).collect();
        let others: Vec<_> = self.others().collect();
        let mut received = self.exchange(&header, &messages, &others)?;
        received.insert(self.rank, own);
        Ok(received)
    }

    fn broadcast(&mut self, name: &str, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let world_size = self.world_size();
        if root >= world_size {
            return Err(CommError::NoSuchRank { collective: name.into(), rank: root, world_size });
        }
        let header = self.header(Kind::Broadcast, name, 0)?;
        let message = (root == self.rank).then_some(&bytes[..]);
        let messages: Vec<_> =
            (0..world_size).map(|to| message.filter(|_| to != self.rank)).collect();
        let from: Vec<usize> = Some(root).filter(|root| *root != self.rank).into_iter().collect();
        if let Some(received) = self.exchange(&header, &messages, &from)?.pop() {
            *bytes = received;
        }
        Ok(())
    }

    fn barrier(&mut self, name: &str) -> Result<()> {
        let header = self.header(Kind::Barrier, name, 0)?;
        self.exchange_one(&header, &[]).map(drop)
    }

    fn records(&self) -> Vec<Record> {
        self.recorder.records()
    }
}

/// What came: a message, or why no more will come.
pub(crate) type Incoming = std::result::Result<(Start, Vec<u8>), String>;

pub(crate) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> Incoming {
    let start = read_start(stream).await?;
    let payload = match start {
        Start::Collective(_) => read_frame(stream, PAYLOAD_LIMIT).await.map_err(why)?,
        Start::GivenUp { .. } => Vec::new(),
    };
    Ok((start, payload))
}

async fn read_start(stream: &mut (impl AsyncRead + Unpin)) -> std::result::Result<Start, String> {
    decode(&read_frame(stream, CONTROL_LIMIT as u64).await.map_err(why)?)
}

/// What a failed connection means, in words.
fn why(error: std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        _ => error.to_string(),
    }
}
