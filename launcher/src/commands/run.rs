//! `run`: from flags to a pipeline, and what comes before and after it.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use color_eyre::eyre::{WrapErr, eyre};
use reclora_trainer::config::Config;

use crate::cli::{NodeCount, ProcessArgs, RunArgs};
use crate::cluster::{self, Job, Leader};
use crate::commands::report::{write_report, write_without_llm};
use crate::error::{LaunchError, Result};
use crate::exit::exit_code;
use crate::hints::said;
use crate::monitor::collect::Collector;
use crate::monitor::store::LEADER;
use crate::monitor::watch::Watch;
use crate::output::{print, say};
use crate::pipeline::Pipeline;
use crate::preflight;
use crate::resolve::{is_possible, resolve};
use crate::run_dir::{share, take};
use crate::workers::Shown;
use reclora_trainer::stages::{Part, RunContext, Stage};

/// Runs an experiment.
pub fn run(args: &RunArgs) -> Result<()> {
    let RunArgs { experiment, stages, processes, .. } = args;
    if let (Some(from), Some(until)) = (stages.from, stages.until)
        && from > until
    {
        let (from, until) = (from.name(), until.name());
        let what = format!("--from {from} --until {until}: {until} comes before {from}");
        return Err(LaunchError::Usage(what).into());
    }
    crate::signals::install()?;
    let nodes = if processes.standalone { NodeCount::ONE } else { processes.nnodes };
    let config = resolve(experiment, processes.nproc_per_node, nodes)?;
    let job = job(processes, nodes, &config)?;
    if let Some(part) = stages.part {
        check_part(args, part)?;
    }
    let run_dir = config.run_dir.clone();
    let context = RunContext { run_dir: run_dir.clone(), config, part: stages.part };
    // Nodes share the run directory and nothing else, so each looks at what it has.
    preflight::run(&context, &stages.stages())?;
    let config = &context.config;
    if let Some(job) = job.as_ref().filter(|job| job.node > 0) {
        return cluster::run_agent(job, &run_dir, &config.runtime);
    }
    // Of no other node, whatever the environment says.
    let endpoint = processes.rdzv_endpoint.as_deref().filter(|_| !processes.standalone);
    let endpoint = endpoint.map(parse_endpoint).transpose()?;
    if let Some(address) = endpoint {
        probe(address)?;
    }
    let _locks = match stages.part {
        None => vec![take(config)?],
        Some(part) => share(config, part)?,
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
    let collector = match stages.part {
        None => Collector::start(&run_dir, LEADER, 0),
        Some(part) => Collector::start(&run_dir, &format!("part_{}", part.index), 0),
    }?;
    let last = stages.last();
    let pipeline = pipeline(args, context, endpoint, leader, collector.watch())?;
    let result = pipeline.run();
    if let Some(leader) = pipeline.leader {
        let error = result.as_ref().err();
        leader.into_inner().finish(error.map(|error| (said(&**error), exit_code(error))));
    }
    drop(collector);
    result?;
    if stages.no_report || stages.part.is_some() {
        return Ok(());
    }
    match last {
        Stage::Few2many => print(&write_without_llm(&run_dir)?),
        // `--only` leaves a run whose other stages may be missing or out of date.
        last if stages.only.is_none() && last >= Stage::Evaluate => print(&write_report(&run_dir)?),
        _ => Ok(()),
    }
}

fn pipeline(
    args: &RunArgs,
    context: RunContext,
    endpoint: Option<SocketAddr>,
    leader: Option<RefCell<Leader>>,
    watch: Arc<Watch>,
) -> Result<Pipeline> {
    let RunArgs { stages, output, processes, .. } = args;
    Ok(Pipeline {
        selection: *stages,
        endpoint,
        leader,
        max_restarts: processes.max_restarts,
        logs: match &output.log_dir {
            Some(dir) => std::path::absolute(dir).wrap_err("--log-dir")?,
            None => context.run_dir.join("logs"),
        },
        binding: processes.numa_binding,
        watch,
        tee: match (&output.local_ranks_filter, output.tee) {
            (Some(ranks), _) => Shown::Some(ranks.clone()),
            (None, true) => Shown::All,
            (None, false) => Shown::None,
        },
        program: std::env::current_exe().wrap_err("can't find this executable")?,
        context,
    })
}

/// Refuses what can't be done in parts.
fn check_part(RunArgs { stages, processes, .. }: &RunArgs, part: Part) -> Result<()> {
    let usage = |what| Err(LaunchError::Usage(format!("--part {part}: {what}")).into());
    if stages.only != Some(Stage::Few2many) {
        return usage("only --only few2many can be done in parts");
    }
    if processes.nnodes.max > 1 {
        return usage("a part is done on one node; give other nodes other parts");
    }
    Ok(())
}

/// What the flags say of the other nodes; `None` where there are none.
fn job(processes: &ProcessArgs, nodes: NodeCount, config: &Config) -> Result<Option<Job>> {
    let usage = |what: &str| Err(LaunchError::Usage(what.into()).into());
    if processes.standalone || nodes.max == 1 && processes.node_rank == 0 {
        return Ok(None);
    }
    if processes.node_rank >= nodes.max {
        return usage(&format!(
            "--node-rank {}: nodes are counted from 0, and there are {} of them (--nnodes)",
            processes.node_rank, nodes.max
        ));
    }
    let (min, max) = (nodes.min.into(), nodes.max.into());

    let Some(endpoint) = &processes.rdzv_endpoint else {
        return usage(
            "--nnodes: the nodes have to find each other\n  help: give all of them the address of node \
             0, and a free port there, as --rdzv-endpoint HOST:PORT",
        );
    };
    Ok(Some(Job {
        node: processes.node_rank.into(),
        nodes: max,
        possible: (min..=max).filter(|nodes| is_possible(config, *nodes)).collect(),
        ranks_per_node: config.runtime.nproc_per_node,
        endpoint: endpoint.clone(),
        id: processes.rdzv_id.clone(),
        deadline: Duration::from_secs(config.runtime.rendezvous_timeout),
        rejoin: Duration::from_secs(
            processes.rejoin_timeout.unwrap_or(config.runtime.rendezvous_timeout),
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

/// A port in use is said now, not when the first worker group starts.
fn probe(address: SocketAddr) -> Result<()> {
    TcpListener::bind(address).map(drop).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => eyre!(
            "--rdzv-endpoint {address}: the port is in use by another process\n  help: choose \
             another port, or leave the flag out to take a free one"
        ),
        _ => eyre!("--rdzv-endpoint {address}: can't listen there: {error}"),
    })
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
}
