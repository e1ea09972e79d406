//! `submit`: from flags to a job in the queue.

use std::path::Path;

use color_eyre::eyre::{WrapErr, eyre};
use reclora_storage::atomic::{create_dir_all, write_bytes_atomic};
use reclora_trainer::stages::RunContext;

use super::script::{Plan, Work, plans};
use super::status::ask;
use super::{DIRECTORY, Job, client, jobs_file, jobs_of, remember};
use crate::cli::{NodeCount, ResourceArgs, SubmitArgs};
use crate::error::{LaunchError, Result};
use crate::exit::quote;
use crate::output::{print, say};
use crate::preflight;
use crate::resolve::resolve;
use crate::run_dir::{save, take};

/// Renders the jobs of a run and hands them to Slurm.
pub fn submit(args: &SubmitArgs) -> Result<()> {
    let ResourceArgs { nodes, nproc_per_node, gpus_per_node, sbatch, .. } = &args.resources;
    let ranks = nproc_per_node.or(gpus_per_node.filter(|gpus| *gpus > 0));
    let nodes = NodeCount { min: *nodes, max: *nodes };
    let config = resolve(&args.experiment, ranks, nodes)?;
    for option in sbatch {
        if !option.starts_with('-') || option.contains('\n') {
            return Err(LaunchError::Usage(format!(
                "--sbatch {option}: not an option of sbatch\n  help: write it as --sbatch=--constraint=a100"
            ))
            .into());
        }
    }
    preflight::elsewhere(&RunContext::new(config.run_dir.clone(), config.clone()))?;
    let program = std::env::current_exe().wrap_err("can't find this executable")?;
    let plans = plans(args, &config, &program)?;
    if args.dry_run {
        let texts: Vec<&str> = plans.iter().map(|plan| plan.text.as_str()).collect();
        return print(&texts.join("\n"));
    }
    let run_dir = &config.run_dir;
    refuse_second(run_dir)?;
    // Only while the files are written: the job's launcher takes it again.
    let lock = take(&config)?;
    save(&config)?;
    create_dir_all(&run_dir.join(DIRECTORY))?;
    for plan in &plans {
        write_bytes_atomic(&plan.script, plan.text.as_bytes())?;
    }
    drop(lock);
    let mut jobs: Vec<Job> = Vec::new();
    for plan in &plans {
        let submitted = queue(plan, jobs.last()).and_then(|job| {
            jobs.push(job);
            remember(run_dir, &jobs)
        });
        if let Err(error) = submitted {
            withdraw(&jobs);
            return Err(error);
        }
    }
    report(&jobs, &run_dir.display().to_string())
}

/// Two jobs can't work in one run directory, and the second would fail when its turn comes.
fn refuse_second(run_dir: &Path) -> Result<()> {
    if !jobs_file(run_dir).exists() {
        return Ok(());
    }
    let states = jobs_of(run_dir)?.iter().map(ask).collect::<Result<Vec<_>>>()?;
    let Some(live) = states.iter().find(|state| state.is_live()) else { return Ok(()) };
    let run = quote(&run_dir.display().to_string());
    Err(LaunchError::Usage(format!(
        "job {} of this run is {} still\n  help: wait for it (reclora-launch status {run}), end it \
         (reclora-launch cancel {run}), or give this one a directory of its own with --run-dir",
        live.id,
        live.state.to_lowercase()
    ))
    .into())
}

/// Hands one script to Slurm, to wait for the job before.
fn queue(plan: &Plan, before: Option<&Job>) -> Result<Job> {
    let script = plan.script.display().to_string();
    let mut args = vec!["--parsable".to_owned()];
    if let Some(before) = before {
        args.push(format!("--dependency=afterok:{}", before.id));
        // A stage whose input failed never starts.
        args.push("--kill-on-invalid-dep=yes".to_owned());
    }
    args.push(script.clone());
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let answer = client::call("sbatch", &words)
        .wrap_err_with(|| format!("the job was not submitted; its script is {script}"))?;
    // "ID" or "ID;CLUSTER".
    let id = answer.trim().split(';').next().and_then(|id| id.parse().ok());
    let id: u64 =
        id.ok_or_else(|| eyre!("sbatch answered {:?}, no number of a job", answer.trim()))?;
    let output = plan.output.display().to_string().replace("%j", &id.to_string());
    let stage = (plan.work != Work::All).then(|| plan.work.name().to_owned());
    Ok(Job { id, stage, script: plan.script.clone(), output: output.into() })
}

/// A chain that is not whole is none.
fn withdraw(jobs: &[Job]) {
    for job in jobs {
        if let Err(error) = client::call("scancel", &[&job.id.to_string()]) {
            say(&format!("job {} is left in the queue: {error}", job.id));
        }
    }
}

fn report(jobs: &[Job], run_dir: &str) -> Result<()> {
    let mut text = String::new();
    for job in jobs {
        match &job.stage {
            None => text.push_str(&format!("submitted job {}\n", job.id)),
            Some(stage) => text.push_str(&format!("submitted job {} for {stage}\n", job.id)),
        }
    }
    let run = quote(run_dir);
    text.push_str(&format!(
        "  reclora-launch status {run}\n  reclora-launch logs {run} --follow\n  reclora-launch cancel {run}\n"
    ));
    print(&text)
}
