//! The text of a job.

use std::path::{Path, PathBuf};

use color_eyre::eyre::WrapErr;
use minijinja::{Environment, UndefinedBehavior, context};

use crate::cli::SubmitArgs;
use crate::error::{Result, quote};
use reclora_trainer::config::Config;
use reclora_trainer::stages::Stage;

const TEMPLATE: &str = include_str!("job.sbatch.j2");

/// A job to be: the whole run, or one stage of it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The stage, if not all.
    pub stage: Option<Stage>,
    /// Its script.
    pub script: PathBuf,
    /// Where Slurm is to write its output; %j is the job's number.
    pub output: PathBuf,
    /// The script's text.
    pub text: String,
}

/// The jobs of a run, in the order in which each waits for the one before.
pub fn plans(args: &SubmitArgs, config: &Config, program: &Path) -> Result<Vec<Plan>> {
    if !args.array_of_stages {
        return Ok(vec![plan(args, config, program, None)?]);
    }
    Stage::ALL.into_iter().map(|stage| plan(args, config, program, Some(stage))).collect()
}

fn plan(args: &SubmitArgs, config: &Config, program: &Path, stage: Option<Stage>) -> Result<Plan> {
    let directory = config.run_dir.join(super::DIRECTORY);
    let name = match stage {
        None => config.name.clone(),
        Some(stage) => format!("{}-{}", config.name, stage.name()),
    };
    let file = stage.map_or("run", Stage::name);
    let output = directory.join(format!("{file}-%j.out"));
    let (script, single) =
        (directory.join(format!("{file}.sbatch")), stage.is_some_and(Stage::single_process));
    let nodes = if single { 1 } else { args.nodes };
    let ranks = config.runtime.nproc_per_node;
    let last = stage == Some(Stage::Export);
    let text = Environment::new_strict().render_str(
        TEMPLATE,
        context! {
            title => title(config, stage, usize::from(nodes), if single { 1 } else { ranks }),
            options => options(args, &name, nodes, single, &output),
            notice => args.notice,
            max_requeues => args.max_requeues,
            command => command(args, config, program, stage),
            then => if last { format!("{} report {}; ", word(program), word(&config.run_dir)) } else { String::new() },
        },
    );
    Ok(Plan { stage, script, output, text: text.wrap_err("the script's template")? })
}

/// An environment that refuses names which do not exist.
trait Strict {
    fn new_strict() -> Self;
}

impl Strict for Environment<'_> {
    fn new_strict() -> Self {
        let mut environment = Self::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(true);
        environment
    }
}

fn title(config: &Config, stage: Option<Stage>, nodes: usize, ranks: usize) -> String {
    let what = stage.map_or("all stages".into(), |stage| format!("stage {}", stage.name()));
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!(
        "{}: {what} on {}, {}",
        config.name,
        count(nodes, "node"),
        count(ranks, "rank") + " each"
    )
}

fn options(args: &SubmitArgs, name: &str, nodes: u16, single: bool, output: &Path) -> Vec<String> {
    let mut all = vec![
        format!("--job-name={}", quote(name)),
        format!("--nodes={nodes}"),
        "--ntasks-per-node=1".to_owned(),
        format!("--output={}", word(output)),
        // A job that is started again adds to it.
        "--open-mode=append".to_owned(),
        "--requeue".to_owned(),
        format!("--signal=B:USR1@{}", args.notice),
    ];
    let mut add = |name: &str, value: &Option<String>| {
        all.extend(value.as_ref().map(|value| format!("--{name}={}", quote(value))));
    };
    add("time", &args.time);
    let cpu = args.cpu_partition.as_ref().filter(|_| single);
    add("partition", &cpu.or(args.partition.as_ref()).cloned());
    add("account", &args.account);
    add("cpus-per-task", &args.cpus_per_node.map(|cpus| cpus.to_string()));
    let gpus = args.gpus_per_node.filter(|gpus| *gpus > 0 && !single);
    add("gpus-per-node", &gpus.map(|gpus| gpus.to_string()));
    all.extend(args.sbatch.iter().cloned());
    all
}

fn command(args: &SubmitArgs, config: &Config, program: &Path, stage: Option<Stage>) -> String {
    let saved = config.run_dir.join("config.toml");
    let mut words = vec![word(program), "run".into(), word(&saved)];
    words.extend(["--max-restarts".into(), args.max_restarts.to_string()]);
    if let Some(stage) = stage {
        words.extend(["--only".into(), stage.name().into()]);
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
        assert_eq!(plans.len(), 8);
        let prepare = &plans[0].text;
        for line in
            ["#SBATCH --nodes=1", "#SBATCH --partition=cpu", "#SBATCH --job-name=films-prepare"]
        {
            assert!(prepare.lines().any(|l| l == line), "no line {line:?} in\n{prepare}");
        }
        assert!(!prepare.contains("gpus-per-node"), "{prepare}");
        assert!(plans[5].text.contains("--only tune"), "{}", plans[5].text);
        assert!(plans[5].text.contains("#SBATCH --nodes=2"), "{}", plans[5].text);
        assert!(plans[7].text.contains("0) /opt/reclora-launch report '/runs/my run'; exit 0 ;;"));
    }
}
