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

mod ranks;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use ranks::{HOST, argument, median, number, repeat, start, sums, this_rank};
use reclora_comm::{Communicator, TcpCommunicator};

fn main() {
    match this_rank() {
        Some(comm) => work(comm),
        None => {
            let arguments: Vec<String> = std::env::args().skip(1).collect();
            print!("{}", start(number("ranks", "2"), &arguments));
        }
    }
}

fn work(mut comm: TcpCommunicator) {
    let length = number("mb", "16") * 1_000_000 / size_of::<f32>();
    let seconds = Duration::from_secs(number("seconds", "2") as u64);
    let what = argument("what", "all_reduce");
    let times = match what.as_str() {
        "all_reduce" => sums(&mut comm, length, seconds),
        "sockets" => {
            let mut sockets = Sockets::open(&mut comm, length * size_of::<f32>());
            repeat(&mut comm, seconds, |_| sockets.exchange())
        }
        other => panic!("what={other}: all_reduce or sockets"),
    };
    if comm.rank() == 0 {
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        let (ranks, seconds) = (comm.world_size(), median(&times));
        let rate = (length * size_of::<f32>()) as f64 / seconds / 1e9;
        println!(
            "{{\"what\": \"{what}\", \"ranks\": {ranks}, \"seconds\": {seconds:.6}, \"best\": {best:.6}, \
             \"times\": {}, \"gb_per_second\": {rate:.3}}}",
            times.len(),
        );
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
