//! What the nodes of a job know before they talk: how many they are, where the leader is, and the secret.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, eyre};
use reclora_comm::Secret;
use reclora_storage::hash::xxh3_file;

use crate::error::Result;
use crate::workers::env::SECRET;

/// File of the secret in the run directory, for its owner only.
const SECRET_FILE: &str = ".secret";
/// Between two looks for what another node has to make first.
pub const POLL: Duration = Duration::from_millis(100);

/// How long nodes that are not needed are waited for, before it goes on without them.
const LAST_CALL: Duration = Duration::from_secs(10);

/// Whether the next worker group can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// With so many nodes.
    Go(usize),
    /// Others may come.
    Wait,
    /// They had their time.
    GiveUp,
}

/// A job over several nodes, as one of them knows it.
#[derive(Clone, Debug)]
pub struct Job {
    /// This node.
    pub node: usize,
    /// Number of nodes that may take part.
    pub nodes: usize,
    /// The numbers of nodes with which a stage can be run, ascending.
    pub possible: Vec<usize>,
    /// Ranks on each.
    pub ranks_per_node: usize,
    /// Where the leader listens, `host:port`.
    pub endpoint: String,
    /// Name of the job, which all nodes must give.
    pub id: String,
    /// How long all nodes have to come.
    pub deadline: Duration,
    /// How long a node that went away has to come back.
    pub rejoin: Duration,
}

impl Job {
    /// The most nodes with which a stage can be run of which `present` are there.
    pub fn most_of(&self, present: usize) -> Option<usize> {
        self.possible.iter().copied().rfind(|nodes| *nodes <= present)
    }

    /// What to do with `here` nodes, of which `before` took part until now, after waiting `waited` of `limit`:
    /// a pure decision.
    pub fn membership(
        &self,
        before: Option<usize>,
        here: usize,
        waited: Duration,
        limit: Duration,
    ) -> Membership {
        match self.most_of(here) {
            // All; or as many as there were, whoever else may come; or as many as came in time.
            Some(nodes)
                if here == self.nodes
                    || before.is_some_and(|before| nodes >= before)
                    || waited >= limit.min(LAST_CALL) =>
            {
                Membership::Go(nodes)
            }
            None if waited >= limit => Membership::GiveUp,
            _ => Membership::Wait,
        }
    }

    /// Names the executable, which must be the same everywhere.
    pub fn build_id() -> Result<String> {
        let program = std::env::current_exe().wrap_err("can't find this executable")?;
        Ok(format!("{}-{}", env!("CARGO_PKG_VERSION"), xxh3_file(&program)?))
    }
}

/// The secret that the leader uses: of the environment, or of the run directory, where it is made if need be.
pub fn secret_of_leader(run_dir: &Path) -> Result<Secret> {
    if let Some(secret) = secret_of_environment()? {
        return Ok(secret);
    }
    let path = run_dir.join(SECRET_FILE);
    if let Some(secret) = read(&path)? {
        return Ok(secret);
    }
    let secret = Secret::generate()?;
    let failed = || format!("can't write {}", path.display());
    // What is left of a write that was cut short.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).wrap_err_with(failed)?,
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .wrap_err_with(failed)?;
    writeln!(file, "{}", secret.to_hex()).and_then(|()| file.sync_all()).wrap_err_with(failed)?;
    Ok(secret)
}

/// The secret that an agent uses: of the environment, or of the run directory, once the leader has made it.
pub fn secret_of_agent(run_dir: &Path, until: Instant) -> Result<Secret> {
    if let Some(secret) = secret_of_environment()? {
        return Ok(secret);
    }
    let path = run_dir.join(SECRET_FILE);
    loop {
        if let Some(secret) = read(&path)? {
            return Ok(secret);
        }
        if Instant::now() >= until {
            return Err(eyre!(
                "node 0 has not made {}: it has not started, or the nodes do not share the run \
                 directory\n  help: start node 0 too, use a run directory that all nodes see, or set \
                 {SECRET} to the same 64 hexadecimal digits on all of them",
                path.display()
            ));
        }
        std::thread::sleep(POLL);
    }
}

fn secret_of_environment() -> Result<Option<Secret>> {
    match std::env::var(SECRET) {
        Ok(hex) => Ok(Some(Secret::from_hex(&hex).wrap_err(SECRET)?)),
        Err(_) => Ok(None),
    }
}

/// A secret file that is whole; `None` if there is none (yet).
fn read(path: &Path) -> Result<Option<Secret>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).wrap_err_with(|| format!("can't read {}", path.display())),
    };
    let mode = file.metadata().wrap_err("can't look at the secret's file")?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(eyre!(
            "{} can be read by others (mode {:o}); whoever reads it can join the job\n  help: remove \
             it, node 0 makes another",
            path.display(),
            mode & 0o777
        ));
    }
    let text = std::io::read_to_string(file).wrap_err_with(|| format!("{}", path.display()))?;
    Ok(Secret::from_hex(&text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_made_once_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let secret = secret_of_leader(dir.path()).unwrap();
        assert_eq!(secret_of_leader(dir.path()).unwrap(), secret);
        assert_eq!(secret_of_agent(dir.path(), Instant::now()).unwrap(), secret);
        let path = dir.path().join(SECRET_FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // Cut short: another is made.
        std::fs::write(&path, "12").unwrap();
        assert_ne!(secret_of_leader(dir.path()).unwrap(), secret);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = secret_of_leader(dir.path()).unwrap_err().to_string();
        assert!(error.contains(".secret can be read by others (mode 644)"), "{error}");
    }

    fn job(nodes: usize, possible: &[usize]) -> Job {
        Job {
            node: 0,
            nodes,
            possible: possible.to_vec(),
            ranks_per_node: 1,
            endpoint: String::new(),
            id: String::new(),
            deadline: Duration::ZERO,
            rejoin: Duration::ZERO,
        }
    }

    #[test]
    fn a_group_is_of_those_that_are_there_in_time() {
        use Membership::*;
        let (fixed, elastic) = (job(4, &[4]), job(4, &[2, 4]));
        let cases = [
            // A fixed number is waited for, to the limit.
            (&fixed, None, 4, 0, Go(4)),
            (&fixed, None, 3, 59, Wait),
            (&fixed, None, 3, 60, GiveUp),
            (&fixed, Some(4), 3, 12, Wait),
            (&fixed, Some(4), 4, 12, Go(4)),
            // Of a range, as many as come soon.
            (&elastic, None, 4, 0, Go(4)),
            (&elastic, None, 3, 9, Wait),
            (&elastic, None, 3, 10, Go(2)),
            (&elastic, None, 1, 59, Wait),
            (&elastic, None, 1, 60, GiveUp),
            // A loss is waited for; what nobody takes part in is not; who comes back is welcome.
            (&elastic, Some(4), 3, 0, Wait),
            (&elastic, Some(4), 3, 10, Go(2)),
            (&elastic, Some(2), 3, 0, Go(2)),
            (&elastic, Some(2), 4, 0, Go(4)),
        ];
        for (job, before, here, waited, expected) in cases {
            let (waited, limit) = (Duration::from_secs(waited), Duration::from_secs(60));
            let decided = job.membership(before, here, waited, limit);
            assert_eq!(decided, expected, "{before:?} before, {here} here, after {waited:?}");
        }
    }

    #[test]
    fn as_many_nodes_as_can_take_part() {
        let job = job(8, &[2, 4, 8]);
        let most = [0, 1, 2, 3, 4, 7, 8, 9].map(|present| job.most_of(present));
        let (two, four, eight) = (Some(2), Some(4), Some(8));
        assert_eq!(most, [None, None, two, two, four, four, eight, eight]);
    }

    #[test]
    fn s2_an_agent_waits_for_the_secret_no_longer_than_its_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let error = secret_of_agent(dir.path(), Instant::now()).unwrap_err().to_string();
        assert!(error.contains("node 0 has not made"), "{error}");
    }
}
