//! What goes wrong between machines: every survivor returns an error that names the rank, in time (S-2).
//!
//! Every rank is a process (`processes/`) in a namespace of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reclora_comm::Secret;
use tempfile::TempDir;

use crate::common::identity;
use crate::network::{Network, wait, within};

/// How long a rank waits for the others in one collective.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long after that a survivor may take to end.
const SLACK: Duration = Duration::from_secs(2);
/// How long the ranks have to find each other.
const MEETING: Duration = Duration::from_secs(5);
const PORT: u16 = 29_500;

/// A job on as many machines as ranks.
struct Machines {
    network: Network,
    directory: TempDir,
    ranks: Vec<Child>,
    store: Child,
}

impl Machines {
    fn start(world_size: usize, change: impl Fn(usize, &mut Command)) -> Option<Self> {
        Self::on("10.66.0.", world_size, change)
    }

    /// With addresses that begin so.
    fn on(net: &str, world_size: usize, change: impl Fn(usize, &mut Command)) -> Option<Self> {
        let network = Network::new(world_size)?;
        let directory = tempfile::tempdir().unwrap();
        let secret = Secret::generate().unwrap().to_hex();
        let store = match net.contains(':') {
            true => format!("[{net}254]:{PORT}"),
            false => format!("{net}254:{PORT}"),
        };
        let process = |namespace: &str, role: &str| {
            let mut command = within(namespace, env!("CARGO_BIN_EXE_test-process"));
            command
                .env("TEST_ROLE", role)
                .env("TEST_STORE", &store)
                .env("TEST_SECRET", &secret)
                .env("TEST_WORLD_SIZE", world_size.to_string())
                .env("TEST_BUILD", identity().build_id)
                .env("TEST_DIRECTORY", directory.path())
                .env("TEST_DEADLINE", MEETING.as_secs().to_string())
                .env("TEST_TIMEOUT", TIMEOUT.as_secs().to_string())
                .stdout(Stdio::null());
            command
        };
        let start_rank = |rank: usize| {
            let mut command = process(&network.machine(rank), "rank");
            command.env("TEST_RANK", rank.to_string());
            command.env("TEST_HOST", format!("{net}{}", rank + 1));
            change(rank, &mut command);
            command.spawn().unwrap()
        };
        let store = process(&network.switch(), "store").spawn().unwrap();
        let ranks = (0..world_size).map(start_rank).collect();
        Some(Self { network, directory, ranks, store })
    }

    fn file(&self, name: &str, rank: usize) -> PathBuf {
        self.directory.path().join(format!("{name}_{rank}"))
    }

    fn wait_until_all_sum(&self) {
        let limit = MEETING + Duration::from_secs(20);
        wait("the first sums", limit, || {
            (0..self.ranks.len()).all(|rank| self.file("sums", rank).exists())
        });
    }

    fn signal(&self, rank: usize, name: &str) {
        let command = format!("kill {name} {}", self.ranks[rank].id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }

    /// What these ranks said, all within the limit.
    fn said(&mut self, ranks: &[usize], limit: Duration) -> Vec<String> {
        let files: Vec<PathBuf> = ranks.iter().map(|rank| self.file("said", *rank)).collect();
        let ended = |child: &mut Child| child.try_wait().unwrap().is_some();
        wait(&format!("the end of ranks {ranks:?}"), limit, || {
            ranks.iter().all(|&rank| ended(&mut self.ranks[rank]))
        });
        files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
    }

    /// The error of each survivor names this rank, and no other.
    fn survivors_name(&mut self, culprit: usize) {
        let survivors: Vec<usize> = (0..self.ranks.len()).filter(|rank| *rank != culprit).collect();
        for said in self.said(&survivors, TIMEOUT + SLACK) {
            assert!(said.starts_with(&format!("[{culprit}] ")), "{said}");
        }
    }

    fn is_enough(&mut self) {
        std::fs::write(self.directory.path().join("enough"), "").unwrap();
        let ranks: Vec<usize> = (0..self.ranks.len()).collect();
        for said in self.said(&ranks, Duration::from_secs(20)) {
            assert_eq!(said, "done");
        }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for process in self.ranks.iter_mut().chain([&mut self.store]) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn s2_a_killed_rank_is_named_by_all_others() {
    let Some(mut machines) = Machines::start(4, |_, _| ()) else { return };
    machines.wait_until_all_sum();
    machines.signal(2, "-KILL");
    machines.survivors_name(2);
}

#[test]
fn s2_a_stopped_rank_is_named_by_all_others() {
    let Some(mut machines) = Machines::start(4, |_, _| ()) else { return };
    machines.wait_until_all_sum();
    machines.signal(1, "-STOP");
    machines.survivors_name(1);
}

#[test]
fn s2_a_rank_whose_cable_is_cut_is_named_by_all_others_and_ends_too() {
    let Some(mut machines) = Machines::start(4, |_, _| ()) else { return };
    machines.wait_until_all_sum();
    machines.network.cable(3, "down");
    let cut = Instant::now();
    machines.survivors_name(3);
    // Cut off, it sees those gone whose part it did not get before the cut.
    let left = (TIMEOUT + SLACK).saturating_sub(cut.elapsed());
    let said = machines.said(&[3], left).concat();
    let (culprits, error) = said.split_once(' ').unwrap();
    assert!(culprits != "[]" && !culprits.contains('3') && error.contains("waited 3s"), "{said}");
}

/// The other side vanishes without a word: a machine without power.
#[test]
fn s2_a_half_open_connection_is_noticed_and_its_rank_named() {
    let Some(mut machines) = Machines::start(4, |_, _| ()) else { return };
    machines.wait_until_all_sum();
    machines.network.cable(0, "down");
    machines.signal(0, "-KILL");
    machines.survivors_name(0);
}

#[test]
fn d2_a_cut_that_is_shorter_than_the_deadline_is_survived() {
    let Some(mut machines) = Machines::start(2, |_, _| ()) else { return };
    machines.wait_until_all_sum();
    machines.network.cable(1, "down");
    std::thread::sleep(Duration::from_secs(1));
    machines.network.cable(1, "up");
    machines.is_enough();
}

#[test]
fn ranks_meet_over_ipv6() {
    let Some(mut machines) = Machines::on("fd66::", 2, |_, _| ()) else { return };
    machines.wait_until_all_sum();
    machines.is_enough();
}

#[test]
fn s3_a_rank_without_the_secret_is_refused_and_named_as_missing() {
    let other = Secret::generate().unwrap().to_hex();
    let change = |rank: usize, command: &mut Command| {
        if rank == 1 {
            command.env("TEST_SECRET", &other);
        }
    };
    let Some(mut machines) = Machines::start(3, change) else { return };
    let said = machines.said(&[0, 1, 2], MEETING + SLACK + SLACK);
    assert!(said[1].contains("does not know this job's secret"), "{}", said[1]);
    for rank in [0, 2] {
        assert!(said[rank].contains("waited 5s for rank 1"), "{}", said[rank]);
    }
}

#[test]
fn a_rank_of_another_build_is_refused_and_named_as_missing() {
    let change = |rank: usize, command: &mut Command| {
        if rank == 2 {
            command.env("TEST_BUILD", "build-0");
        }
    };
    let Some(mut machines) = Machines::start(3, change) else { return };
    let said = machines.said(&[0, 1, 2], MEETING + SLACK + SLACK);
    assert!(said[2].contains("its build is build-0, the job's is build-1"), "{}", said[2]);
    for rank in [0, 1] {
        assert!(said[rank].contains("waited 5s for rank 2"), "{}", said[rank]);
    }
}
