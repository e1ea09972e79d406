//! Speed of a sum over ranks: real processes on this machine, connected over loopback TCP.
//!
//! ```sh
//! cargo bench -p reclora-comm --bench all_reduce -- ranks=2 mb=16 seconds=2
//! cargo bench -p reclora-comm --bench all_reduce -- ranks=2 mb=16 seconds=2 what=sockets
//! ```
//!
//! `what=sockets` moves the same bytes between the same processes and adds nothing: each rank writes to and
//! reads from every other what a sum takes, each connection and direction in a thread of its own. That is
//! what the system can do. The last line is JSON; bandwidth is that of the buffer: its bytes by the time.

#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on says where")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reclora_comm::rendezvous::{JoinConfig, Store, StoreConfig, join};
use reclora_comm::{Communicator, Identity, Secret, TcpCommunicator};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LIMIT: Duration = Duration::from_secs(120);

/// The value of `name=value` among the arguments, or a default.
fn argument(name: &str, default: &str) -> String {
    let prefix = format!("{name}=");
    let found = std::env::args().find_map(|a| a.strip_prefix(&prefix).map(str::to_owned));
    found.unwrap_or_else(|| default.to_owned())
}

fn number(name: &str, default: &str) -> usize {
    argument(name, default).parse().unwrap_or_else(|_| panic!("{name}: not a number"))
}

fn identity() -> Identity {
    Identity { build_id: String::new(), config_hash: String::new() }
}

fn main() {
    let ranks = number("ranks", "2");
    match std::env::var("BENCH_RANK") {
        Ok(rank) => work(rank.parse().unwrap(), ranks),
        Err(_) => start(ranks),
    }
}

/// Starts the ranks and waits for them.
fn start(ranks: usize) {
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
            .args(std::env::args().skip(1))
            .env("BENCH_RANK", rank.to_string())
            .env("BENCH_STORE", store.address().to_string())
            .env("BENCH_SECRET", secret.to_hex())
            .stdout(if rank == 0 { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .unwrap()
    };
    let children: Vec<Child> = (0..ranks).map(spawn).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
}

fn work(rank: usize, ranks: usize) {
    let config = JoinConfig {
        endpoint: std::env::var("BENCH_STORE").unwrap(),
        rank,
        world_size: ranks,
        secret: Secret::from_hex(&std::env::var("BENCH_SECRET").unwrap()).unwrap(),
        identity: identity(),
        deadline: LIMIT,
        timeout: LIMIT,
        listen_host: HOST,
    };
    let mut comm = join(config).unwrap();
    let length = number("mb", "16") * 1_000_000 / size_of::<f32>();
    let seconds = Duration::from_secs(number("seconds", "2") as u64);
    let what = argument("what", "all_reduce");
    let times = match what.as_str() {
        "all_reduce" => {
            let mut buffer = vec![1.0f32; length];
            let times = repeat(&mut comm, seconds, |comm| {
                comm.all_reduce_sum("buffer", &mut buffer).unwrap();
                // Back to ones: a power of two divides exactly.
                buffer[0] /= ranks as f32;
            });
            assert_eq!(buffer[0], 1.0, "the sum of ones");
            times
        }
        "sockets" => {
            let mut sockets = Sockets::open(&mut comm, length * size_of::<f32>());
            repeat(&mut comm, seconds, |_| sockets.exchange())
        }
        other => panic!("what={other}: all_reduce or sockets"),
    };
    if rank == 0 {
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        let bytes = (length * size_of::<f32>()) as f64;
        println!(
            "{{\"what\": \"{what}\", \"ranks\": {ranks}, \"seconds\": {median:.6}, \"best\": {best:.6}, \
             \"times\": {}, \"gb_per_second\": {:.3}}}",
            times.len(),
            bytes / median / 1e9
        );
    }
}

/// Does it for so long, after two that do not count; every rank equally often. Seconds of each.
fn repeat(
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

/// A connection to every other rank, and how many bytes go each way.
struct Sockets {
    streams: Vec<TcpStream>,
    bytes: usize,
}

impl Sockets {
    fn open(comm: &mut TcpCommunicator, buffer: usize) -> Self {
        let (rank, ranks) = (comm.rank(), comm.world_size());
        let listener = TcpListener::bind(SocketAddr::new(HOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let addresses = comm.all_gather("addresses", address.as_bytes()).unwrap();
        let mut streams: Vec<TcpStream> = addresses[..rank]
            .iter()
            .map(|address| TcpStream::connect(std::str::from_utf8(address).unwrap()).unwrap())
            .collect();
        streams.extend((rank + 1..ranks).map(|_| listener.accept().unwrap().0));
        for stream in &streams {
            // As the communicator does between ranks of one machine: with the system's own it is slower.
            socket2::SockRef::from(stream).set_send_buffer_size(192 * 1024).unwrap();
        }
        // A piece of the buffer to be added, and a sum.
        Self { streams, bytes: 2 * (buffer / ranks) }
    }

    fn exchange(&mut self) {
        const CHUNK: usize = 1 << 17;
        std::thread::scope(|scope| {
            for stream in &self.streams {
                let bytes = self.bytes;
                scope.spawn(move || {
                    let (mut stream, chunk) = (stream, vec![1u8; CHUNK]);
                    for start in (0..bytes).step_by(CHUNK) {
                        stream.write_all(&chunk[..CHUNK.min(bytes - start)]).unwrap();
                    }
                });
                scope.spawn(move || {
                    let (mut stream, mut chunk, mut left) = (stream, vec![0u8; CHUNK], bytes);
                    while left > 0 {
                        let count = stream.read(&mut chunk[..CHUNK.min(left)]).unwrap();
                        assert!(count > 0, "a rank has ended");
                        left -= count;
                    }
                });
            }
        });
    }
}
