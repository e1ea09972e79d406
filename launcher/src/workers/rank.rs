//! One worker process: joins its worker group and runs one stage. Started by `run` only.
//!
//! S-4: the kernel is told to kill this process when the launcher dies, before anything else is
//! done, and the launcher is then checked to be still there.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use color_eyre::eyre::{WrapErr, eyre};
use nix::sys::signal::Signal;
use reclora_storage::atomic::{RunLock, create_dir_all};
use reclora_storage::mmap::set_access;
use reclora_trainer::telemetry::progress::{Event, Progress};

use super::rendezvous::{connect, is_peer_lost};
use super::{binding, env};
use crate::config;
use crate::error::Result;
use crate::exit::{
    EXIT_FAILURE, EXIT_OK, EXIT_PEER_LOST, EXIT_REQUEUE, EXIT_USAGE, block, panic_line,
};
use crate::run_dir::{RANK_WAIT, RANKS_DIR, parts_of};
use reclora_trainer::error::TrainerError;
use reclora_trainer::stages::{self, Part, RunContext, Stage};
use reclora_trainer::telemetry::measure;

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Whether the launcher asked for a pause.
static PAUSE: AtomicBool = AtomicBool::new(false);

/// Runs as a rank; returns the exit code.
pub fn main() -> i32 {
    let Some(role) = Role::from_env() else {
        eprintln!("error: `reclora-launch rank` is started by `reclora-launch run`, not by hand");
        return EXIT_USAGE;
    };
    if let Err(error) = die_with_launcher(role.launcher_pid) {
        eprintln!("error: {error}");
        return EXIT_FAILURE;
    }
    // Before there are threads.
    if let Err(error) = bind_to_cores() {
        eprintln!("error: {error}");
        return EXIT_FAILURE;
    }
    if let Err(error) = listen_and_beat() {
        eprintln!("error: can't start a thread: {error}");
        return EXIT_FAILURE;
    }
    install_panic_hook(role.rank);
    match work(&role) {
        Ok(()) => EXIT_OK,
        Err(error) if matches!(error.downcast_ref(), Some(TrainerError::Paused)) => EXIT_REQUEUE,
        Err(error) => {
            let text = block(&error);
            let message = text.strip_prefix("error: ").unwrap_or(&text).to_owned();
            emit(&Event::Failed { error: message });
            eprintln!("{text}");
            if is_peer_lost(&error) { EXIT_PEER_LOST } else { EXIT_FAILURE }
        }
    }
}

fn bind_to_cores() -> Result<()> {
    let text = std::env::var(env::CPUS).unwrap_or_default();
    let cpus = binding::parse(&text).ok_or_else(|| eyre!("{}: {text}", env::CPUS))?;
    if cpus.is_empty() { Ok(()) } else { binding::bind(&cpus) }
}

/// Takes requests to pause, and shows that this process lives.
fn listen_and_beat() -> std::io::Result<()> {
    // Before the others are taken as they come.
    crate::signals::on_pause(|| PAUSE.store(true, Ordering::Relaxed))?;
    crate::signals::unblock_inherited();
    std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
        loop {
            std::thread::sleep(HEARTBEAT);
            beat();
        }
    })?;
    Ok(())
}

/// Says that this process lives, and what it has done.
fn beat() {
    /// Held from taking to reporting: what one thread has taken is reported before what the next takes.
    static REPORTING: Mutex<()> = Mutex::new(());
    let _reporting = REPORTING.lock().unwrap_or_else(PoisonError::into_inner);
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    let measures = measure::now(threads.unwrap_or(1));
    emit(&Event::Measured { measures, curves: measure::curves() });
}

/// What the environment says this process is.
struct Role {
    rank: usize,
    world_size: usize,
    stage: Stage,
    run_dir: PathBuf,
    part: Option<Part>,
    launcher_pid: i32,
}

impl Role {
    fn from_env() -> Option<Self> {
        let get = |name: &str| std::env::var(name).ok();
        let stage = get(env::STAGE)?;
        Some(Self {
            rank: get("RANK")?.parse().ok()?,
            world_size: get("WORLD_SIZE")?.parse().ok()?,
            stage: Stage::ALL.into_iter().find(|known| known.name() == stage)?,
            run_dir: get(env::RUN_DIR)?.into(),
            part: get(env::PART).and_then(|part| part.parse().ok()),
            launcher_pid: get(env::LAUNCHER_PID)?.parse().ok()?,
        })
    }
}

fn die_with_launcher(launcher: i32) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).wrap_err("prctl(PR_SET_PDEATHSIG)")?;
    // A launcher that died before the line above would not be noticed by it.
    match nix::unistd::getppid().as_raw() {
        parent if parent == launcher => Ok(()),
        _ => Err(eyre!("the launcher (pid {launcher}) is gone")),
    }
}

fn work(role: &Role) -> Result<()> {
    let config = config::load_run(&role.run_dir)?;
    set_access(config.runtime.file_access);
    // Held until this process is gone, however it ends: the next launcher waits for it.
    let ranks = role.part.map_or(RANKS_DIR.into(), parts_of);
    let lock_dir = role.run_dir.join(ranks).join(format!("rank_{}", role.rank));
    create_dir_all(&lock_dir)?;
    let _lock = RunLock::acquire(&lock_dir, RANK_WAIT)?;
    let mut comm = connect(&config, &role.run_dir, role.rank, role.world_size)?;
    let context = RunContext { run_dir: role.run_dir.clone(), config, part: role.part };
    let result = stages::run(role.stage, &context, comm.as_mut(), &mut Stdout);
    // What came after the last sign of life.
    beat();
    if result.as_ref().is_err_and(|error| !matches!(error, TrainerError::Paused)) {
        emit(&Event::Collectives { records: comm.records() });
    }
    Ok(result.map(drop)?)
}

/// A panic is one clear line, on the log and for the launcher.
fn install_panic_hook(rank: usize) {
    std::panic::set_hook(Box::new(move |info| {
        // Caught, and about to be the error of a damaged file.
        if reclora_storage::raw::is_decoding() {
            return;
        }
        let error = panic_line(info);
        eprintln!("rank {rank}: {error}");
        emit(&Event::Failed { error });
    }));
}

/// Reports to the launcher over standard output.
struct Stdout;

impl Progress for Stdout {
    fn emit(&mut self, event: Event) {
        emit(&event);
    }

    fn pause_asked(&self) -> bool {
        PAUSE.load(Ordering::Relaxed)
    }
}

fn emit(event: &Event) {
    let Ok(mut line) = serde_json::to_vec(event) else { return };
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    // Without a launcher to read it there is nobody left to notify: the kernel ends this process.
    let _ = out.write_all(&line).and_then(|()| out.flush());
}
