//! How the ranks of a worker group meet: the launcher's side ([`open`]) and the rank's ([`connect`]).
//!
//! The launcher hosts a store for as long as the worker group lives; a rank proves that it knows the job's
//! secret and shows what it was built from and which config it reads.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use color_eyre::Report;
use color_eyre::eyre::WrapErr;
#[cfg(not(feature = "cuda"))]
use color_eyre::eyre::eyre;
use reclora_comm::rendezvous::{JoinConfig, Store, StoreConfig, join};
use reclora_comm::{Communicator, Identity, Secret, Solo, address_of};
#[cfg(feature = "cuda")]
use reclora_comm::{NcclCommunicator, Reduction, TcpCommunicator, nccl_version};
use reclora_storage::hash::xxh3_file;
use reclora_trainer::config::{CommBackend, Config};
use reclora_trainer::error::TrainerError;

use super::env::{self, Meeting};
use crate::error::Result;

/// Opens the store of a worker group, at `endpoint` or any free port of this machine, for who knows the secret.
pub fn open(
    config: &Config,
    run_dir: &Path,
    endpoint: Option<SocketAddr>,
    world_size: usize,
    secret: Secret,
) -> Result<(Store, Meeting)> {
    let host = chosen(config)?.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let hex = secret.to_hex();
    let store = Store::start(StoreConfig {
        bind: endpoint.unwrap_or(SocketAddr::new(host, 0)),
        world_size,
        secret,
        identity: identity(run_dir)?,
        deadline: Duration::from_secs(config.runtime.rendezvous_timeout),
    })?;
    let meeting = Meeting { address: store.address(), secret: hex };
    Ok((store, meeting))
}

/// Joins the worker group this process's environment names.
pub fn connect(
    config: &Config,
    run_dir: &Path,
    rank: usize,
    world_size: usize,
) -> Result<Box<dyn Communicator>> {
    if world_size == 1 {
        return Ok(Box::new(Solo));
    }
    let address = std::env::var("MASTER_ADDR").wrap_err("MASTER_ADDR")?;
    let port = std::env::var("MASTER_PORT").wrap_err("MASTER_PORT")?;
    let ip: IpAddr = address.parse().wrap_err("MASTER_ADDR")?;
    let secret = std::env::var(env::SECRET).wrap_err(env::SECRET)?;
    let timeout = Duration::from_secs(config.runtime.collective_timeout);
    let host = std::env::var(env::HOST).ok().map(|host| host.parse::<IpAddr>()).transpose();
    let host = host.wrap_err(env::HOST)?;
    let comm = join(JoinConfig {
        endpoint: endpoint(ip, &port),
        rank,
        world_size,
        secret: Secret::from_hex(&secret)?,
        identity: identity(run_dir)?,
        deadline: Duration::from_secs(config.runtime.rendezvous_timeout),
        timeout,
        wire: config.runtime.gradient_wire,
        listen_host: chosen(config)?.or(host).unwrap_or(ip),
    })
    .map_err(TrainerError::from)?;
    match config.runtime.backend {
        CommBackend::Tcp => Ok(Box::new(comm)),
        #[cfg(feature = "cuda")]
        CommBackend::Nccl => over_nccl(comm, config.runtime.reduction, timeout),
        #[cfg(not(feature = "cuda"))]
        CommBackend::Nccl => Err(eyre!("runtime.backend: this build has no NCCL")),
    }
}

/// This machine's address that `runtime.interface` asks for.
fn chosen(config: &Config) -> Result<Option<IpAddr>> {
    let interface = &config.runtime.interface;
    if interface.is_empty() {
        return Ok(None);
    }
    let address = address_of(interface)
        .map_err(|error| TrainerError::config("runtime.interface", error.to_string()))?;
    Ok(Some(address))
}

/// The same ranks, with sums by the GPU of this rank.
#[cfg(feature = "cuda")]
fn over_nccl(
    control: TcpCommunicator,
    reduction: Reduction,
    timeout: Duration,
) -> Result<Box<dyn Communicator>> {
    let ordinal = std::env::var("LOCAL_RANK").wrap_err("LOCAL_RANK")?.parse()?;
    let comm = NcclCommunicator::new(control, ordinal, reduction, timeout);
    eprintln!("rank {}: sums over NCCL {}", comm.rank(), nccl_version()?);
    Ok(Box::new(comm))
}

/// Whether an error is only that another rank did not do its part.
pub fn is_peer_lost(error: &Report) -> bool {
    matches!(error.downcast_ref(), Some(TrainerError::Comm(error)) if error.is_peer_lost())
}

/// What all processes of a worker group must agree on: the executable and the config.
fn identity(run_dir: &Path) -> Result<Identity> {
    let program = std::env::current_exe().wrap_err("can't find this executable")?;
    Ok(Identity {
        build_id: format!("{}-{}", env!("CARGO_PKG_VERSION"), xxh3_file(&program)?),
        config_hash: xxh3_file(&run_dir.join("config.toml"))?,
    })
}

fn endpoint(ip: IpAddr, port: &str) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_both_families() {
        assert_eq!(endpoint("127.0.0.1".parse().unwrap(), "80"), "127.0.0.1:80");
        assert_eq!(endpoint("::1".parse().unwrap(), "80"), "[::1]:80");
    }
}
