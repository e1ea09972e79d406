//! Who may join, who is refused and why, and that strangers hold nobody up (S-2, S-3).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::common::{HOST, Job, identity};
use reclora_comm::rendezvous::{JoinConfig, Store, StoreConfig, join};
use reclora_comm::{CommError, Communicator, Identity, PROTOCOL_VERSION, Secret};

#[test]
fn s3_another_jobs_secret_is_refused_by_the_rank_itself() {
    let job = Job::new(1);
    let config = JoinConfig { secret: Secret::generate().unwrap(), ..job.config(0) };
    let error = join(config).unwrap_err();
    assert!(matches!(error, CommError::WrongSecret { .. }), "{error}");
}

#[test]
fn another_build_or_config_is_refused_with_both_values() {
    let job = Job::new(1);
    let build = Identity { build_id: "build-2".into(), ..identity() };
    let error = join(JoinConfig { identity: build, ..job.config(0) }).unwrap_err();
    assert!(
        error.to_string().ends_with("refused rank 0: its build is build-2, the job's is build-1"),
        "{error}"
    );
    let other = Identity { config_hash: "config-2".into(), ..identity() };
    let error = join(JoinConfig { identity: other, ..job.config(0) }).unwrap_err();
    assert!(error.to_string().contains("config-2, the job's is config-1"), "{error}");
}

#[test]
fn duplicate_late_and_impossible_ranks_are_refused() {
    let job = Job::new(1);
    let config = JoinConfig { rank: 5, world_size: 6, ..job.config(0) };
    assert!(join(config).unwrap_err().to_string().contains("it expects 6 ranks, the job has 1"));
    drop(join(job.config(0)).unwrap());
    let error = join(job.config(0)).unwrap_err();
    assert!(error.to_string().ends_with("all ranks have come already"), "{error}");

    let pair = Job::with_deadline(2, Duration::from_secs(1));
    std::thread::scope(|scope| {
        let both: Vec<_> =
            (0..2).map(|_| scope.spawn(|| join(pair.config(0)).unwrap_err().to_string())).collect();
        let errors: Vec<_> = both.into_iter().map(|rank| rank.join().unwrap()).collect();
        assert!(errors.iter().any(|e| e.ends_with("this rank has come already")), "{errors:?}");
        assert!(errors.iter().any(|e| e.contains("for rank 1;")), "{errors:?}");
    });
}

#[test]
fn s2_the_ranks_that_did_not_come_are_named() {
    let job = Job::with_deadline(4, Duration::from_millis(400));
    std::thread::scope(|scope| {
        for rank in [0, 2] {
            let job = &job;
            scope.spawn(move || {
                let error = join(job.config(rank)).unwrap_err().to_string();
                assert!(error.contains("waited 400ms for ranks 1, 3;"), "{error}");
            });
        }
    });
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let taken = TcpListener::bind((HOST, 0)).unwrap();
    let bind: SocketAddr = taken.local_addr().unwrap();
    let error = Store::start(StoreConfig {
        bind,
        world_size: 1,
        secret: Secret::generate().unwrap(),
        identity: identity(),
        deadline: Duration::from_secs(1),
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&bind.to_string()) && text.contains("can't listen on"), "{text}");
}

#[test]
fn a_store_that_is_not_there_is_an_error_at_the_deadline() {
    let job = Job::new(2);
    let endpoint = TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap().to_string();
    let begun = Instant::now();
    let deadline = Duration::from_millis(200);
    let error = join(JoinConfig { endpoint, deadline, ..job.config(0) }).unwrap_err();
    assert!(matches!(error, CommError::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(6));
}

#[test]
fn s3_garbage_oversized_and_silent_connections_hold_nobody_up() {
    let job = Job::new(2);
    let address = job.store.address();
    let mut silent = Vec::new();
    for round in 0..40u64 {
        let mut stream = TcpStream::connect(address).unwrap();
        match round % 4 {
            0 => stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap(),
            1 => stream.write_all(&u64::MAX.to_le_bytes()).unwrap(),
            2 => {
                stream.write_all(&60u64.to_le_bytes()).unwrap();
                stream.write_all(&[round as u8; 60]).unwrap();
            }
            _ => {}
        }
        silent.push(stream);
    }
    let begun = Instant::now();
    let sums = job.run(|mut comm| {
        let mut buffer = [comm.rank() as f32 + 1.0];
        comm.all_reduce_sum("sum", &mut buffer).unwrap();
        buffer[0]
    });
    assert_eq!(sums, [3.0, 3.0]);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // Whoever sent nonsense is cut off.
    silent[1].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(silent[1].read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn s2_dropping_the_store_ends_it_and_frees_its_port() {
    let job = Job::new(2);
    let address = job.store.address();
    drop(job);
    TcpListener::bind(address).unwrap();
}

/// A frame: its length, then its bytes.
fn frame(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 8];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; u64::from_le_bytes(length) as usize];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// A rank of an older program: the store says which version it speaks, and goes on waiting.
#[test]
fn a_rank_of_another_protocol_version_is_told_and_the_others_name_it() {
    let job = Job::with_deadline(2, Duration::from_secs(1));
    let mut stranger = TcpStream::connect(job.store.address()).unwrap();
    let hello = [&b"RECLORA\n"[..], &[1], &[7; 32]].concat();
    stranger.write_all(&frame(&hello)).unwrap();
    // The variant "version", and the version.
    assert_eq!(read_frame(&mut stranger), [1, PROTOCOL_VERSION as u8]);
    let error = join(job.config(0)).unwrap_err().to_string();
    assert!(error.contains("waited 1s for rank 1"), "{error}");
}

/// A store of a newer program.
#[test]
fn a_job_of_another_protocol_version_is_refused_with_both_versions() {
    let listener = TcpListener::bind(SocketAddr::new(HOST, 0)).unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let store = std::thread::spawn(move || {
        let (mut rank, _) = listener.accept().unwrap();
        read_frame(&mut rank);
        rank.write_all(&frame(&[1, 99])).unwrap();
    });
    let begun = Instant::now();
    let job = Job::new(1);
    let error = join(JoinConfig { endpoint, ..job.config(0) }).unwrap_err().to_string();
    let expected = format!("it speaks protocol 99, this rank {PROTOCOL_VERSION}");
    assert!(error.ends_with(&expected), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    store.join().unwrap();
}
