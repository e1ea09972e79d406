//! Where ranks meet: a [`Store`] in the launcher, and [`join`] in every rank.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use crate::config::{JoinConfig, StoreConfig};
use crate::error::{CommError, Result};
use crate::handshake::{HANDSHAKE_LIMIT, Identity, Purpose, admit, dial, receive, send};
use crate::mesh;
use crate::service::{Service, runtime};
use crate::tcp::TcpCommunicator;

/// How long after the store's deadline a rank still waits for the store's reason.
const GRACE: Duration = Duration::from_secs(2);

/// What a rank tells the store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    rank: usize,
    world_size: usize,
    identity: Identity,
    address: SocketAddr,
}

/// What the store answers: where every rank listens, in rank order, or why this rank can't take part.
pub(crate) type Answer = std::result::Result<Vec<SocketAddr>, String>;

/// The meeting point of one job: lives until dropped.
#[derive(Debug)]
pub struct Store(Service);

impl Store {
    /// Listens and serves in a thread of its own.
    ///
    /// # Errors
    /// When the address can't be listened on (a port in use), or the system gives no thread.
    pub fn start(config: StoreConfig) -> Result<Store> {
        if config.world_size == 0 {
            return Err(CommError::Config("a job has at least one rank".into()));
        }
        Service::start(config.bind, "rendezvous", |listener| serve(listener, config)).map(Self)
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

async fn serve(listener: TcpListener, config: StoreConfig) {
    let (candidates, mut arrived) = mpsc::channel(64);
    let admit = admit(listener, Purpose::Store, config.secret.clone(), candidates);
    let gather = async {
        let mut gathering = Gathering { config: &config, ranks: BTreeMap::new(), over: None };
        let deadline = Instant::now() + config.deadline;
        loop {
            tokio::select! {
                Some((request, stream, _)) = arrived.recv() => gathering.arrive(request, stream).await,
                () = sleep_until(deadline), if gathering.over.is_none() => gathering.give_up().await,
            }
        }
    };
    tokio::join!(admit, gather);
}

/// The ranks that have come so far.
struct Gathering<'a> {
    config: &'a StoreConfig,
    ranks: BTreeMap<usize, (SocketAddr, TcpStream)>,
    /// Why nobody is let in any more.
    over: Option<String>,
}

impl Gathering<'_> {
    async fn arrive(&mut self, request: Request, mut stream: TcpStream) {
        if let Some(reason) = self.refusal(&request) {
            answer(&mut stream, &Err(reason)).await;
            return;
        }
        self.ranks.insert(request.rank, (request.address, stream));
        if self.ranks.len() == self.config.world_size {
            let addresses = self.ranks.values().map(|(address, _)| *address).collect();
            self.finish(Ok(addresses), "all ranks have come already").await;
        }
    }

    fn refusal(&self, request: &Request) -> Option<String> {
        let world_size = self.config.world_size;
        if let Some(reason) = self.config.identity.refusal(&request.identity) {
            return Some(reason);
        }
        if request.world_size != world_size {
            return Some(format!(
                "it expects {} ranks, the job has {world_size}",
                request.world_size
            ));
        }
        if request.rank >= world_size {
            return Some(format!("the job has ranks 0 to {}", world_size - 1));
        }
        if let Some(reason) = &self.over {
            return Some(reason.clone());
        }
        self.ranks.contains_key(&request.rank).then(|| "this rank has come already".into())
    }

    async fn give_up(&mut self) {
        let missing: Vec<_> =
            (0..self.config.world_size).filter(|rank| !self.ranks.contains_key(rank)).collect();
        let error = CommError::Rendezvous { missing, timeout: self.config.deadline };
        self.finish(Err(error.to_string()), "it came after the deadline").await;
    }

    async fn finish(&mut self, last: Answer, over: &str) {
        for (_, (_, mut stream)) in std::mem::take(&mut self.ranks) {
            answer(&mut stream, &last).await;
        }
        self.over = Some(over.into());
    }
}

/// Answers, but is not held up by a peer that does not read.
async fn answer(stream: &mut TcpStream, answer: &Answer) {
    let _ = timeout(HANDSHAKE_LIMIT, send(stream, "a rank", answer)).await;
}

/// Joins the job at `config.endpoint` and connects to all its other ranks.
///
/// # Errors
/// The store can't be reached or does not know the secret; it refuses this rank (another build or
/// config, a rank that has come already); some ranks did not come by the deadline (named).
pub fn join(config: JoinConfig) -> Result<TcpCommunicator> {
    let JoinConfig { rank, world_size, .. } = config;
    if rank >= world_size {
        return Err(CommError::NoSuchRank { collective: "rendezvous".into(), rank, world_size });
    }
    let runtime = runtime()?;
    let streams = runtime.block_on(meet(&config))?;
    Ok(TcpCommunicator::start(runtime, rank, streams, config.timeout, config.wire))
}

async fn meet(config: &JoinConfig) -> Result<Vec<Option<TcpStream>>> {
    let until = Instant::now() + config.deadline + GRACE;
    let local = SocketAddr::new(config.listen_host, 0);
    let bind = |why: std::io::Error| CommError::bind(local, why);
    let listener = TcpListener::bind(local).await.map_err(bind)?;
    let request = Request {
        rank: config.rank,
        world_size: config.world_size,
        identity: config.identity.clone(),
        address: listener.local_addr().map_err(bind)?,
    };
    let asked = timeout_at(until, ask(config, &request)).await;
    let within = config.deadline + GRACE;
    let no_answer =
        |_| CommError::unreachable(&config.endpoint, format!("no answer within {within:?}"));
    match asked.map_err(no_answer)?? {
        Ok(addresses) if addresses.len() == config.world_size => {
            mesh::form(config, &addresses, listener).await
        }
        Ok(addresses) => {
            let what = format!("{} addresses for {} ranks", addresses.len(), config.world_size);
            Err(CommError::malformed(&config.endpoint, what))
        }
        Err(reason) => {
            let (endpoint, who) = (config.endpoint.clone(), format!("rank {}", config.rank));
            Err(CommError::Refused { endpoint, who, reason })
        }
    }
}

async fn ask(config: &JoinConfig, request: &Request) -> Result<Answer> {
    let endpoint = config.endpoint.as_str();
    let mut stream = loop {
        match TcpStream::connect(endpoint).await {
            Ok(stream) => break stream,
            // The store may not be there yet: the caller's deadline bounds this.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(CommError::unreachable(endpoint, error)),
        }
    };
    dial(&mut stream, endpoint, Purpose::Store, &config.secret, request).await?;
    receive(&mut stream, endpoint).await
}
