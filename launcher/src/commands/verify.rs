//! `verify`: is every file of a run what was written? Says so, and how to get back what is not.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use color_eyre::eyre::eyre;
use indicatif::{ProgressBar, ProgressStyle};
use reclora_storage::StorageError;
use reclora_storage::atomic::RunLock;
use reclora_storage::verify::{Finding, Report, Work};
use reclora_trainer::stages::Stage;
use reclora_trainer::training::checkpoint;
use serde::Serialize;

use crate::cli::VerifyArgs;
use crate::config;
use crate::error::{LaunchError, Result};
use crate::exit::quote;
use crate::output::{say, show};

/// A damaged file as it is shown.
#[derive(Serialize)]
struct Damaged {
    path: PathBuf,
    problem: String,
    stage: Option<String>,
    /// The command that writes it again, where a stage is known to write it.
    rebuild: Option<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary {
    path: PathBuf,
    ok: bool,
    whole: u64,
    remembered: u64,
    bytes_read: u64,
    seconds: f64,
    damaged: Vec<Damaged>,
    unfinished: Vec<PathBuf>,
    outdated: Vec<String>,
}

/// Checks what the arguments name; an error if anything is not what was written.
pub fn verify(args: &VerifyArgs) -> Result<()> {
    let start = Instant::now();
    let path = &args.path;
    if !path.exists() {
        let text = format!("{}: there is no such file or directory", path.display());
        return Err(LaunchError::Usage(text).into());
    }
    let path = std::path::absolute(path)?;
    let run = run_of(&path);
    let _lock = run.map(lock).transpose()?.flatten();
    let work = Work::of(&path)?;
    let broken_config = run.filter(|run| *run == path).and_then(broken_config);
    if work.is_empty() && broken_config.is_none() {
        let text = format!(
            "{}: nothing to check: no manifest.json, plan.json or shard\n  help: name a run \
             directory, a directory of it, or a file",
            path.display()
        );
        return Err(LaunchError::Usage(text).into());
    }
    let mut report = check(work, args.fresh);
    report.damaged.extend(broken_config);
    let summary = summarise(path.clone(), run, report, start.elapsed());
    show(&summary, args.json, readable)?;
    match summary.damaged.len() {
        0 => Ok(()),
        count => {
            Err(eyre!("{}: {}", path.display(), files_are(count as u64, "not what was written")))
        }
    }
}

/// Reads everything, with a progress bar. `fresh` takes nothing over from an interrupted check.
pub fn check(work: Work, fresh: bool) -> Report {
    let template = "{prefix} {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  eta {eta}";
    let style = ProgressStyle::with_template(template);
    // Not shown where standard error is no terminal.
    let bar = ProgressBar::new(work.bytes())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_prefix("verify");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let report = work.run(threads, fresh, &is_whole, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    if let Some(problem) = &report.forgetful {
        say(&format!("an interruption would have lost what was checked: {problem}"));
    }
    report
}

/// Files that only the trainer knows.
fn is_whole(path: &Path) -> Option<Result<(), String>> {
    let damaged = "is no whole checkpoint (its hash differs); a run takes the one before it";
    checkpoint::is_whole(path).map(|whole| whole.then_some(()).ok_or_else(|| damaged.to_owned()))
}

/// The run directory that `path` is or is inside of.
fn run_of(path: &Path) -> Option<&Path> {
    path.ancestors().find(|dir| dir.join("config.toml").is_file())
}

/// What a run writes meanwhile would look damaged. A directory that cannot be locked (another person's,
/// a read-only one) has no run that could start either.
fn lock(run: &Path) -> Result<Option<RunLock>> {
    if !run.join(".lock").exists() {
        return Ok(None);
    }
    match RunLock::acquire(run, Duration::ZERO) {
        Ok(lock) => Ok(Some(lock)),
        Err(StorageError::Io { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn broken_config(run: &Path) -> Option<Finding> {
    let error = config::load_run(run).err()?;
    let problem = format!("is no config: {error}");
    Some(Finding { path: run.join("config.toml"), problem, stage: None, foreign: false })
}

fn summarise(path: PathBuf, run: Option<&Path>, report: Report, elapsed: Duration) -> Summary {
    let config = match run.map(|run| run.join("config.toml")) {
        Some(config) => quote(&config.display().to_string()),
        None => "CONFIG".to_owned(),
    };
    let damaged = report.damaged.into_iter().map(|finding| {
        let Finding { path, problem, stage, foreign } = finding;
        let stage = stage.or_else(|| stage_by_directory(run?, &path));
        // To rebuild the directory would remove what somebody put there.
        let rebuild = stage
            .as_ref()
            .filter(|_| !foreign)
            .map(|stage| format!("reclora-launch run {config} --from {stage}"));
        Damaged { path, problem, stage, rebuild }
    });
    let damaged: Vec<Damaged> = damaged.collect();
    Summary {
        path,
        ok: damaged.is_empty(),
        whole: report.whole,
        remembered: report.remembered,
        bytes_read: report.bytes,
        seconds: elapsed.as_secs_f64(),
        damaged,
        unfinished: report.unfinished,
        outdated: report.outdated,
    }
}

/// The stage whose directory a file of a run is in, where plan and manifest do not say it any more.
fn stage_by_directory(run: &Path, path: &Path) -> Option<String> {
    let first = path.strip_prefix(run).ok()?.components().next()?;
    let stage = Stage::ALL.into_iter().find(|stage| first.as_os_str() == stage.directory())?;
    Some(stage.name().to_owned())
}

/// "1 file is WHAT" or "N files are WHAT".
fn files_are(count: u64, what: &str) -> String {
    if count == 1 { format!("1 file is {what}") } else { format!("{count} files are {what}") }
}

fn readable(summary: &Summary) -> String {
    let mut text = String::new();
    for damaged in &summary.damaged {
        text.push_str(&format!("{}: {}\n", damaged.path.display(), damaged.problem));
        match &damaged.rebuild {
            Some(command) => text.push_str(&format!("  rebuild it: {command}\n")),
            None => text.push_str("  no run rebuilds it: move it away, or copy it again\n"),
        }
    }
    for dir in &summary.unfinished {
        text.push_str(&format!("{}: its stage has not finished\n", dir.display()));
    }
    for line in &summary.outdated {
        text.push_str(&format!("{line}; the next run makes it again\n"));
    }
    text.push_str(&files_are(summary.whole, "as written"));
    if summary.remembered > 0 {
        text.push_str(&format!(
            " ({} of them read before the check was interrupted)",
            summary.remembered
        ));
    }
    if !summary.damaged.is_empty() {
        text.push_str(&format!(", {}", files_are(summary.damaged.len() as u64, "not")));
    }
    let mib = summary.bytes_read as f64 / f64::from(1 << 20);
    text.push_str(&format!("; {mib:.1} MiB read in {:.1} s\n", summary.seconds));
    text
}
