//! Sums over ranks in the order of the tree, in one pass.
//!
//! Every rank owns a slice of the buffer, gets the others' pieces of it, adds them, and gives the sum to
//! all: each byte goes each way once, as in a ring, but no sum waits for a chain of ranks. It is done in
//! chunks: what has come from all is added and goes out again while the rest still comes. A rank's pieces
//! leave straight from the caller's buffer, and the others' sums land in it. They may: a peer's sum of a
//! chunk comes only after the peer has this rank's piece of it.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::time::Duration;

use bytemuck::{cast_slice, cast_slice_mut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;

use super::parts::{Boundary, Part, Wait, Waiting, halves};
use super::wire::Element;
use super::{Header, Kind, read_start};
use crate::communicator::first_nan;
use crate::error::{CommError, Result};
use crate::tree::{BLOCK, Take, sum_block};

#[cfg(target_endian = "big")]
compile_error!("values cross the wire as they lie in memory, which must be little-endian");

/// Values that are added and passed on together: enough for few calls of the system and few wakes, few
/// enough that they are still in the cache when they are needed again.
const CHUNK: usize = 256 * 1024;
/// Chunks of a peer that may wait for those of others.
const WINDOW: usize = 2;
/// In the place of the length of a unit: the sender has given up, and says on whom.
pub const GIVEN_UP: u64 = u64::MAX;
/// In the place of the first index that is not a number: there is none.
const NO_NAN: u64 = u64::MAX;

/// Memory that is kept from sum to sum.
#[derive(Debug)]
pub struct Scratch<T> {
    /// Of each peer the pieces that wait to be added, in a ring of `WINDOW` chunks.
    rings: Vec<Vec<T>>,
    block: Vec<f32>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self { rings: Vec::new(), block: Vec::new() }
    }
}

/// One sum: shared by its parts, which run on one thread.
pub struct Sum<'a, T> {
    header: &'a Header,
    rank: usize,
    world_size: usize,
    own: Range<usize>,
    buffer: RefCell<&'a mut [T]>,
    scratch: RefCell<&'a mut Scratch<T>>,
    /// Bytes of its piece of this rank's slice that each peer has given.
    received: Vec<Cell<usize>>,
    /// Values of this rank's slice that are summed.
    summed: Cell<usize>,
    /// Of all slices known to this rank.
    first_nan: Cell<u64>,
    own_nan: Cell<u64>,
    progress: Notify,
}

impl<'a, T: Element> Sum<'a, T> {
    pub fn new(
        header: &'a Header,
        rank: usize,
        world_size: usize,
        buffer: &'a mut [T],
        scratch: &'a mut Scratch<T>,
    ) -> Self {
        let own = slice(rank, world_size, buffer.len());
        let ring = own.len().min(WINDOW * CHUNK);
        scratch.rings.resize_with(world_size, Vec::new);
        for (peer, values) in scratch.rings.iter_mut().enumerate() {
            if peer != rank && values.len() < ring {
                values.resize(ring, T::zeroed());
            }
        }
        Self {
            header,
            rank,
            world_size,
            own,
            buffer: RefCell::new(buffer),
            scratch: RefCell::new(scratch),
            received: (0..world_size).map(|_| Cell::new(0)).collect(),
            summed: Cell::new(0),
            first_nan: Cell::new(NO_NAN),
            own_nan: Cell::new(NO_NAN),
            progress: Notify::new(),
        }
    }

    /// Makes the sum; returns the slice that this rank owns, and the first index of a value that is not
    /// a number, the same on every rank.
    pub async fn run(
        &self,
        frame: &[u8],
        peers: &mut [Option<TcpStream>],
        timeout: Duration,
    ) -> (Result<(Range<usize>, Option<usize>)>, Vec<Boundary>) {
        // Where there is no peer, nothing is ever received.
        self.advance();
        let waiting = Waiting::new(self.rank, self.world_size);
        let mut parts: Vec<Part<'_>> = Vec::new();
        for (peer, halves) in halves(peers).into_iter().enumerate() {
            let Some((reader, writer)) = halves else { continue };
            let (gathers, waiting) = (self.gathers(), &waiting);
            let receive = self.receive(peer, reader, move |wait| waiting.set_wait(peer, wait));
            parts.push(Box::pin(waiting.for_message(peer, receive)));
            let between = move |is: bool| {
                let boundary = if is && gathers { Boundary::Unit } else { Boundary::None };
                waiting.set_boundary(peer, boundary);
            };
            let send = self.send(peer, writer, frame, between);
            parts.push(Box::pin(waiting.for_taking(peer, send)));
        }
        let outcome = waiting.drive(self.header, parts, timeout).await;
        let nan = Some(self.first_nan.get()).filter(|nan| *nan != NO_NAN);
        let outcome = outcome.map(|()| (self.own.clone(), nan.map(|nan| nan as usize)));
        (outcome, waiting.boundaries())
    }

    fn gathers(&self) -> bool {
        self.header.kind == Kind::AllReduce
    }

    /// A peer's message: its piece of this rank's slice, its sums, and whether they are numbers.
    async fn receive(
        &self,
        peer: usize,
        mut reader: ReadHalf<'_>,
        set_wait: impl Fn(Wait),
    ) -> Result<()> {
        let lost = |why: String| self.header.lost(peer, why);
        let theirs = read_start(&mut reader).await.map_err(lost)?;
        self.header.check(peer, theirs)?;
        let failed = |error: std::io::Error| lost(super::why(error));
        self.receive_piece(peer, &mut reader, &set_wait).await.map_err(failed)?;
        set_wait(Wait::ForOthers);
        if self.gathers() {
            self.receive_sums(peer, &mut reader).await?;
        }
        let nan = reader.read_u64_le().await.map_err(failed)?;
        self.first_nan.set(self.first_nan.get().min(nan));
        Ok(())
    }

    async fn receive_piece(
        &self,
        peer: usize,
        reader: &mut ReadHalf<'_>,
        set_wait: &impl Fn(Wait),
    ) -> std::io::Result<()> {
        let total = size_of::<T>() * self.own.len();
        while self.received[peer].get() < total {
            let at = self.received[peer].get();
            let until = (size_of::<T>() * (self.summed.get() + WINDOW * CHUNK)).min(total);
            if at == until {
                set_wait(Wait::ForOthers);
                self.progress.notified().await;
                set_wait(Wait::ForItself);
                continue;
            }
            reader.readable().await?;
            let count = {
                let mut scratch = self.scratch.borrow_mut();
                let ring: &mut [u8] = cast_slice_mut(&mut scratch.rings[peer]);
                let start = at % ring.len();
                let end = (start + until - at).min(ring.len());
                read_now(reader, &mut ring[start..end])?
            };
            self.received[peer].set(at + count);
            self.advance();
        }
        Ok(())
    }

    /// The sums of a peer's slice, in units of any length.
    async fn receive_sums(&self, peer: usize, reader: &mut ReadHalf<'_>) -> Result<()> {
        let failed = |error: std::io::Error| self.header.lost(peer, super::why(error));
        let mut left = self.bytes_of(peer);
        while !left.is_empty() {
            let length = reader.read_u64_le().await.map_err(failed)?;
            if length == GIVEN_UP {
                let start = read_start(reader).await;
                self.header.check(peer, start.map_err(|why| self.header.lost(peer, why))?)?;
            }
            if length == 0 || length > left.len() as u64 {
                let what = format!("{length} bytes of the {} left of a sum", left.len());
                return Err(CommError::malformed(format!("rank {peer}"), what));
            }
            let end = left.start + length as usize;
            self.read(reader, left.start..end).await.map_err(failed)?;
            left.start = end;
        }
        Ok(())
    }

    /// Reads these bytes of the buffer.
    async fn read(&self, reader: &mut ReadHalf<'_>, mut left: Range<usize>) -> std::io::Result<()> {
        while !left.is_empty() {
            reader.readable().await?;
            let mut buffer = self.buffer.borrow_mut();
            let bytes: &mut [u8] = cast_slice_mut(&mut buffer);
            left.start += read_now(reader, &mut bytes[left.clone()])?;
        }
        Ok(())
    }

    /// This rank's message to a peer.
    async fn send(
        &self,
        peer: usize,
        mut writer: WriteHalf<'_>,
        frame: &[u8],
        between_units: impl Fn(bool),
    ) -> std::io::Result<()> {
        writer.write_all(frame).await?;
        self.write(&mut writer, self.bytes_of(peer)).await?;
        let own = self.bytes_of(self.rank);
        let mut sent = own.start;
        loop {
            let summed = own.start + size_of::<T>() * self.summed.get();
            if self.gathers() && sent < summed {
                writer.write_u64_le((summed - sent) as u64).await?;
                self.write(&mut writer, sent..summed).await?;
                sent = summed;
            } else if summed < own.end {
                between_units(true);
                self.progress.notified().await;
                between_units(false);
            } else {
                break;
            }
        }
        writer.write_u64_le(self.own_nan.get()).await
    }

    /// Writes these bytes of the buffer.
    async fn write(
        &self,
        writer: &mut WriteHalf<'_>,
        mut left: Range<usize>,
    ) -> std::io::Result<()> {
        while !left.is_empty() {
            writer.writable().await?;
            let end = left.end.min(left.start + size_of::<T>() * CHUNK);
            let buffer = self.buffer.borrow();
            let bytes: &[u8] = cast_slice(&buffer);
            match writer.try_write(&bytes[left.start..end]) {
                Ok(count) => left.start += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn bytes_of(&self, rank: usize) -> Range<usize> {
        let Range { start, end } = slice(rank, self.world_size, self.header.length as usize);
        size_of::<T>() * start..size_of::<T>() * end
    }

    /// Adds the chunks of which all peers' pieces are here.
    fn advance(&self) {
        let received = self.received.iter().enumerate().filter(|(peer, _)| *peer != self.rank);
        let here = received.map(|(_, bytes)| bytes.get() / size_of::<T>()).min();
        let here = here.unwrap_or(self.own.len());
        let before = self.summed.get();
        while self.summed.get() < self.own.len() {
            let start = self.summed.get();
            let end = (start + CHUNK).min(self.own.len());
            if end > here {
                break;
            }
            self.add(start..end);
            self.summed.set(end);
        }
        if self.summed.get() > before {
            self.progress.notify_waiters();
        }
    }

    /// Adds all ranks' values at `range` of this rank's slice.
    fn add(&self, range: Range<usize>) {
        let mut buffer = self.buffer.borrow_mut();
        let Scratch { rings, block } = &mut **self.scratch.borrow_mut();
        block.resize(2 * BLOCK, 0.0);
        for start in range.clone().step_by(BLOCK) {
            let length = BLOCK.min(range.end - start);
            let at = self.own.start + start;
            let sum = &mut block[..length];
            let leaf = |rank: usize, take: Take, sum: &mut [f32]| {
                if rank == self.rank {
                    return T::take(&buffer[at..at + length], take, sum);
                }
                // A block never crosses the end of the ring, which is whole chunks.
                let place = start % rings[rank].len();
                T::take(&rings[rank][place..place + length], take, sum);
            };
            sum_block(0..self.world_size, &leaf, sum);
            // No early end: that is quicker as long as all are numbers.
            if sum.iter().fold(false, |nan, value| nan | value.is_nan())
                && let Some(index) = first_nan(sum)
            {
                let index = (at + index) as u64;
                self.own_nan.set(self.own_nan.get().min(index));
                self.first_nan.set(self.first_nan.get().min(index));
            }
            T::narrow(sum, &mut buffer[at..at + length]);
        }
    }
}

/// The slice of a buffer that a rank owns.
fn slice(rank: usize, world_size: usize, length: usize) -> Range<usize> {
    length * rank / world_size..length * (rank + 1) / world_size
}

/// Reads what is here, which may be nothing.
fn read_now(reader: &mut ReadHalf<'_>, bytes: &mut [u8]) -> std::io::Result<usize> {
    match reader.try_read(bytes) {
        Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}
