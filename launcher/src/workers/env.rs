//! The environment of a rank: torchrun's names, plus what is needed to find its work.

use std::net::SocketAddr;

use super::GroupSpec;

/// The job's secret, as hex. Never on a command line, where every user of the machine reads it.
pub const SECRET: &str = "RECLORA_JOB_SECRET";
/// The stage to run.
pub const STAGE: &str = "RECLORA_STAGE";
/// The run directory.
pub const RUN_DIR: &str = "RECLORA_RUN_DIR";
/// The cores to run on; empty for any.
pub const CPUS: &str = "RECLORA_CPUS";
/// The part of the stage's chunks to do.
pub const PART: &str = "RECLORA_PART";
/// Address of this machine on which other ranks reach this one.
pub const HOST: &str = "RECLORA_HOST";
/// Pid of the launcher: a rank whose parent is another process has outlived it.
pub const LAUNCHER_PID: &str = "RECLORA_LAUNCHER_PID";

/// Where the ranks of a worker group meet.
#[derive(Clone)]
pub struct Meeting {
    /// Address of the store.
    pub address: SocketAddr,
    /// Secret of the job in hex.
    pub secret: String,
}

impl std::fmt::Debug for Meeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meeting").field("address", &self.address).finish_non_exhaustive()
    }
}

impl GroupSpec {
    /// The variables of one rank of this node.
    pub fn variables(&self, local_rank: usize) -> Vec<(&'static str, String)> {
        let plan = &self.plan;
        let node = plan.first_rank / plan.local_world_size.max(1);
        let mut all = vec![
            ("RANK", (plan.first_rank + local_rank).to_string()),
            ("LOCAL_RANK", local_rank.to_string()),
            ("WORLD_SIZE", plan.world_size.to_string()),
            ("LOCAL_WORLD_SIZE", plan.local_world_size.to_string()),
            ("GROUP_RANK", node.to_string()),
            ("RAYON_NUM_THREADS", self.threads.to_string()),
            (STAGE, plan.stage.clone()),
            (RUN_DIR, plan.run_dir.display().to_string()),
            (LAUNCHER_PID, std::process::id().to_string()),
        ];
        if let Some(meeting) = &self.meeting {
            all.push(("MASTER_ADDR", meeting.address.ip().to_string()));
            all.push(("MASTER_PORT", meeting.address.port().to_string()));
            all.push((SECRET, meeting.secret.clone()));
        }
        if let Some(part) = self.part {
            all.push((PART, part.to_string()));
        }
        if let Some(host) = self.host {
            all.push((HOST, host.to_string()));
        }
        all
    }
}

/// Compute threads of each rank: as configured, or an equal share of the cores.
pub fn threads_per_rank(configured: usize, cores: usize, ranks: usize) -> usize {
    match configured {
        0 => (cores / ranks.max(1)).max(1),
        n => n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Binding;
    use crate::workers::{GroupPlan, Shown};
    use std::sync::Arc;

    fn spec(meeting: Option<Meeting>) -> GroupSpec {
        GroupSpec {
            program: "reclora-launch".into(),
            args: Vec::new(),
            plan: GroupPlan {
                stage: "tune".into(),
                run_dir: "runs/x".into(),
                logs: "runs/x/logs".into(),
                tee: Shown::None,
                binding: Binding::None,
                world_size: 8,
                first_rank: 4,
                local_world_size: 4,
            },
            threads: 2,
            part: None,
            meeting,
            host: Some("10.0.0.2".parse().unwrap()),
            watch: Arc::default(),
        }
    }

    #[test]
    fn names_are_torchruns() {
        let address = "127.0.0.1:29500".parse().unwrap();
        let all = spec(Some(Meeting { address, secret: "ab".into() })).variables(3);
        let get = |name: &str| all.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("RANK"), Some("7"));
        assert_eq!(get("LOCAL_RANK"), Some("3"));
        assert_eq!(get("WORLD_SIZE"), Some("8"));
        assert_eq!(get("LOCAL_WORLD_SIZE"), Some("4"));
        assert_eq!(get("GROUP_RANK"), Some("1"));
        assert_eq!(get("RECLORA_HOST"), Some("10.0.0.2"));
        assert_eq!(get("MASTER_ADDR"), Some("127.0.0.1"));
        assert_eq!(get("MASTER_PORT"), Some("29500"));
        assert_eq!(get("RECLORA_JOB_SECRET"), Some("ab"));
        assert_eq!(get("RAYON_NUM_THREADS"), Some("2"));
        assert_eq!(get("RECLORA_LAUNCHER_PID"), Some(std::process::id().to_string().as_str()));
    }

    #[test]
    fn a_lone_rank_gets_no_secret() {
        let all = spec(None).variables(0);
        assert!(all.iter().all(|(name, _)| *name != SECRET));
    }

    #[test]
    fn secret_is_not_in_debug_output() {
        let address = "127.0.0.1:1".parse().unwrap();
        let text = format!("{:?}", spec(Some(Meeting { address, secret: "5ec2e7".into() })));
        assert!(!text.contains("5ec2e7"), "{text}");
    }

    #[test]
    fn cores_are_shared() {
        assert_eq!(threads_per_rank(0, 8, 2), 4);
        assert_eq!(threads_per_rank(0, 2, 8), 1);
        assert_eq!(threads_per_rank(0, 3, 2), 1);
        assert_eq!(threads_per_rank(5, 2, 8), 5);
        assert_eq!(threads_per_rank(0, 8, 0), 8);
    }
}
