//! The parts of a collective, one for each peer and direction, driven together.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::{Header, read_message};
use crate::error::{CommError, Result};

/// How a collective ended.
pub enum Outcome<T> {
    Done(T),
    Failed(CommError),
    /// The deadline passed while these ranks' parts were missing.
    Late {
        missing: Vec<usize>,
    },
}

impl<T> Outcome<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Done(value) => Outcome::Done(change(value)),
            Self::Failed(error) => Outcome::Failed(error),
            Self::Late { missing } => Outcome::Late { missing },
        }
    }
}

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

/// Which peers are still waited for, and where what they were given ends.
#[derive(Debug)]
pub struct Waiting {
    to_send: Vec<Cell<bool>>,
    to_take: Vec<Cell<bool>>,
    given: Vec<Cell<Boundary>>,
}

impl Waiting {
    pub fn new(world_size: usize) -> Self {
        let nobody = || (0..world_size).map(|_| Cell::new(false)).collect();
        let given = (0..world_size).map(|_| Cell::new(Boundary::Message)).collect();
        Self { to_send: nobody(), to_take: nobody(), given }
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
        self.to_send[peer].set(true);
        part.await?;
        self.to_send[peer].set(false);
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

    /// Whose part has not come; where all have, who does not take what it is given.
    fn missing(&self) -> Vec<usize> {
        let those = |waiting: &[Cell<bool>]| -> Vec<usize> {
            (0..waiting.len()).filter(|&peer| waiting[peer].get()).collect()
        };
        let silent = those(&self.to_send);
        if silent.is_empty() { those(&self.to_take) } else { silent }
    }

    /// Drives all parts until they are done, the first fails, or the time is over.
    pub async fn drive(&self, mut parts: Vec<Part<'_>>, timeout: Duration) -> Outcome<()> {
        let all = poll_fn(|context| {
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
        match tokio::time::timeout(timeout, all).await {
            Ok(Ok(())) => Outcome::Done(()),
            Ok(Err(error)) => Outcome::Failed(error),
            Err(_) => Outcome::Late { missing: self.missing() },
        }
    }
}

/// The two directions of each peer's connection, by rank; `None` for this rank itself.
pub fn halves(peers: &mut [Option<TcpStream>]) -> Vec<Option<(ReadHalf<'_>, WriteHalf<'_>)>> {
    peers.iter_mut().map(|peer| peer.as_mut().map(TcpStream::split)).collect()
}

/// Gives each rank its message, where it has one, and returns the messages of `from`, in that order.
pub async fn exchange(
    header: &Header,
    frame: &[u8],
    peers: &mut [Option<TcpStream>],
    messages: &[Option<&[u8]>],
    from: &[usize],
    timeout: Duration,
) -> (Outcome<Vec<Vec<u8>>>, Vec<Boundary>) {
    let waiting = Waiting::new(peers.len());
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
    let outcome = waiting.drive(parts, timeout).await.map(|()| {
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
