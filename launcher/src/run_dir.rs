//! A run's directory: whose it is while somebody works in it, the config and the logs kept there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use color_eyre::eyre::WrapErr;
use reclora_storage::atomic::{RunLock, create_dir_all, is_tmp_name, write_bytes_atomic};
use reclora_storage::mmap::set_access;
use reclora_trainer::config::Config;
use reclora_trainer::stages::{Part, RunContext, Stage, outdated};

use crate::config;
use crate::error::{LaunchError, Result};
use crate::exit::quote;
use crate::hints::said;
use crate::output::say;

/// What the last failure was, for programs.
pub const ERROR_FILE: &str = "error.json";
/// How long another launcher may take to let go of the run directory.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Directory of the ranks' locks in the run directory.
pub const RANKS_DIR: &str = ".ranks";
/// Directory of the locks of ranks that do parts of a stage, in a directory for each part.
pub const PARTS_DIR: &str = ".parts";
/// How long a rank of an earlier worker group may take to be gone.
pub const RANK_WAIT: Duration = Duration::from_secs(10);

/// The directory of the locks of the ranks that do a part of a stage.
pub fn parts_of(part: Part) -> PathBuf {
    PathBuf::from(PARTS_DIR).join(part.index.to_string())
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
pub fn share(config: &Config, part: Part) -> Result<Vec<RunLock>> {
    let run_dir = &config.run_dir;
    // How a part is computed is its own affair.
    let saved = config::load_run(run_dir)?;
    let runtime = config.runtime.clone();
    if (Config { run_dir: run_dir.clone(), runtime, ..saved }) != *config {
        let saved = run_dir.join("config.toml");
        let what = "the config is not that of the run\n  help: run";
        return Err(LaunchError::Usage(format!("--part {part}: {what} {}", saved.display())).into());
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
        quote(&path.display().to_string()),
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

/// A run that is on disk.
pub fn context(run_dir: &Path) -> Result<RunContext> {
    let config = config::load_run(run_dir)?;
    set_access(config.runtime.file_access);
    let run_dir = std::path::absolute(run_dir)?;
    Ok(RunContext::new(run_dir, config))
}

/// Says where settings that are shown are not those that a stage was made with.
pub fn note_outdated(context: &RunContext) {
    // Who needs what can't be read says so.
    if let Ok(Some(error)) = outdated(context, Stage::Export) {
        say(&format!(
            "note: the settings shown are those of config.toml now, but {}",
            said(&error)
        ));
    }
}

/// Removes a stage's directory, so that nothing of an earlier result is resumed from. A directory
/// that no stage made is left alone (and refused by the stage).
pub fn clear(run_dir: &Path, dir: &Path) -> Result<()> {
    if !["plan.json", "manifest.json"].iter().any(|name| dir.join(name).is_file()) {
        return Ok(());
    }
    // Moved away first: a half-removed directory must not look like one somebody else made.
    let trash = run_dir.join(".removed");
    let failed = || format!("can't remove {}", dir.display());
    remove(&trash).wrap_err_with(failed)?;
    std::fs::rename(dir, &trash).wrap_err_with(failed)?;
    remove(&trash).wrap_err_with(failed)
}

fn remove(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The attempts at a stage of which there are logs.
pub fn attempts(logs: &Path) -> impl Iterator<Item = usize> {
    let entries = std::fs::read_dir(logs).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("attempt_")?.parse().ok())
}

/// The number of the next of them.
pub fn next_attempt(logs: &Path) -> usize {
    attempts(logs).max().unwrap_or(0).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn attempts_count_up() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(next_attempt(&dir.path().join("none")), 1);
        for name in ["attempt_2", "attempt_10", "attempt_x", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(next_attempt(dir.path()), 11);
    }

    #[test]
    fn only_directories_of_stages_are_cleared() {
        let run = tempfile::tempdir().unwrap();
        clear(run.path(), &run.path().join("none")).unwrap();
        let dir = run.path().join("export");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("precious"), "x").unwrap();
        clear(run.path(), &dir).unwrap();
        assert!(dir.join("precious").exists());
        std::fs::write(dir.join("plan.json"), "{}").unwrap();
        clear(run.path(), &dir).unwrap();
        assert!(!dir.exists());
    }
}
