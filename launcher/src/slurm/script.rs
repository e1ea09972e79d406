//! The text of a job.

use std::path::{Path, PathBuf};

use color_eyre::eyre::WrapErr;
use minijinja::{Environment, UndefinedBehavior, context};

use crate::cli::SubmitArgs;
use crate::error::Result;
use crate::exit::quote;
use reclora_trainer::config::Config;
use reclora_trainer::stages::Stage;

const TEMPLATE: &str = include_str!("job.sbatch.j2");

/// A job to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it runs.
    pub work: Work,
    /// Its script.
    pub script: PathBuf,
    /// Where Slurm is to write its output; %j is the job's number.
    pub output: PathBuf,
    /// The script's text.
    pub text: String,
}

/// What a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Every stage.
    All,
    /// One stage.
    Stage(Stage),
    /// So many parts of few2many, each a task of an array of jobs.
    Parts(u16),
}

impl Work {
    /// Name in job names, files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Stage(stage) => stage.name(),
            Self::Parts(_) => "few2many-parts",
        }
    }

    /// Whether it is one process.
    fn single_process(self) -> bool {
        matches!(self, Self::Stage(stage) if stage.single_process())
    }
}

/// The jobs of a run, in the order in which each waits for the one before.
pub fn plans(args: &SubmitArgs, config: &Config, program: &Path) -> Result<Vec<Plan>> {
    let work: Vec<Work> = if args.jobs.array_of_stages {
        let before = |stage| match (stage, args.jobs.few2many_jobs) {
            (Stage::Few2many, Some(jobs)) => Some(Work::Parts(jobs)),
            _ => None,
        };
        let stages = Stage::ALL.into_iter().filter(|stage| stage.is_needed(config));
        let stages = stages.filter(|stage| args.jobs.until.is_none_or(|until| *stage <= until));
        stages.flat_map(|stage| before(stage).into_iter().chain([Work::Stage(stage)])).collect()
    } else {
        vec![Work::All]
    };
    work.into_iter().map(|work| plan(args, config, program, work)).collect()
}

fn plan(args: &SubmitArgs, config: &Config, program: &Path, work: Work) -> Result<Plan> {
    let directory = config.run_dir.join(super::DIRECTORY);
    let name = match work {
        Work::All => config.name.clone(),
        work => format!("{}-{}", config.name, work.name()),
    };
    let file = if work == Work::All { "run" } else { work.name() };
    let (number, script) = match work {
        Work::Parts(_) => ("%A_%a", directory.join(format!("{file}.sbatch"))),
        _ => ("%j", directory.join(format!("{file}.sbatch"))),
    };
    let output = directory.join(format!("{file}-{number}.out"));
    let nodes = match work {
        Work::Parts(_) => 1,
        work if work.single_process() => 1,
        _ => args.resources.nodes,
    };
    let ranks = if work.single_process() { 1 } else { config.runtime.nproc_per_node };
    let last = work == Work::Stage(Stage::Export);
    let report = format!("{} report {}; ", word(program), word(&config.run_dir));
    let mut environment = Environment::new();
    // Names that do not exist are refused.
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_keep_trailing_newline(true);
    let text = environment.render_str(
        TEMPLATE,
        context! {
            title => title(config, work, usize::from(nodes), ranks),
            options => options(args, &name, nodes, work, &output),
            notice => args.jobs.notice,
            max_requeues => args.jobs.max_requeues,
            command => command(args, config, program, work),
            then => if last { report } else { String::new() },
        },
    );
    let text = text.wrap_err("the script's template")?;
    // Of an array the first task's output stands for all.
    let output = output.display().to_string().replace("%A_%a", "%j_0").into();
    Ok(Plan { work, script, output, text })
}

fn title(config: &Config, work: Work, nodes: usize, ranks: usize) -> String {
    let what = match work {
        Work::All => "all stages".to_owned(),
        Work::Stage(stage) => format!("stage {}", stage.name()),
        Work::Parts(jobs) => format!("a part of few2many in each of {jobs} jobs,"),
    };
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!(
        "{}: {what} on {}, {}",
        config.name,
        count(nodes, "node"),
        count(ranks, "rank") + " each"
    )
}

fn options(args: &SubmitArgs, name: &str, nodes: u16, work: Work, output: &Path) -> Vec<String> {
    let single = work.single_process();
    let mut all = vec![
        format!("--job-name={}", quote(name)),
        format!("--nodes={nodes}"),
        "--ntasks-per-node=1".to_owned(),
        format!("--output={}", word(output)),
        // A job that is started again adds to it.
        "--open-mode=append".to_owned(),
        "--requeue".to_owned(),
        format!("--signal=B:USR1@{}", args.jobs.notice),
    ];
    let mut add = |name: &str, value: &Option<String>| {
        all.extend(value.as_ref().map(|value| format!("--{name}={}", quote(value))));
    };
    add("time", &args.resources.time);
    let cpu = args.jobs.cpu_partition.as_ref().filter(|_| single);
    add("partition", &cpu.or(args.resources.partition.as_ref()).cloned());
    add("account", &args.resources.account);
    add("cpus-per-task", &args.resources.cpus_per_node.map(|cpus| cpus.to_string()));
    let gpus = args.resources.gpus_per_node.filter(|gpus| *gpus > 0 && !single);
    add("gpus-per-node", &gpus.map(|gpus| gpus.to_string()));
    if let Work::Parts(jobs) = work {
        add("array", &Some(format!("0-{}", jobs - 1)));
    }
    all.extend(args.resources.sbatch.iter().cloned());
    all
}

fn command(args: &SubmitArgs, config: &Config, program: &Path, work: Work) -> String {
    let saved = config.run_dir.join("config.toml");
    let mut words = vec![word(program), "run".into(), word(&saved)];
    words.extend(["--max-restarts".into(), args.jobs.max_restarts.to_string()]);
    match work {
        Work::All => {
            if let Some(until) = args.jobs.until {
                words.extend(["--until".into(), until.name().into()]);
            }
        }
        Work::Stage(stage) => words.extend(["--only".into(), stage.name().into()]),
        Work::Parts(jobs) => {
            let part = format!("\"$SLURM_ARRAY_TASK_ID/{jobs}\"");
            words.extend(["--only", "few2many", "--part", &part].map(str::to_owned));
        }
    }
    words.join(" ")
}

fn word(path: &Path) -> String {
    quote(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn args(text: &str) -> SubmitArgs {
        let words =
            ["reclora-launch", "submit", "c.toml"].into_iter().chain(text.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Submit(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn config() -> Config {
        let mut config = Config { run_dir: "/runs/my run".into(), ..Config::default() };
        config.runtime.nproc_per_node = 8;
        config.name = "films".into();
        config
    }

    #[test]
    fn a_script_says_what_was_asked_for() {
        let args = args(
            "--nodes 4 --gpus-per-node 8 --time 2:00:00 --partition gpu --sbatch=--constraint=a100",
        );
        let plans = plans(&args, &config(), Path::new("/opt/reclora-launch")).unwrap();
        let [plan] = &plans[..] else { panic!("{plans:?}") };
        for line in [
            "#!/bin/bash",
            "# films: all stages on 4 nodes, 8 ranks each",
            "#SBATCH --nodes=4",
            "#SBATCH --gpus-per-node=8",
            "#SBATCH --time=2:00:00",
            "#SBATCH --partition=gpu",
            "#SBATCH --constraint=a100",
            "#SBATCH --output='/runs/my run/slurm/run-%j.out'",
            "#SBATCH --signal=B:USR1@120",
            "    /opt/reclora-launch run '/runs/my run/config.toml' --max-restarts 3 &",
            "0) exit 0 ;;",
        ] {
            assert!(plan.text.lines().any(|l| l == line), "no line {line:?} in\n{}", plan.text);
        }
        assert!(!plan.text.contains("{{") && !plan.text.contains("{%"), "{}", plan.text);
    }

    #[test]
    fn stages_are_jobs_of_their_own() {
        let args = args(
            "--nodes 2 --gpus-per-node 8 --cpu-partition cpu --partition gpu --array-of-stages",
        );
        let plans = plans(&args, &config(), Path::new("/opt/reclora-launch")).unwrap();
        assert_eq!(plans.len(), 9);
        let prepare = &plans[0].text;
        for line in
            ["#SBATCH --nodes=1", "#SBATCH --partition=cpu", "#SBATCH --job-name=films-prepare"]
        {
            assert!(prepare.lines().any(|l| l == line), "no line {line:?} in\n{prepare}");
        }
        assert!(!prepare.contains("gpus-per-node"), "{prepare}");
        assert!(plans[6].text.contains("--only tune"), "{}", plans[6].text);
        assert!(plans[6].text.contains("#SBATCH --nodes=2"), "{}", plans[6].text);
        assert!(plans[8].text.contains("0) /opt/reclora-launch report '/runs/my run'; exit 0 ;;"));
    }

    #[test]
    fn stages_behind_the_last_that_is_wanted_and_those_not_needed_are_no_jobs() {
        let program = Path::new("/opt/reclora-launch");
        let all = plans(&args("--until few2many"), &config(), program).unwrap();
        assert!(all[0].text.contains("config.toml' --max-restarts 3 --until few2many &"));
        let mut config = config();
        let recent = reclora_trainer::config::Order::Recent;
        (config.retrieve.text_order, config.retrieve.crm_order) = (recent, recent);
        let args = args("--until few2many --array-of-stages");
        let plans = plans(&args, &config, program).unwrap();
        let work: Vec<&str> = plans.iter().map(|plan| plan.work.name()).collect();
        assert_eq!(work, ["prepare", "retrieve", "count", "pretrain", "few2many"]);
        assert!(!plans[4].text.contains("report"), "{}", plans[4].text);
    }

    #[test]
    fn few2many_can_be_an_array() {
        let args = args("--nodes 2 --array-of-stages --few2many-jobs 3");
        let plans = plans(&args, &config(), Path::new("/opt/reclora-launch")).unwrap();
        let work: Vec<&str> = plans.iter().map(|plan| plan.work.name()).collect();
        assert_eq!(work[4..7], ["pretrain", "few2many-parts", "few2many"]);
        let text = &plans[5].text;
        for line in [
            "#SBATCH --array=0-2",
            "#SBATCH --nodes=1",
            "#SBATCH --output='/runs/my run/slurm/few2many-parts-%A_%a.out'",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
        assert!(text.contains("--only few2many --part \"$SLURM_ARRAY_TASK_ID/3\" &"), "{text}");
        assert!(plans[5].output.ends_with("slurm/few2many-parts-%j_0.out"));
    }
}
