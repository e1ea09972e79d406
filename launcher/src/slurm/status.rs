//! `status` and `cancel`: what Slurm says of a run's jobs, beside what the run's own files say.

use std::path::Path;
use std::time::{Duration, Instant};

use color_eyre::eyre::eyre;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use reclora_trainer::stages::{RunContext, Stage, stage_dir};
use reclora_trainer::telemetry::progress::Event;
use serde::Serialize;

use super::{Job, client, jobs_of};
use crate::error::Result;
use crate::output::{print, printable, show};
use crate::progress::tracker::Tracker;
use crate::run_dir::{attempts, context};

/// How long a cancelled job may take to be gone: Slurm's KillWait is 30 s unless configured.
const CANCEL_WAIT: Duration = Duration::from_secs(120);
/// States of jobs that may still run.
const LIVE: [&str; 7] =
    ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "REQUEUED", "SIGNALING"];
/// Between two questions to Slurm.
const POLL: Duration = Duration::from_millis(500);

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobState {
    /// Slurm's number.
    pub id: u64,
    /// The stage it runs, or "all".
    pub stage: String,
    /// Slurm's word: PENDING, RUNNING, COMPLETED, ...
    pub state: String,
    /// Why it waits, or its nodes.
    pub detail: String,
    /// How long it has run, and how long it still may.
    pub time: String,
}

impl JobState {
    /// Whether it may still run.
    pub fn is_live(&self) -> bool {
        LIVE.contains(&self.state.as_str())
    }
}

/// How far a stage is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct StageState {
    stage: &'static str,
    state: String,
}

/// What `status` shows.
#[derive(Serialize)]
struct All {
    jobs: Vec<JobState>,
    stages: Vec<StageState>,
}

/// `status RUN`.
pub fn status(run_dir: &Path, json: bool) -> Result<()> {
    let jobs = jobs_of(run_dir)?.iter().map(ask).collect::<Result<Vec<_>>>()?;
    let context = context(run_dir)?;
    let stages: Vec<StageState> = Stage::ALL
        .into_iter()
        .map(|stage| StageState { stage: stage.name(), state: progress_of(&context, stage) })
        .collect();
    let all = All { jobs, stages };
    show(&all, json, readable)
}

fn readable(All { jobs, stages }: &All) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["job", "stage", "state", "time", ""]);
    for job in jobs {
        table.add_row([&job.id.to_string(), &job.stage, &job.state, &job.time, &job.detail]);
    }
    let mut progress = Table::new();
    progress.load_preset(NOTHING);
    for stage in stages {
        progress.add_row([stage.stage, &stage.state]);
    }
    format!("{}\n\n{}\n", table.trim_fmt(), progress.trim_fmt())
}

/// `cancel RUN`.
pub fn cancel(run_dir: &Path) -> Result<()> {
    let jobs = jobs_of(run_dir)?;
    let live = |jobs: &[Job]| -> Result<Vec<JobState>> {
        let all = jobs.iter().map(ask).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().filter(JobState::is_live).collect())
    };
    let running = live(&jobs)?;
    if running.is_empty() {
        return print("no job of this run is in the queue\n");
    }
    // The last first: what waits for a job must not start when that ends.
    let ids: Vec<String> = running.iter().rev().map(|job| job.id.to_string()).collect();
    client::call("scancel", &ids.iter().map(String::as_str).collect::<Vec<_>>())?;
    let until = Instant::now() + CANCEL_WAIT;
    loop {
        let left = live(&jobs)?;
        if left.is_empty() {
            return print(&format!("cancelled job {}\n", ids.join(", ")));
        }
        if Instant::now() >= until {
            let left: Vec<String> = left.iter().map(|job| job.id.to_string()).collect();
            let seconds = CANCEL_WAIT.as_secs();
            return Err(eyre!("job {} was still there {seconds} s after scancel", left.join(", ")));
        }
        std::thread::sleep(POLL);
    }
}

/// Asks Slurm: the queue first, then what it remembers of jobs that have ended.
pub fn ask(job: &Job) -> Result<JobState> {
    let id = job.id.to_string();
    let record = client::call("scontrol", &["--oneliner", "show", "job", &id]);
    let stage = job.stage.clone().unwrap_or_else(|| "all".into());
    let state = |state: &str, time: String, detail: String| JobState {
        id: job.id,
        stage: stage.clone(),
        state: state.to_owned(),
        detail,
        time,
    };
    match record {
        Ok(records) => {
            // Of an array: a task that may still run, or one that went wrong, stands for all.
            let state_of = |record: &&str| field(record, "JobState").unwrap_or_default().to_owned();
            let tasks: Vec<&str> = records.lines().filter(|line| !line.trim().is_empty()).collect();
            let live = tasks.iter().find(|record| LIVE.contains(&state_of(record).as_str()));
            let wrong = tasks.iter().find(|record| state_of(record) != "COMPLETED");
            let record = live.or(wrong).or(tasks.first()).copied().unwrap_or_default();
            let field = |name: &str| field(record, name).unwrap_or_default();
            let detail = match field("JobState") {
                "PENDING" => field("Reason").to_owned(),
                "RUNNING" | "COMPLETING" => field("NodeList").to_owned(),
                _ => format!("exit code {}", field("ExitCode")),
            };
            let restarts = match field("Restarts") {
                "" | "0" => String::new(),
                n => format!(", restart {n}"),
            };
            let time = format!("{} of {}{restarts}", field("RunTime"), field("TimeLimit"));
            Ok(state(field("JobState"), time, detail))
        }
        // Slurm forgets jobs some minutes after their end; where there is accounting, that knows.
        Err(error) if error.to_string().contains("Invalid job id") => {
            let args = ["--noheader", "--parsable2", "--allocations", "--jobs", &id];
            let args = [&args[..], &["--format", "State,ExitCode,Elapsed"]].concat();
            let ended = client::call("sacct", &args).unwrap_or_default();
            let mut fields = ended.trim().split('|');
            let word = fields.next().filter(|word| !word.is_empty()).unwrap_or("FORGOTTEN");
            let code = fields.next().map_or(String::new(), |code| format!("exit code {code}"));
            Ok(state(word, fields.next().unwrap_or_default().to_owned(), code))
        }
        Err(error) => Err(error),
    }
}

/// The value of `name=value` in a record of scontrol.
fn field<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// How far a stage is, in words.
fn progress_of(context: &RunContext, stage: Stage) -> String {
    if !stage.is_needed(&context.config) {
        return "not needed".into();
    }
    if stage_dir(context, stage).and_then(|dir| Ok(dir.is_complete()?)).unwrap_or(false) {
        return "done".into();
    }
    let logs = context.run_dir.join("logs").join(stage.name());
    let Some(attempt) = attempts(&logs).max() else { return "not begun".into() };
    let ranks = std::fs::read_dir(logs.join(format!("attempt_{attempt}"))).into_iter().flatten();
    let logs = ranks.flatten().map(|rank| rank.path().join("stdout.log"));
    let logs: Vec<Vec<Event>> = logs.map(|log| events_of(&log)).collect();
    let attempt = if attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
    let doing = doing(&logs).unwrap_or_else(|| "no step yet".into());
    format!("begun{attempt}; {}", printable(&doing))
}

fn events_of(log: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// How far the task is that ranks began last: what each has done of it, together.
fn doing(logs: &[Vec<Event>]) -> Option<String> {
    let mut tracker = Tracker::new(logs.len());
    for (rank, events) in logs.iter().enumerate() {
        // Logs are read one after the other: nothing is over before all of them are.
        for event in events.iter().filter(|event| !matches!(event, Event::Finish { .. })) {
            tracker.apply(rank, event.clone());
        }
    }
    let task = tracker.latest()?;
    let note = if task.note.is_empty() { String::new() } else { format!(", {}", task.note) };
    Some(format!("{}: {} of {} {}{note}", task.name, task.done(), task.total, task.unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_field() {
        let record =
            "JobId=7 JobName=a JobState=PENDING Reason=Resources RunTime=00:00:00 Restarts=0";
        assert_eq!(field(record, "JobState"), Some("PENDING"));
        assert_eq!(field(record, "Reason"), Some("Resources"));
        assert_eq!(field(record, "State"), None);
    }

    #[test]
    fn what_ranks_have_done_is_added_up() {
        let start_of = |task: &str, total, together| Event::Start {
            task: task.into(),
            total,
            unit: "steps".into(),
            together,
        };
        let start = |task: &str, total| start_of(task, total, false);
        let update = |task: &str, done, note: &str| Event::Update {
            task: task.into(),
            done,
            note: note.into(),
        };
        let rank = |done| {
            vec![
                start("one", 8),
                update("one", 4, ""),
                start("two", 20),
                update("two", done, "loss 1"),
            ]
        };
        assert_eq!(doing(&[rank(3), rank(4)]).unwrap(), "two: 7 of 20 steps, loss 1");
        assert_eq!(doing(&[vec![start("one", 8)], vec![]]).unwrap(), "one: 0 of 8 steps");
        assert_eq!(doing(&[vec![]]), None);
        let rank = |done| vec![start_of("two", 20, true), update("two", done, "")];
        assert_eq!(doing(&[rank(4), rank(4)]).unwrap(), "two: 4 of 20 steps");
    }
}
