//! Everything but `run`: short commands that print or write one thing.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use color_eyre::eyre::WrapErr;
use reclora_storage::atomic::{create_dir_all, write_bytes_atomic};
use serde_json::Value;

use crate::cli::{Cli, ConfigCommand, ExportArgs, PredictArgs, SynthArgs};
use crate::config;
use crate::error::{LaunchError, Result};
use crate::progress::display::say;
use crate::report::{self, RunInfo};
use reclora_storage::mmap::set_access;
use reclora_storage::synth::{self, SynthSpec};
use reclora_trainer::stages::{
    RunContext, Stage, export_pair, outdated, predict, stage_dir, without_llm,
};

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    print_to_reader(text).map(drop)
}

/// The same, for what would go on and on: whether anybody still reads.
pub fn print_to_reader(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// `config`.
pub fn config(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Show { config, set } => print(&config::render(&config::load(config, set)?)),
        ConfigCommand::Reference { config } => print(&config::reference(config.as_deref())?),
        ConfigCommand::Schema => {
            print(&format!("{}\n", serde_json::to_string_pretty(&config::editor_schema())?))
        }
    }
}

/// `completions`.
pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "reclora-launch", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// `man`.
pub fn man(out_dir: Option<&Path>) -> Result<()> {
    let command = Cli::command();
    match out_dir {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            print(&String::from_utf8_lossy(&page))
        }
        Some(dir) => {
            create_dir_all(dir)?;
            clap_mangen::generate_to(command, dir)
                .wrap_err_with(|| format!("can't write the manual to {}", dir.display()))?;
            print(&format!("{}\n", dir.display()))
        }
    }
}

/// `synth`.
pub fn synth(args: &SynthArgs) -> Result<()> {
    let SynthArgs { users, items, ratings, seed, .. } = *args;
    let spec = SynthSpec { users, items, ratings, seed };
    if let Some(problem) = spec.problem() {
        return Err(LaunchError::Usage(problem).into());
    }
    synth::write(&args.out_dir, &spec, args.force)?;
    print(&format!("{}\n", args.out_dir.display()))
}

/// `export`.
pub fn export(args: &ExportArgs) -> Result<()> {
    export_pair(&context(&args.run)?, &args.user, &args.item, &args.out)?;
    print(&format!("{}\n", args.out.display()))
}

/// `predict`.
pub fn predict_pair(args: &PredictArgs) -> Result<()> {
    let prediction = predict(&context(&args.run)?, &args.user, &args.item)?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&prediction)?))
    } else {
        print(&readable(&serde_json::to_value(&prediction)?))
    }
}

/// `report`.
pub fn rebuild_report(run_dir: &Path) -> Result<()> {
    print(&write_report(run_dir)?)
}

/// Writes the report of a run; returns what the terminal shows of it.
pub fn write_report(run_dir: &Path) -> Result<String> {
    let context = context(run_dir)?;
    let (mut stages, mut hashes) = (Vec::new(), Vec::new());
    for stage in Stage::ALL.into_iter().filter(|stage| stage.is_needed(&context.config)) {
        let dir = stage_dir(&context, stage)?;
        if let Some(manifest) = dir.manifest()? {
            stages.push((stage.name().to_owned(), manifest.seconds));
            hashes.push((stage.name().to_owned(), dir.content_hash()?));
        }
    }
    note_outdated(&context);
    let info = RunInfo {
        name: context.config.name.clone(),
        stages,
        hashes,
        world_size: context.config.runtime.nproc_per_node,
        config_toml: config::render(&context.config),
    };
    let summary = report::write(run_dir, &info)?;
    let page = run_dir.join("report/index.html");
    Ok(format!("{}report: {}\n", report::table(&summary), page.display()))
}

/// Measures the models without an LLM of a run up to few2many: `RUN/report/crm.json`; returns what the
/// terminal shows of it.
pub fn write_without_llm(run_dir: &Path) -> Result<String> {
    let context = context(run_dir)?;
    let measured = without_llm(&context)?;
    let dir = context.run_dir.join("report");
    create_dir_all(&dir)?;
    let path = dir.join("crm.json");
    let mut bytes = serde_json::to_vec_pretty(&measured)?;
    bytes.push(b'\n');
    write_bytes_atomic(&path, &bytes)?;
    Ok(format!("{}\n{}\n", report::without_llm(&measured), path.display()))
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
        say(&format!("note: the settings shown are those of config.toml now, but {error}"));
    }
}

/// A flat object as lines: short values in a column, long texts below.
fn readable(value: &Value) -> String {
    let (mut short, mut long) = (String::new(), String::new());
    for (name, value) in value.as_object().into_iter().flatten() {
        let title = name.replace('_', " ");
        match value {
            Value::Null => {}
            Value::String(text) if text.contains('\n') || text.len() > 60 => {
                long.push_str(&format!("\n{title}:\n{text}\n"));
            }
            Value::String(text) => short.push_str(&format!("{title:20} {text}\n")),
            Value::Number(n) if n.is_f64() => {
                short.push_str(&format!("{title:20} {:.4}\n", n.as_f64().unwrap_or(f64::NAN)));
            }
            other => short.push_str(&format!("{title:20} {other}\n")),
        }
    }
    short + &long
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_lines() {
        let value = serde_json::json!({
            "user": "1", "reclora": 0.73125, "lora": null, "prompt": "a\nb", "cut": 3
        });
        let text = readable(&value);
        assert!(text.contains("reclora              0.7312\n"), "{text}");
        assert!(text.contains("user                 1\n"), "{text}");
        assert!(text.ends_with("\nprompt:\na\nb\n"), "{text}");
        assert!(!text.contains("\nlora"), "{text}");
    }
}
