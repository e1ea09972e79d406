//! `logs`: what a run has said, and goes on to say.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use color_eyre::eyre::WrapErr;

use super::status::ask;
use super::{Job, jobs_of};
use crate::cli::LogsArgs;
use crate::error::{LaunchError, Result};
use crate::output::{print_to_reader, say};
use crate::run_dir::attempts;

/// Between two looks for more.
const POLL: Duration = Duration::from_millis(250);
/// Looks at the file between two questions to Slurm whether the job still runs.
const ASK_EVERY: u32 = 20;
/// Most that is shown at once.
const PIECE: u64 = 1 << 20;

/// `logs RUN`.
pub fn logs(args: &LogsArgs) -> Result<()> {
    let path = match args.rank {
        Some(rank) => rank_log(&args.run, args.stage.map(|stage| stage.name()), rank)?,
        None => job_of(&args.run, args.stage.map(|stage| stage.name()))?.output,
    };
    say(&format!("==> {}", path.display()));
    let mut at = start_of_tail(&path, args.lines)?;
    let mut quiet = 0;
    loop {
        let (text, next) = read_from(&path, at)?;
        let is_read = print_to_reader(&text)?;
        at = next;
        if !args.follow || !is_read {
            return Ok(());
        }
        if !text.is_empty() {
            quiet = 0;
            continue;
        }
        quiet += 1;
        // Nothing new for a while: is there still somebody to say something?
        if quiet % ASK_EVERY == 0 && !is_live(&args.run)? {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// Whether a job of the run may still run; a run without jobs is followed for as long as one likes.
fn is_live(run_dir: &Path) -> Result<bool> {
    let Ok(jobs) = jobs_of(run_dir) else { return Ok(true) };
    for job in &jobs {
        // A controller that is away is no reason to stop.
        if ask(job).map_or(true, |state| state.is_live()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The job of a stage, or the last that has said something.
fn job_of(run_dir: &Path, stage: Option<&str>) -> Result<Job> {
    let jobs = jobs_of(run_dir)?;
    let of_stage =
        |job: &&Job| stage.is_none() || job.stage.is_none() || job.stage.as_deref() == stage;
    let mut wanted = jobs.iter().filter(of_stage);
    let last = wanted.clone().rev().find(|job| job.output.is_file());
    last.or(wanted.next()).cloned().ok_or_else(|| {
        LaunchError::Usage(format!("{}: no job for that stage", run_dir.display())).into()
    })
}

/// The log of a rank's newest attempt at a stage, or at the stage that was begun last.
fn rank_log(run_dir: &Path, stage: Option<&str>, rank: usize) -> Result<PathBuf> {
    let logs = run_dir.join("logs");
    let stages = std::fs::read_dir(&logs).into_iter().flatten().flatten();
    let newest = stages
        .filter(|entry| stage.is_none_or(|stage| entry.file_name() == stage))
        .filter_map(|entry| {
            let attempt = attempts(&entry.path()).max()?;
            let dir = entry.path().join(format!("attempt_{attempt}"));
            Some((dir.metadata().ok()?.modified().ok()?, dir))
        })
        .max();
    let Some((_, dir)) = newest else {
        let what = stage.map_or("any stage".into(), |stage| format!("stage {stage}"));
        let what = format!("{}: no log of {what} yet", logs.display());
        return Err(LaunchError::Usage(what).into());
    };
    let path = dir.join(format!("rank_{rank}/stderr.log"));
    if !path.is_file() {
        return Err(LaunchError::Usage(format!("{}: no rank {rank} there", dir.display())).into());
    }
    Ok(path)
}

/// Where the last `lines` lines begin.
fn start_of_tail(path: &Path, lines: Option<usize>) -> Result<u64> {
    let Some(lines) = lines else { return Ok(0) };
    let size = path.metadata().map_or(0, |metadata| metadata.len());
    let from = size.saturating_sub(PIECE);
    let (text, _) = read_from(path, from)?;
    let skip = text.trim_end_matches('\n').rmatch_indices('\n').nth(lines.saturating_sub(1));
    Ok(from + skip.map_or(0, |(place, _)| place as u64 + 1))
}

/// What is in a file from a place on, and where that ends. A file that is not there yet is empty.
fn read_from(path: &Path, at: u64) -> Result<(String, u64)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((String::new(), at));
        }
        Err(error) => return Err(error).wrap_err_with(|| format!("can't read {}", path.display())),
    };
    let failed = || format!("can't read {}", path.display());
    // Cut short, by a job that began anew: from its beginning.
    let at = if file.metadata().wrap_err_with(failed)?.len() < at { 0 } else { at };
    file.seek(SeekFrom::Start(at)).wrap_err_with(failed)?;
    let mut bytes = Vec::new();
    file.take(PIECE).read_to_end(&mut bytes).wrap_err_with(failed)?;
    let next = at + bytes.len() as u64;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_file_and_what_comes_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(read_from(&path, 0).unwrap(), (String::new(), 0));
        std::fs::write(&path, "a\nb\nc\n").unwrap();
        assert_eq!(start_of_tail(&path, Some(2)).unwrap(), 2);
        assert_eq!(start_of_tail(&path, Some(9)).unwrap(), 0);
        assert_eq!(start_of_tail(&path, None).unwrap(), 0);
        let (text, at) = read_from(&path, 2).unwrap();
        assert_eq!((text.as_str(), at), ("b\nc\n", 6));
        std::fs::write(&path, "new").unwrap();
        assert_eq!(read_from(&path, 6).unwrap(), ("new".into(), 3));
    }

    #[test]
    fn the_newest_attempt_of_a_rank() {
        let dir = tempfile::tempdir().unwrap();
        assert!(rank_log(dir.path(), None, 0).unwrap_err().to_string().contains("no log"));
        for attempt in [2, 10] {
            let rank = dir.path().join(format!("logs/tune/attempt_{attempt}/rank_1"));
            std::fs::create_dir_all(&rank).unwrap();
            std::fs::write(rank.join("stderr.log"), "").unwrap();
        }
        let log = rank_log(dir.path(), Some("tune"), 1).unwrap();
        assert!(log.ends_with("logs/tune/attempt_10/rank_1/stderr.log"), "{log:?}");
        assert!(rank_log(dir.path(), Some("tune"), 7).is_err());
        assert!(rank_log(dir.path(), Some("embed"), 1).is_err());
    }
}
