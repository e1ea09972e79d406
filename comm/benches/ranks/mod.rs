//! Ranks of a benchmark: this program again, once for each.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reclora_comm::rendezvous::{JoinConfig, Store, StoreConfig, join};
use reclora_comm::{Communicator, Identity, Secret, TcpCommunicator, Wire};

pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LIMIT: Duration = Duration::from_secs(120);

/// The value of `name=value` among the arguments, or a default.
pub fn argument(name: &str, default: &str) -> String {
    let prefix = format!("{name}=");
    let found = std::env::args().find_map(|a| a.strip_prefix(&prefix).map(str::to_owned));
    found.unwrap_or_else(|| default.to_owned())
}

/// The same, as a number.
pub fn number(name: &str, default: &str) -> usize {
    argument(name, default).parse().unwrap_or_else(|_| panic!("{name}: not a number"))
}

fn identity() -> Identity {
    Identity { build_id: String::new(), config_hash: String::new() }
}

/// The communicator of this process, where it is a rank.
pub fn this_rank() -> Option<TcpCommunicator> {
    let rank = std::env::var("BENCH_RANK").ok()?.parse().unwrap();
    let get = |name: &str| std::env::var(name).unwrap();
    let config = JoinConfig {
        endpoint: get("BENCH_STORE"),
        rank,
        world_size: get("BENCH_RANKS").parse().unwrap(),
        secret: Secret::from_hex(&get("BENCH_SECRET")).unwrap(),
        identity: identity(),
        deadline: LIMIT,
        timeout: LIMIT,
        wire: Wire::F32,
        listen_host: HOST,
    };
    Some(join(config).unwrap())
}

/// Starts the ranks with the arguments, and returns what rank 0 printed.
pub fn start(ranks: usize, arguments: &[String]) -> String {
    let secret = Secret::generate().unwrap();
    let config = StoreConfig {
        bind: SocketAddr::new(HOST, 0),
        world_size: ranks,
        secret: secret.clone(),
        identity: identity(),
        deadline: LIMIT,
    };
    let store = Store::start(config).unwrap();
    let spawn = |rank: usize| -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(arguments)
            .env("BENCH_RANK", rank.to_string())
            .env("BENCH_RANKS", ranks.to_string())
            .env("BENCH_STORE", store.address().to_string())
            .env("BENCH_SECRET", secret.to_hex())
            .stdout(if rank == 0 { Stdio::piped() } else { Stdio::null() })
            .spawn()
            .unwrap()
    };
    let children: Vec<Child> = (0..ranks).map(spawn).collect();
    let mut said = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "a rank failed");
        said.extend(output.stdout);
    }
    String::from_utf8(said).unwrap()
}

/// Sums a buffer for so long; seconds of each sum.
pub fn sums(comm: &mut TcpCommunicator, length: usize, limit: Duration) -> Vec<f64> {
    let ranks = comm.world_size() as f32;
    let mut buffer = vec![1.0f32; length];
    let times = repeat(comm, limit, |comm| {
        comm.all_reduce_sum("buffer", &mut buffer).unwrap();
        // Back to one: a power of two divides exactly.
        buffer[0] /= ranks;
    });
    assert_eq!(buffer[0], 1.0, "the sum of ones");
    times
}

/// Does it for so long, after two that do not count; every rank equally often. Seconds of each.
pub fn repeat(
    comm: &mut TcpCommunicator,
    limit: Duration,
    mut once: impl FnMut(&mut TcpCommunicator),
) -> Vec<f64> {
    let mut times = Vec::new();
    let mut begun = Instant::now();
    loop {
        comm.barrier("ready").unwrap();
        let start = Instant::now();
        once(comm);
        times.push(start.elapsed().as_secs_f64());
        if times.len() == 2 {
            begun = Instant::now();
        }
        let enough = times.len() > 4 && begun.elapsed() > limit;
        let mut over = vec![u8::from(enough)];
        comm.broadcast("over", 0, &mut over).unwrap();
        if over == [1] {
            return times.split_off(2);
        }
    }
}

/// The middle one.
pub fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
