//! `doctor`: what a run will need, looked at before it needs it.

mod machine;
mod run;

use reclora_trainer::stages::{RunContext, Stage};

use crate::cli::{DoctorArgs, ExperimentArgs, NodeCount};
use crate::error::{LaunchError, Result};
use crate::output::show;
use crate::preflight::{self, Check, Level};
use crate::resolve::resolve;

/// Looks, and tells.
pub fn doctor(args: &DoctorArgs) -> Result<()> {
    let mut checks = machine::checks();
    if let Some(path) = &args.config {
        let (config, run_dir, set) = (path.clone(), args.run_dir.clone(), args.set.clone());
        match resolve(&ExperimentArgs { config, run_dir, set }, None, NodeCount::ONE) {
            Ok(config) => {
                let run_dir = config.run_dir.clone();
                let found =
                    preflight::checks(&RunContext::new(run_dir, config.clone()), &Stage::ALL);
                let seen = match found.iter().any(|check| check.level == Level::Wrong) {
                    true => "has no setting that is wrong by itself",
                    false => "can work",
                };
                checks.push(Check::fine("config", format!("{} {seen}", path.display())));
                checks.extend(found);
                checks.extend(run::checks(&config));
            }
            Err(error) => {
                let text = format!("{error:#}");
                let (seen, help) = text.split_once("\n  help: ").unwrap_or((&text, "correct it"));
                checks.push(Check::wrong("config", seen, help));
            }
        }
    } else if !args.set.is_empty() || args.run_dir.is_some() {
        let text = "--set and --run-dir change a config: name one before them";
        return Err(LaunchError::Usage(text.into()).into());
    }
    if let Some(endpoint) = &args.rdzv_endpoint {
        checks.push(run::endpoint(endpoint));
    }
    show(&checks, args.json, |checks| readable(checks))?;
    let wrong = checks.iter().filter(|check| check.level == Level::Wrong).count();
    match wrong {
        0 => Ok(()),
        n => {
            Err(color_eyre::eyre::eyre!("{n} of {} checks say that a run would fail", checks.len()))
        }
    }
}

fn readable(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, level, seen, help } in checks {
        let mark = match level {
            Level::Fine => "ok     ",
            Level::Warning => "warning",
            Level::Wrong => "WRONG  ",
        };
        text.push_str(&format!("{mark}  {name:14} {seen}\n"));
        if let Some(help) = help {
            text.push_str(&format!("         {:14} help: {help}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_lines() {
        let checks = [Check::fine("cores", 8), Check::wrong("disk", "3 MiB are left", "make room")];
        let text = readable(&checks);
        assert!(text.starts_with("ok       cores          8\n"), "{text}");
        assert!(text.contains("WRONG    disk           3 MiB are left\n"), "{text}");
        assert!(text.ends_with("help: make room\n"), "{text}");
    }
}
