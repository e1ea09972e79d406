//! `run`: from flags to a pipeline, and what comes before and after it.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use color_eyre::eyre::{WrapErr, eyre};
use reclora_storage::atomic::{RunLock, create_dir_all, is_tmp_name, write_bytes_atomic};
use reclora_trainer::config::Config;

use crate::cli::{NodeCount, RunArgs};
use crate::cluster::{self, Job, Leader};
use crate::commands::{print, write_report, write_without_llm};
use crate::config::{self, Override};
use crate::error::{LaunchError, Result, exit_code};
use crate::failure::ERROR_FILE;
use crate::gang::Shown;
use crate::monitor::collect::Collector;
use crate::monitor::store::LEADER;
use crate::monitor::watch::Watch;
use crate::pipeline::{Pipeline, Selection};
use crate::preflight;
use crate::progress::display::say;
use crate::rank::{PARTS_DIR, RANK_WAIT, RANKS_DIR, parts_of};
use reclora_trainer::stages::{Part, RunContext, Stage};

/// How long another launcher may take to let go of the run directory.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Runs an experiment.
pub fn run(args: &RunArgs) -> Result<()> {
    if let (Some(from), Some(until)) = (args.from, args.until)
        && from > until
    {
        let (from, until) = (from.name(), until.name());
        let what = format!("--from {from} --until {until}: {until} comes before {from}");
        return Err(LaunchError::Usage(what).into());
    }
    crate::signals::install()?;
    let overrides =
        Overrides { set: &args.set, run_dir: args.run_dir.as_deref(), ranks: args.nproc_per_node };
    let nodes = if args.standalone { NodeCount::ONE } else { args.nnodes };
    let config = resolve(&args.config, overrides, nodes)?;
    let job = job(args, nodes, &config)?;
    let run_dir = config.run_dir.clone();
    let selection =
        Selection { from: args.from, only: args.only, until: args.until, force: args.force };
    let context = RunContext { run_dir: run_dir.clone(), config, part: args.part };
    // Nodes share the run directory and nothing else, so each looks at what it has.
    preflight::run(&context, &selection.stages())?;
    let config = &context.config;
    if let Some(job) = job.as_ref().filter(|job| job.node > 0) {
        return cluster::run_agent(job, &run_dir, &config.runtime);
    }
    // Of no other node, whatever the environment says.
    let endpoint = args.rdzv_endpoint.as_deref().filter(|_| !args.standalone);
    let endpoint = endpoint.map(parse_endpoint).transpose()?;
    if let Some(address) = endpoint {
        probe(address)?;
    }
    let _locks = match args.part {
        None => vec![take(config)?],
        Some(part) => share(config, args, part)?,
    };
    let per_node = config.runtime.nproc_per_node;
    let ranks = match nodes {
        NodeCount { min, max } if min < max => {
            format!("{per_node} on each of {min} to {max} nodes")
        }
        NodeCount { max, .. } => (usize::from(max) * per_node).to_string(),
    };
    say(&format!("{} in {}, ranks: {ranks}", config.name, run_dir.display()));
    let (leader, endpoint) = match (job, endpoint) {
        (Some(job), Some(address)) => {
            // The port is the agents'; ranks meet at another of the same interface.
            let leader = Leader::start(job, address, &run_dir)?;
            (Some(RefCell::new(leader)), Some(SocketAddr::new(address.ip(), 0)))
        }
        (_, endpoint) => (None, endpoint),
    };
    let collector = match args.part {
        None => Collector::start(&run_dir, LEADER, 0),
        Some(part) => Collector::start(&run_dir, &format!("part_{}", part.index), 0),
    }?;
    let last = selection.last();
    let pipeline = pipeline(args, context, selection, endpoint, leader, collector.watch())?;
    let result = pipeline.run();
    if let Some(leader) = pipeline.leader {
        let error = result.as_ref().err();
        leader.into_inner().finish(error.map(|error| (error.to_string(), exit_code(error))));
    }
    drop(collector);
    result?;
    if args.no_report || args.part.is_some() {
        return Ok(());
    }
    match last {
        Stage::Few2many => print(&write_without_llm(&run_dir)?),
        // `--only` leaves a run whose other stages may be missing or out of date.
        last if args.only.is_none() && last >= Stage::Evaluate => print(&write_report(&run_dir)?),
        _ => Ok(()),
    }
}

fn pipeline(
    args: &RunArgs,
    context: RunContext,
    selection: Selection,
    endpoint: Option<SocketAddr>,
    leader: Option<RefCell<Leader>>,
    watch: Arc<Watch>,
) -> Result<Pipeline> {
    Ok(Pipeline {
        selection,
        endpoint,
        leader,
        max_restarts: args.max_restarts,
        logs: match &args.log_dir {
            Some(dir) => std::path::absolute(dir).wrap_err("--log-dir")?,
            None => context.run_dir.join("logs"),
        },
        binding: args.numa_binding,
        watch,
        tee: match (&args.local_ranks_filter, args.tee) {
            (Some(ranks), _) => Shown::Some(ranks.clone()),
            (None, true) => Shown::All,
            (None, false) => Shown::None,
        },
        program: std::env::current_exe().wrap_err("can't find this executable")?,
        context,
    })
}

/// Takes the run directory for this process.
pub fn take(config: &Config) -> Result<RunLock> {
    let run_dir = &config.run_dir;
    create_dir_all(run_dir).wrap_err_with(|| {
        format!(
            "the run directory {} can't be made; choose another with --run-dir",
            run_dir.display()
        )
    })?;
    let lock = RunLock::acquire(run_dir, LOCK_WAIT)
        .wrap_err_with(|| format!("the run directory {} can't be used", run_dir.display()))?;
    wait_for_ranks(&run_dir.join(RANKS_DIR))?;
    let mut parts = std::fs::read_dir(run_dir.join(PARTS_DIR)).into_iter().flatten().flatten();
    parts.try_for_each(|part| wait_for_ranks(&part.path()))?;
    remove_stale(run_dir);
    Ok(lock)
}

/// Files that a launcher which was killed had not finished writing; stages do the same in their directories.
fn remove_stale(run_dir: &Path) {
    let entries = std::fs::read_dir(run_dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| is_tmp_name(&entry.file_name().to_string_lossy())) {
        // One that stays does no harm.
        let _ = std::fs::remove_file(entry.path());
    }
}

/// Takes the run directory together with those that do other parts of a stage, and the part for this process: the ranks
/// of two launchers that began on one part would wait for each other. They change nothing else of the directory.
fn share(config: &Config, args: &RunArgs, part: Part) -> Result<Vec<RunLock>> {
    let run_dir = &config.run_dir;
    let usage = |what: String| LaunchError::Usage(format!("--part {part}: {what}")).into();
    if args.only != Some(Stage::Few2many) {
        return Err(usage("only --only few2many can be done in parts".into()));
    }
    if args.nnodes.max > 1 {
        return Err(usage("a part is done on one node; give other nodes other parts".into()));
    }
    // How a part is computed is its own affair.
    let saved = config::load_run(run_dir)?;
    let runtime = config.runtime.clone();
    if (Config { run_dir: run_dir.clone(), runtime, ..saved }) != *config {
        let saved = run_dir.join("config.toml");
        let what = format!("the config is not that of the run\n  help: run {}", saved.display());
        return Err(usage(what));
    }
    let shared = RunLock::share(run_dir, LOCK_WAIT)
        .wrap_err_with(|| format!("the run directory {} can't be used", run_dir.display()))?;
    let dir = run_dir.join(parts_of(part));
    create_dir_all(&dir)?;
    let own = RunLock::acquire(&dir, LOCK_WAIT)
        .wrap_err_with(|| format!("part {part} is done by another launcher"))?;
    wait_for_ranks(&dir)?;
    Ok(vec![shared, own])
}

/// Flags that change a config.
#[derive(Clone, Copy, Debug)]
pub struct Overrides<'a> {
    /// Settings.
    pub set: &'a [String],
    /// The run directory.
    pub run_dir: Option<&'a Path>,
    /// Ranks on each node.
    pub ranks: Option<u16>,
}

/// The config with every flag applied, checked for so many nodes: one number of them must be possible.
pub fn resolve(path: &Path, overrides: Overrides<'_>, nodes: NodeCount) -> Result<Config> {
    let ranks = overrides.ranks.map(|ranks| Override {
        said: format!("--nproc-per-node {ranks}"),
        text: format!("runtime.nproc_per_node={ranks}"),
    });
    let set = overrides.set.iter().map(Override::set).chain(ranks);
    let mut config = config::load_for(path, set, |config| {
        let ranks = |nodes| usize::from(nodes).saturating_mul(config.runtime.nproc_per_node);
        let possible = (nodes.min..=nodes.max).rev().map(ranks);
        let best = possible.into_iter().find(|ranks| config.is_shared_evenly(*ranks));
        Some(best.unwrap_or_else(|| ranks(nodes.max)))
    })?;
    if let Some(dir) = overrides.run_dir {
        config.run_dir = dir.to_owned();
    }
    config.run_dir = std::path::absolute(&config.run_dir)
        .map_err(|error| LaunchError::Usage(format!("run directory: {error}")))?;
    Ok(config)
}

/// What the flags say of the other nodes; `None` where there are none.
fn job(args: &RunArgs, nodes: NodeCount, config: &Config) -> Result<Option<Job>> {
    let usage = |what: &str| Err(LaunchError::Usage(what.into()).into());
    if args.standalone || nodes.max == 1 && args.node_rank == 0 {
        return Ok(None);
    }
    if args.node_rank >= nodes.max {
        return usage(&format!(
            "--node-rank {}: nodes are counted from 0, and there are {} of them (--nnodes)",
            args.node_rank, nodes.max
        ));
    }
    let (min, max) = (nodes.min.into(), nodes.max.into());

    let ranks_per_node = config.runtime.nproc_per_node;
    let is_possible = |nodes: &usize| config.is_shared_evenly(nodes.saturating_mul(ranks_per_node));
    let Some(endpoint) = &args.rdzv_endpoint else {
        return usage(
            "--nnodes: the nodes have to find each other\n  help: give all of them the address of node \
             0, and a free port there, as --rdzv-endpoint HOST:PORT",
        );
    };
    Ok(Some(Job {
        node: args.node_rank.into(),
        nodes: max,
        possible: (min..=max).filter(is_possible).collect(),
        ranks_per_node,
        endpoint: endpoint.clone(),
        id: args.rdzv_id.clone(),
        deadline: Duration::from_secs(config.runtime.rendezvous_timeout),
        rejoin: Duration::from_secs(
            args.rejoin_timeout.unwrap_or(config.runtime.rendezvous_timeout),
        ),
    }))
}

/// The address of `HOST:PORT`.
fn parse_endpoint(text: &str) -> Result<SocketAddr> {
    let usage = |what: String| {
        LaunchError::Usage(format!(
            "--rdzv-endpoint {text}: {what}\n  help: write HOST:PORT, for example 127.0.0.1:29500"
        ))
    };
    let mut addresses = text.to_socket_addrs().map_err(|error| usage(error.to_string()))?;
    Ok(addresses.next().ok_or_else(|| usage("the host has no address".into()))?)
}

/// A port in use is said now, not when the first gang starts.
fn probe(address: SocketAddr) -> Result<()> {
    TcpListener::bind(address).map(drop).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => eyre!(
            "--rdzv-endpoint {address}: the port is in use by another process\n  help: choose \
             another port, or leave the flag out to take a free one"
        ),
        _ => eyre!("--rdzv-endpoint {address}: can't listen there: {error}"),
    })
}

/// Ranks of a launcher that was killed are killed by the kernel, but maybe not gone yet.
fn wait_for_ranks(ranks: &Path) -> Result<()> {
    let entries = std::fs::read_dir(ranks).into_iter().flatten().flatten();
    for dir in entries.map(|entry| entry.path()).filter(|path| path.is_dir()) {
        RunLock::acquire(&dir, RANK_WAIT).map(drop).wrap_err(
            "a rank of an earlier launcher still runs in this directory; end it and try again",
        )?;
    }
    Ok(())
}

/// Leaves the config for the ranks and for `export`, `predict`, `report`.
pub fn save(config: &Config) -> Result<()> {
    let run_dir = &config.run_dir;
    let path: PathBuf = run_dir.join("config.toml");
    let text = format!(
        "# The resolved config of this run. Continue it with:\n# reclora-launch run {}\n{}",
        crate::error::quote(&path.display().to_string()),
        config::render(config)
    );
    write_bytes_atomic(&path, text.as_bytes())?;
    match std::fs::remove_file(run_dir.join(ERROR_FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).wrap_err("can't remove the error.json of the last run")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(parse_endpoint("127.0.0.1:80").unwrap(), "127.0.0.1:80".parse().unwrap());
        for bad in ["127.0.0.1", "127.0.0.1:99999", ""] {
            assert!(parse_endpoint(bad).unwrap_err().to_string().contains("HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn saved_config_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { run_dir: dir.path().into(), ..Config::default() };
        for path in [&mut config.data.path, &mut config.backbone.path, &mut config.prompt.template]
        {
            *path = Path::new("/x").join(&*path);
        }
        save(&config).unwrap();
        assert_eq!(config::load_run(dir.path()).unwrap(), config);
    }
}
