//! Ranks as threads, connected over TCP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use reclora_comm::rendezvous::{JoinConfig, Store, StoreConfig, join};
use reclora_comm::{Identity, Secret, TcpCommunicator, Wire};

/// What each of so many ranks does.
pub fn with_ranks<T: Send>(
    world_size: usize,
    work: impl Fn(TcpCommunicator) -> T + Sync,
) -> Vec<T> {
    let secret = Secret::generate().unwrap();
    let identity = Identity { build_id: String::new(), config_hash: String::new() };
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let deadline = Duration::from_secs(20);
    let store = Store::start(StoreConfig {
        bind: SocketAddr::new(host, 0),
        world_size,
        secret: secret.clone(),
        identity: identity.clone(),
        deadline,
    })
    .unwrap();
    let run = |rank| {
        let config = JoinConfig {
            endpoint: store.address().to_string(),
            rank,
            world_size,
            secret: secret.clone(),
            identity: identity.clone(),
            deadline,
            timeout: deadline,
            wire: Wire::F32,
            listen_host: host,
        };
        work(join(config).unwrap())
    };
    let run = &run;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || run(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
