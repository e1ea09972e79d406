//! What the tests start beside themselves: the store of a job, or one of its ranks. The environment says which.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

#[path = "../common/mod.rs"]
mod common;
mod numbers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::identity;
use reclora_comm::rendezvous::{JoinConfig, Store, StoreConfig, join};
use reclora_comm::{CommError, Communicator, Identity, Secret, Wire, tree};

fn environment(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: this program is started by tests"))
}

fn number(name: &str) -> u64 {
    environment(name).parse().unwrap()
}

fn seconds(name: &str) -> Duration {
    Duration::from_secs(number(name))
}

fn main() {
    match environment("TEST_ROLE").as_str() {
        "store" => store(),
        #[cfg(feature = "nccl")]
        "nccl" => nccl::rank(),
        _ => rank(),
    }
}

fn store() {
    let bind: SocketAddr = environment("TEST_STORE").parse().unwrap();
    let config = StoreConfig {
        bind,
        world_size: number("TEST_WORLD_SIZE") as usize,
        secret: Secret::from_hex(&environment("TEST_SECRET")).unwrap(),
        identity: identity(),
        deadline: seconds("TEST_DEADLINE"),
    };
    let _store = Store::start(config).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

/// How this rank joins the job.
fn config() -> JoinConfig {
    JoinConfig {
        endpoint: environment("TEST_STORE"),
        rank: number("TEST_RANK") as usize,
        world_size: number("TEST_WORLD_SIZE") as usize,
        secret: Secret::from_hex(&environment("TEST_SECRET")).unwrap(),
        identity: Identity { build_id: environment("TEST_BUILD"), ..identity() },
        deadline: seconds("TEST_DEADLINE"),
        timeout: seconds("TEST_TIMEOUT"),
        wire: Wire::F32,
        listen_host: environment("TEST_HOST").parse().unwrap(),
    }
}

/// Sums over TCP, and says in a file how that ended.
fn rank() {
    let directory = PathBuf::from(environment("TEST_DIRECTORY"));
    let said = match sums(&directory) {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{:?} {error}", error.culprits()),
    };
    std::fs::write(directory.join(format!("said_{}", number("TEST_RANK"))), said).unwrap();
}

/// Sums until the test says that it is enough, or until one fails.
fn sums(directory: &Path) -> Result<(), CommError> {
    /// Values in a sum.
    const LENGTH: usize = 300_000;
    let mut comm = join(config())?;
    let leaf = |rank| numbers::of(rank, LENGTH);
    let expected = tree::sum((0..comm.world_size()).map(leaf).collect()).unwrap();
    for round in 0.. {
        let mut buffer = leaf(comm.rank());
        comm.all_reduce_sum(&format!("gradient of round {round}"), &mut buffer)?;
        assert!(buffer.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
        if round == 2 {
            std::fs::write(directory.join(format!("sums_{}", comm.rank())), "").unwrap();
        }
        let mut enough = vec![u8::from(directory.join("enough").exists())];
        comm.broadcast("enough", 0, &mut enough)?;
        if enough == [1] {
            break;
        }
    }
    Ok(())
}

#[cfg(feature = "nccl")]
mod nccl {
    use std::process::Command;

    use reclora_comm::rendezvous::join;
    use reclora_comm::{Communicator, NcclCommunicator, Reduction, TcpCommunicator};

    use super::{config, environment, numbers};

    type Comm = NcclCommunicator<TcpCommunicator>;

    /// Sums over NCCL, and says in a file what came of it.
    pub fn rank() {
        let what = environment("TEST_WORK");
        let config = config();
        let (rank, timeout) = (config.rank, config.timeout);
        let control = join(config).unwrap();
        let reduction = match what.as_str() {
            "fastest" => Reduction::Fastest,
            _ => Reduction::Canonical,
        };
        let mut comm = NcclCommunicator::new(control, rank, reduction, timeout);
        let said = match work(&what, rank, &mut comm) {
            Ok(said) => format!("ok {said}"),
            Err(error) => format!("error {error}"),
        };
        std::fs::write(environment("TEST_OUTPUT"), said).unwrap();
    }

    /// The work of one rank: sums, and then what goes wrong in this test.
    fn work(what: &str, rank: usize, comm: &mut Comm) -> Result<String, String> {
        if what == "ends early" && rank == 1 {
            return Ok("ended".to_owned());
        }
        let mut bits = Vec::new();
        for length in numbers::LENGTHS {
            bits.extend(summed(comm, length)?.into_iter().map(f32::to_bits));
        }
        match what {
            "another length" => summed(comm, 10 + usize::from(rank == 1)).map(drop)?,
            "killed" if rank == 1 => signal_self("-KILL"),
            "stopped" if rank == 1 => signal_self("-STOP"),
            "killed" | "stopped" => summed(comm, 64).map(drop)?,
            _ => {}
        }
        Ok(format!("{bits:?}"))
    }

    fn summed(comm: &mut Comm, length: usize) -> Result<Vec<f32>, String> {
        let mut buffer = numbers::of(comm.rank(), length);
        comm.all_reduce_sum("gradient", &mut buffer).map_err(|error| error.to_string())?;
        Ok(buffer)
    }

    fn signal_self(name: &str) {
        // The shell's own kill: a bare machine may have no other.
        let command = format!("kill {name} {}", std::process::id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }
}
