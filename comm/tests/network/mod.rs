//! Machines that are network namespaces: one for each rank, joined by cables (veth pairs) to a switch (a
//! bridge) in a namespace of its own. Nothing of the real network is touched; needs root and `ip`.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::skip::skip;

/// Namespaces of one test; gone with it.
pub struct Network {
    id: String,
    ranks: usize,
}

impl Network {
    /// `None` where namespaces can't be made: the test is skipped.
    pub fn new(ranks: usize) -> Option<Self> {
        static NETWORKS: AtomicUsize = AtomicUsize::new(0);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let network = Self { id: format!("rl{}n{number}", std::process::id()), ranks };
        let switch = network.switch();
        if let Err(error) = try_ip(&["netns", "add", &switch]) {
            eprintln!("{error}");
            skip("needs root and the program ip (iproute2): makes network namespaces");
            return None;
        }
        let in_switch = |arguments: &str| {
            let words: Vec<&str> = arguments.split(' ').collect();
            ip(&[&["-n", &switch], &words[..]].concat());
        };
        in_switch("link set lo up");
        in_switch("link add br0 type bridge");
        in_switch("link set br0 up");
        in_switch("addr add 10.66.0.254/24 dev br0");
        in_switch("addr add fd66::254/64 dev br0 nodad");
        for rank in 0..ranks {
            let machine = network.machine(rank);
            ip(&["netns", "add", &machine]);
            in_switch(&format!("link add cable{rank} type veth peer name eth0 netns {machine}"));
            in_switch(&format!("link set cable{rank} master br0 up"));
            for arguments in [
                "link set lo up".to_owned(),
                "link set eth0 up".to_owned(),
                format!("addr add 10.66.0.{}/24 dev eth0", rank + 1),
                format!("addr add fd66::{}/64 dev eth0 nodad", rank + 1),
            ] {
                let words: Vec<&str> = arguments.split(' ').collect();
                ip(&[&["-n", &machine], &words[..]].concat());
            }
        }
        Some(network)
    }

    /// Name of the namespace of the switch.
    pub fn switch(&self) -> String {
        format!("{}s", self.id)
    }

    /// Name of a rank's namespace.
    pub fn machine(&self, rank: usize) -> String {
        format!("{}m{rank}", self.id)
    }

    /// Pulls a rank's cable out, or puts it in again.
    pub fn cable(&self, rank: usize, state: &str) {
        ip(&["-n", &self.switch(), "link", "set", &format!("cable{rank}"), state]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in (0..self.ranks).map(|rank| self.machine(rank)).chain([self.switch()]) {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

/// A command that runs in a namespace.
pub fn within(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

fn ip(arguments: &[&str]) {
    try_ip(arguments).unwrap_or_else(|error| panic!("{error}"));
}

fn try_ip(arguments: &[&str]) -> Result<(), String> {
    let said = match Command::new("ip").args(arguments).output() {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    Err(format!("ip {}: {said}", arguments.join(" ")))
}

/// Waits until `done`; a panic that says `what` at the deadline.
pub fn wait(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
