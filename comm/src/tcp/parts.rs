//! The parts of a collective, one for each peer and direction, driven together.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::{Header, read_message};
use crate::error::{CommError, Result};

/// How long after the deadline a rank listens to what others say, if it can't tell itself whose fault it is.
const HEARSAY: Duration = Duration::from_millis(500);

/// Where what was given to a peer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// Within something: the peer would take anything for the rest of it.
    None,
    /// Between two units of a sum.
    Unit,
    /// Between two messages.
    Message,
}

pub type Part<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// Why a peer's message is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It is, or none is expected.
    No,
    /// Its own part has not come.
    ForItself,
    /// What is missing is made of others' parts, or has to wait for them here.
    ForOthers,
}

/// Which peers are still waited for, and where what they were given ends.
#[derive(Debug)]
pub struct Waiting {
    rank: usize,
    to_send: Vec<Cell<Wait>>,
    to_take: Vec<Cell<bool>>,
    given: Vec<Cell<Boundary>>,
}

impl Waiting {
    /// Of rank `rank`, which waits for nobody yet.
    pub fn new(rank: usize, world_size: usize) -> Self {
        let to_send = (0..world_size).map(|_| Cell::new(Wait::No)).collect();
        let to_take = (0..world_size).map(|_| Cell::new(false)).collect();
        let given = (0..world_size).map(|_| Cell::new(Boundary::Message)).collect();
        Self { rank, to_send, to_take, given }
    }

    /// What is missing of a peer's message: something of its own, or what it can't have without others.
    pub fn set_wait(&self, peer: usize, wait: Wait) {
        self.to_send[peer].set(wait);
    }

    /// What `peer` was given ends here, until it is given more.
    pub fn set_boundary(&self, peer: usize, boundary: Boundary) {
        self.given[peer].set(boundary);
    }

    /// Where what each peer was given ends.
    pub fn boundaries(&self) -> Vec<Boundary> {
        self.given.iter().map(Cell::get).collect()
    }

    /// What comes from `peer`.
    pub async fn for_message(
        &self,
        peer: usize,
        part: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        self.set_wait(peer, Wait::ForItself);
        part.await?;
        self.set_wait(peer, Wait::No);
        Ok(())
    }

    /// What goes to `peer`. Where it can't, the peer is gone, and whoever reads from it says why.
    pub async fn for_taking(
        &self,
        peer: usize,
        part: impl Future<Output = std::io::Result<()>>,
    ) -> Result<()> {
        self.to_take[peer].set(true);
        self.set_boundary(peer, Boundary::None);
        if part.await.is_ok() {
            self.set_boundary(peer, Boundary::Message);
        }
        self.to_take[peer].set(false);
        Ok(())
    }

    /// Whose own part has not come; else who waits for others, or does not take what it is given.
    fn missing(&self) -> Vec<usize> {
        let those = |is: &dyn Fn(usize) -> bool| -> Vec<usize> {
            (0..self.to_send.len()).filter(|&peer| is(peer)).collect()
        };
        [
            those(&|peer| self.to_send[peer].get() == Wait::ForItself),
            those(&|peer| self.to_send[peer].get() == Wait::ForOthers),
            those(&|peer| self.to_take[peer].get()),
        ]
        .into_iter()
        .find(|ranks| !ranks.is_empty())
        .unwrap_or_default()
    }

    /// Drives all parts until they are done, the first fails, or the time is over.
    pub async fn drive(
        &self,
        header: &Header,
        mut parts: Vec<Part<'_>>,
        limit: Duration,
    ) -> Result<()> {
        let mut all = poll_fn(|context| {
            let mut failed = None;
            parts.retain_mut(|part| match part.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    failed = failed.take().or(result.err());
                    false
                }
            });
            match failed {
                Some(error) => Poll::Ready(Err(error)),
                None if parts.is_empty() => Poll::Ready(Ok(())),
                None => Poll::Pending,
            }
        });
        let mut result = timeout(limit, &mut all).await;
        // Of several that are missing, most wait for the one that is the cause, and may say so.
        if result.is_err() && self.missing().len() > 1 {
            result = timeout(HEARSAY, &mut all).await;
        }
        match result {
            Ok(done) => done.map_err(|error| self.refined(error)),
            Err(_) => Err(CommError::Timeout {
                collective: header.name.clone(),
                sequence: header.sequence,
                missing: self.missing(),
                timeout: limit,
            }),
        }
    }

    /// What another rank says of others, as far as it can be true here: this one lives, and whoever has
    /// done its part does too.
    fn refined(&self, mut error: CommError) -> CommError {
        if let CommError::GivenUp { ranks, .. } = &mut error {
            let missing = self.missing();
            ranks.retain(|rank| *rank != self.rank);
            if ranks.iter().any(|rank| missing.contains(rank)) {
                ranks.retain(|rank| missing.contains(rank));
            }
        }
        error
    }
}

/// The two directions of each peer's connection, by rank; `None` for this rank itself.
pub fn halves(peers: &mut [Option<TcpStream>]) -> Vec<Option<(ReadHalf<'_>, WriteHalf<'_>)>> {
    peers.iter_mut().map(|peer| peer.as_mut().map(TcpStream::split)).collect()
}

/// Gives each rank its message, where it has one, and returns the messages of `from`, in that order.
pub async fn exchange(
    rank: usize,
    header: &Header,
    frame: &[u8],
    peers: &mut [Option<TcpStream>],
    messages: &[Option<&[u8]>],
    from: &[usize],
    limit: Duration,
) -> (Result<Vec<Vec<u8>>>, Vec<Boundary>) {
    let waiting = Waiting::new(rank, peers.len());
    let received = RefCell::new(vec![Vec::new(); peers.len()]);
    let mut parts: Vec<Part<'_>> = Vec::new();
    for (peer, halves) in halves(peers).into_iter().enumerate() {
        let Some((mut reader, writer)) = halves else { continue };
        if let Some(message) = messages.get(peer).copied().flatten() {
            let sending = waiting.for_taking(peer, send(writer, frame, message));
            parts.push(Box::pin(sending));
        }
        if from.contains(&peer) {
            let received = &received;
            let receiving = async move {
                let message = read_message(&mut reader).await;
                let (theirs, payload) = message.map_err(|why| header.lost(peer, why))?;
                header.check(peer, theirs)?;
                received.borrow_mut()[peer] = payload;
                Ok(())
            };
            parts.push(Box::pin(waiting.for_message(peer, receiving)));
        }
    }
    let outcome = waiting.drive(header, parts, limit).await.map(|()| {
        let mut received = received.take();
        from.iter().map(|&peer| std::mem::take(&mut received[peer])).collect()
    });
    (outcome, waiting.boundaries())
}

async fn send(mut writer: WriteHalf<'_>, frame: &[u8], message: &[u8]) -> std::io::Result<()> {
    // One small write: a barrier is one packet.
    let start = [frame, &(message.len() as u64).to_le_bytes()].concat();
    writer.write_all(&start).await?;
    writer.write_all(message).await
}
