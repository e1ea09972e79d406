//! A job whose ranks are threads over real loopback sockets.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use reclora_comm::rendezvous::{JoinConfig, Store, StoreConfig, join};
use reclora_comm::{Identity, Result, Secret, TcpCommunicator, Wire};

pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub struct Job {
    pub store: Store,
    pub secret: Secret,
    pub world_size: usize,
}

pub fn identity() -> Identity {
    Identity { build_id: "build-1".into(), config_hash: "config-1".into() }
}

impl Job {
    pub fn new(world_size: usize) -> Self {
        Self::with_deadline(world_size, Duration::from_secs(20))
    }

    pub fn with_deadline(world_size: usize, deadline: Duration) -> Self {
        let secret = Secret::generate().unwrap();
        let store = Store::start(StoreConfig {
            bind: SocketAddr::new(HOST, 0),
            world_size,
            secret: secret.clone(),
            identity: identity(),
            deadline,
        })
        .unwrap();
        Self { store, secret, world_size }
    }

    pub fn config(&self, rank: usize) -> JoinConfig {
        JoinConfig {
            endpoint: self.store.address().to_string(),
            rank,
            world_size: self.world_size,
            secret: self.secret.clone(),
            identity: identity(),
            deadline: Duration::from_secs(20),
            timeout: Duration::from_secs(10),
            wire: Wire::F32,
            listen_host: HOST,
        }
    }

    /// Runs `work` on every rank; the results in rank order.
    pub fn run<T: Send>(&self, work: impl Fn(TcpCommunicator) -> T + Sync) -> Vec<T> {
        self.try_run(|comm| work(comm.unwrap()), |config| config)
    }

    /// The same, with a changed config per rank and the outcome of joining.
    pub fn try_run<T: Send>(
        &self,
        work: impl Fn(Result<TcpCommunicator>) -> T + Sync,
        change: impl Fn(JoinConfig) -> JoinConfig + Sync,
    ) -> Vec<T> {
        let (work, change) = (&work, &change);
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..self.world_size)
                .map(|rank| scope.spawn(move || work(join(change(self.config(rank))))))
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }
}
