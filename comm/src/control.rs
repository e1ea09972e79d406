//! Connections between the launchers of a job's nodes, over which they start ranks and watch them.
//!
//! Each end proves that it knows the job's secret. A connection then carries messages both ways, in order,
//! until one end drops it or falls silent: both send a sign of life every [`BEAT`], so that a machine that
//! vanished, or a process that stands still, is noticed within [`SILENCE`] (S-2).

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, copy, sink, split};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::codec::{read_frame, write_frame};
use crate::error::{CommError, Result};
use crate::handshake::{HANDSHAKE_LIMIT, Purpose, admit, dial, receive, send};
use crate::secret::Secret;
use crate::service::{Service, runtime};

/// Between two signs of life.
pub const BEAT: Duration = Duration::from_millis(500);
/// Without a sign of life for so long, the other end is gone.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Largest message in bytes.
pub const MESSAGE_LIMIT: u64 = 1 << 20;
/// How long the other end may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its node, from 1: node 0 is the one that listens.
    pub node: usize,
    /// Number of nodes that it expects.
    pub nodes: usize,
    /// Names the executable: version and hash.
    pub build_id: String,
    /// Name of the job.
    pub job: String,
}

/// The listener's answer: why it refuses the agent, if it does.
type Answer = std::result::Result<(), String>;

/// What comes over a connection.
#[derive(Debug)]
pub enum Incoming {
    /// A message.
    Message(Vec<u8>),
    /// Nothing more comes: why.
    Lost(CommError),
}

/// A connection. Dropping it tells the other end after the messages that were sent before.
#[derive(Debug)]
pub struct Control {
    outgoing: Option<mpsc::UnboundedSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
    local: IpAddr,
    peer: String,
}

impl Control {
    /// Sends a message; one that can't arrive any more is reported by [`Incoming::Lost`].
    ///
    /// # Errors
    /// A message over [`MESSAGE_LIMIT`].
    pub fn send(&self, message: Vec<u8>) -> Result<()> {
        if message.len() as u64 > MESSAGE_LIMIT {
            let what = format!("a control message of {} bytes", message.len());
            return Err(CommError::Config(what));
        }
        if let Some(outgoing) = &self.outgoing {
            let _ = outgoing.send(message);
        }
        Ok(())
    }

    /// The address of this machine that the other end sees.
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// The other end, as people know it.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    fn start(
        stream: TcpStream,
        runtime: tokio::runtime::Runtime,
        peer: String,
        on: impl FnMut(Incoming) + Send + 'static,
    ) -> Result<Self> {
        let local = stream.local_addr().map_err(|why| CommError::system("look at", why))?.ip();
        let (outgoing, messages) = mpsc::unbounded_channel();
        let name = peer.clone();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || runtime.block_on(carry(stream, messages, name, on)))
            .map_err(|why| CommError::system("start a control thread", why))?;
        Ok(Self { outgoing: Some(outgoing), thread: Some(thread), local, peer })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.outgoing.take());
        // Called from within what it calls for each message, it can't wait for itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Moves messages until either direction ends.
async fn carry(
    stream: TcpStream,
    messages: mpsc::UnboundedReceiver<Vec<u8>>,
    peer: String,
    mut on: impl FnMut(Incoming),
) {
    let _ = stream.set_nodelay(true);
    let (mut reading, mut writing) = split(stream);
    let error = tokio::select! {
        error = take(&mut reading, &peer, &mut on) => Some(error),
        error = give(&mut writing, messages, &peer) => error,
    };
    match error {
        Some(error) => on(Incoming::Lost(error)),
        // Closed with something unread, the last messages might not arrive.
        None => {
            let _ = writing.shutdown().await;
            let _ = timeout(GOODBYE, copy(&mut reading, &mut sink())).await;
        }
    }
}

async fn take(
    stream: &mut ReadHalf<TcpStream>,
    peer: &str,
    on: &mut impl FnMut(Incoming),
) -> CommError {
    loop {
        match timeout(SILENCE, read_frame(stream, MESSAGE_LIMIT)).await {
            Err(_) => {
                let why = format!("no sign of life for {} s", SILENCE.as_secs());
                return CommError::unreachable(peer, why);
            }
            Ok(Err(error)) => return CommError::unreachable(peer, error),
            // A sign of life.
            Ok(Ok(bytes)) if bytes.is_empty() => {}
            Ok(Ok(bytes)) => on(Incoming::Message(bytes)),
        }
    }
}

/// Returns nothing when this end is done.
async fn give(
    stream: &mut WriteHalf<TcpStream>,
    mut messages: mpsc::UnboundedReceiver<Vec<u8>>,
    peer: &str,
) -> Option<CommError> {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            biased;
            message = messages.recv() => message?,
            _ = beat.tick() => Vec::new(),
        };
        let why = match timeout(SILENCE, write_frame(stream, &message)).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it took nothing for {} s", SILENCE.as_secs()),
        };
        return Some(CommError::unreachable(peer, why));
    }
}

/// Waits for agents to come.
#[derive(Debug)]
pub struct ControlListener {
    service: Service,
    arrivals: Receiver<Arrival>,
}

/// An agent that knows the secret.
#[derive(Debug)]
pub struct Arrival {
    /// What it says of itself.
    pub introduction: Introduction,
    /// Where it comes from.
    pub address: SocketAddr,
    stream: std::net::TcpStream,
}

impl ControlListener {
    /// Listens in a thread of its own; port 0 takes any free one.
    ///
    /// # Errors
    /// The address can't be listened on, or the system gives no thread.
    pub fn start(bind: SocketAddr, secret: Secret) -> Result<Self> {
        let (arrived, arrivals) = channel();
        let serve = async move |listener| {
            let (candidates, mut proven) = mpsc::channel(1);
            let hand_over = async {
                while let Some((introduction, stream, address)) = proven.recv().await {
                    if let Ok(stream) = TcpStream::into_std(stream) {
                        let _ = arrived.send(Arrival { introduction, address, stream });
                    }
                }
            };
            tokio::select! {
                () = admit(listener, Purpose::Agent, secret, candidates) => {}
                () = hand_over => {}
            }
        };
        Ok(Self { service: Service::start(bind, "agents", serve)?, arrivals })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.service.address()
    }

    /// The next agent, if one comes within `wait`.
    pub fn next(&self, wait: Duration) -> Option<Arrival> {
        self.arrivals.recv_timeout(wait).ok()
    }
}

impl Arrival {
    /// Takes the agent in; `on` is called for whatever comes, in a thread of the connection.
    ///
    /// # Errors
    /// It went away meanwhile.
    pub fn welcome(self, on: impl FnMut(Incoming) + Send + 'static) -> Result<Control> {
        let peer = format!("node {} ({})", self.introduction.node, self.address.ip());
        let (runtime, stream) = self.answer(&Ok(()))?;
        Control::start(stream, runtime, peer, on)
    }

    /// Sends it away, with the reason.
    pub fn refuse(self, reason: &str) {
        let _ = self.answer(&Err(reason.to_owned()));
    }

    fn answer(self, answer: &Answer) -> Result<(tokio::runtime::Runtime, TcpStream)> {
        let (runtime, peer) = (runtime()?, self.address.to_string());
        let stream = runtime.block_on(async {
            let lost = |why: &dyn std::fmt::Display| CommError::unreachable(&peer, why);
            let mut stream = TcpStream::from_std(self.stream).map_err(|why| lost(&why))?;
            let sent = timeout(HANDSHAKE_LIMIT, send(&mut stream, &peer, answer)).await;
            sent.map_err(|_| lost(&"it did not read its answer"))??;
            Ok::<_, CommError>(stream)
        })?;
        Ok((runtime, stream))
    }
}

/// Connects an agent to the listener at `endpoint` (`host:port`), which may not be there yet; `on` is called
/// for whatever comes, in a thread of the connection.
///
/// # Errors
/// Nobody is there by the deadline, it does not know the secret, or it refuses this agent.
pub fn connect(
    endpoint: &str,
    secret: &Secret,
    introduction: &Introduction,
    deadline: Duration,
    on: impl FnMut(Incoming) + Send + 'static,
) -> Result<Control> {
    let runtime = runtime()?;
    let stream = runtime.block_on(async {
        let until = Instant::now() + deadline;
        loop {
            match knock(endpoint, secret, introduction, until).await {
                Err(CommError::Unreachable { .. }) if Instant::now() + BEAT < until => {
                    tokio::time::sleep(BEAT).await;
                }
                end => break end,
            }
        }
    })?;
    Control::start(stream, runtime, format!("node 0 ({endpoint})"), on)
}

async fn knock(
    endpoint: &str,
    secret: &Secret,
    introduction: &Introduction,
    until: Instant,
) -> Result<TcpStream> {
    let unreachable = |why: &dyn std::fmt::Display| CommError::unreachable(endpoint, why);
    let talk = async {
        let connected = TcpStream::connect(endpoint).await;
        let mut stream = connected.map_err(|error| unreachable(&error))?;
        dial(&mut stream, endpoint, Purpose::Agent, secret, introduction).await?;
        let answer: Answer = receive(&mut stream, endpoint).await?;
        let who = format!("node {}", introduction.node);
        match answer {
            Ok(()) => Ok(stream),
            Err(reason) => Err(CommError::Refused { endpoint: endpoint.into(), who, reason }),
        }
    };
    let talk = tokio::time::timeout_at(until, talk).await;
    talk.unwrap_or_else(|_| Err(unreachable(&"no answer by the deadline")))
}
