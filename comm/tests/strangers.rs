//! Ten thousand connections of strangers while a job meets and works: nothing changes (S-3).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{HOST, Job};
use reclora_comm::rendezvous::join;
use reclora_comm::{Communicator, tree};

const STRANGERS: usize = 10_000;
const RANKS: usize = 4;
const LENGTH: usize = 20_000;
/// By how much the memory of this process may grow, the job's and the strangers' own included.
const GROWTH_KIB: usize = 64 * 1024;

fn leaf(rank: usize, round: usize) -> Vec<f32> {
    (0..LENGTH).map(|i| ((i * 31 + rank * 17 + round) % 997) as f32 * 1e-2 - 3.0).collect()
}

/// A line of `/proc/self/status`, in KiB.
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Ports on which this process listens.
fn listening() -> BTreeSet<u16> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let port = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = words.get(1)?.split_once(':')?;
        let here = address == "0100007F" && *words.get(3)? == "0A";
        here.then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    table.lines().filter_map(port).collect()
}

/// What a rank of another job of the same kind said to its store.
fn recorded() -> Vec<u8> {
    let job = Job::new(1);
    let proxy = TcpListener::bind(SocketAddr::new(HOST, 0)).unwrap();
    let endpoint = proxy.local_addr().unwrap().to_string();
    let address = job.store.address();
    std::thread::scope(|scope| {
        let recording = scope.spawn(move || {
            let (mut rank, _) = proxy.accept().unwrap();
            let mut store = TcpStream::connect(address).unwrap();
            let (mut from_store, mut to_rank) =
                (store.try_clone().unwrap(), rank.try_clone().unwrap());
            scope.spawn(move || std::io::copy(&mut from_store, &mut to_rank));
            let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
            while let Ok(count) = rank.read(&mut chunk) {
                said.extend_from_slice(&chunk[..count]);
                if count == 0 || store.write_all(&chunk[..count]).is_err() {
                    break;
                }
            }
            said
        });
        let config = reclora_comm::rendezvous::JoinConfig { endpoint, ..job.config(0) };
        drop(join(config).unwrap());
        drop(job);
        recording.join().unwrap()
    })
}

/// One stranger. Those who stay are returned.
fn visit(number: usize, port: u16, recorded: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect((HOST, port)).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let hash = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let noise: Vec<u8> = (0..64).map(|i| (hash >> (i % 57)) as u8).collect();
    let frame = |length: u64, bytes: &[u8]| [&length.to_le_bytes()[..], bytes].concat();
    // Errors are the other side's right: it may close at any moment.
    let _ = match number % 8 {
        0 => Ok(()),
        1 => stream.write_all(&noise),
        2 => stream.write_all(&frame(u64::MAX, &noise)),
        3 => stream.write_all(&frame(noise.len() as u64, &noise)),
        4 => stream.write_all(recorded),
        5 => stream.write_all(&recorded[..recorded.len() / 2]),
        // As long as a frame may be, and never sent.
        6 => stream.write_all(&frame(64 * 1024, &noise)),
        _ => stream.write_all(b"GET / HTTP/1.1\r\n\r\n"),
    };
    (number % 100 == 6).then_some(stream)
}

#[test]
fn s3_ten_thousand_strangers_change_nothing() {
    let recorded = recorded();
    assert!(recorded.len() > 100, "a handshake was recorded");
    let before = status("VmRSS");
    let job = Job::new(RANKS);
    let visited = AtomicUsize::new(0);
    let ports_seen = std::sync::Mutex::new(BTreeSet::from([job.store.address().port()]));
    std::thread::scope(|scope| {
        for stranger in 0..4 {
            let (job, recorded, visited, ports_seen) = (&job, &recorded, &visited, &ports_seen);
            scope.spawn(move || {
                let (mut staying, mut ports) = (Vec::new(), BTreeSet::new());
                for number in (stranger..STRANGERS).step_by(4) {
                    // The store's port, and the ranks' as long as they listen. The list is long to read.
                    if number < 800 || number % 100 < 4 {
                        ports = listening();
                        ports_seen.lock().unwrap().extend(&ports);
                        ports.insert(job.store.address().port());
                    }
                    let port = *ports.iter().nth(number / 4 % ports.len()).unwrap();
                    staying.extend(visit(number, port, recorded));
                    visited.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Strangers come first.
        while visited.load(Ordering::Relaxed) < 200 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let rounds = job.run(|mut comm| {
            let mut round = 0;
            loop {
                let mut sum = leaf(comm.rank(), round);
                comm.all_reduce_sum("gradient", &mut sum).unwrap();
                let expected = tree::sum((0..RANKS).map(|rank| leaf(rank, round)).collect());
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&sum), bits(&expected.unwrap()));
                round += 1;
                let mut done = vec![u8::from(visited.load(Ordering::Relaxed) == STRANGERS)];
                comm.broadcast("done", 0, &mut done).unwrap();
                if done == [1] {
                    return round;
                }
            }
        });
        assert!(rounds[0] > 10, "the job worked meanwhile: {rounds:?} sums");
    });
    assert_eq!(visited.into_inner(), STRANGERS);
    assert!(ports_seen.into_inner().unwrap().len() > RANKS, "ranks were visited while they met");
    let grown = status("VmHWM").saturating_sub(before);
    assert!(grown < GROWTH_KIB, "memory grew by {grown} KiB");
    // The store still knows its own.
    let error = join(job.config(0)).unwrap_err().to_string();
    assert!(error.ends_with("all ranks have come already"), "{error}");
}
