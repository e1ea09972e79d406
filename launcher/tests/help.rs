//! What the program says about itself.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
use common::{fails, stdout};

#[test]
fn every_command_has_help_with_examples() {
    for command in [
        &["run"][..],
        &["inspect"],
        &["export"],
        &["predict"],
        &["report"],
        &["config", "show"],
        &["config", "reference"],
        &["config", "schema"],
        &["synth"],
        &["doctor"],
        &["plan"],
        &["submit"],
        &["status"],
        &["logs"],
        &["cancel"],
        &["verify"],
        &["compare"],
        &["man"],
        &["completions"],
    ] {
        let help = stdout(&[command, &["--help"]].concat());
        assert!(help.contains("Usage: reclora-launch"), "{help}");
        assert!(help.contains("Examples:"), "{command:?}\n{help}");
    }
    assert!(stdout(&["config", "--help"]).contains("reference"));
}

/// Help, manual and completions come from one definition, and so know the same commands and flags.
#[test]
fn the_manual_and_completions_know_what_help_knows() {
    let dir = tempfile::tempdir().unwrap();
    stdout(&["man", "--out-dir", dir.path().to_str().unwrap()]);
    let completions = stdout(&["completions", "bash"]);
    let help = stdout(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let commands = list.lines().take_while(|line| !line.is_empty());
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 12 && commands.contains(&"submit"), "{commands:?}");
    for command in commands.iter().filter(|command| **command != "help") {
        let page = dir.path().join(format!("reclora-launch-{command}.1"));
        let page = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{page:?}: {e}"));
        assert!(completions.contains(command), "{command}");
        let help = stdout(&[command, "--help"]);
        for flag in help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 3)
        {
            let flag = flag.split(['=', '.', ',', '`', ':', ';', ')']).next().unwrap();
            let known = page.replace("\\-", "-").contains(flag) && completions.contains(flag);
            // Examples name flags of others too.
            assert!(known || !help.contains(&format!("\n      {flag} ")), "{command}: {flag}");
        }
    }
    assert!(stdout(&["man"]).contains(".TH reclora-launch 1"));
    assert!(!dir.path().join("reclora-launch-rank.1").exists(), "nobody's business");
}

#[test]
fn top_level_help_teaches_and_documents_exit_codes() {
    let help = stdout(&["--help"]);
    for text in
        ["Exit codes:", "a node died", "requeue", "75", "130", "configs/quickstart.toml", "predict"]
    {
        assert!(help.contains(text), "{text} is missing:\n{help}");
    }
    // The worker's entry is nobody's business.
    assert!(!help.contains("\n  rank"), "{help}");
}

#[test]
fn run_help_groups_its_options_and_names_every_stage() {
    let help = stdout(&["run", "--help"]);
    for heading in ["Experiment:", "Stages:", "Processes:"] {
        assert!(help.contains(heading), "{help}");
    }
    for stage in
        ["prepare", "embed", "retrieve", "count", "pretrain", "few2many", "tune", "evaluate"]
    {
        assert!(help.contains(stage), "{stage}");
    }
}

#[test]
fn completions_of_three_shells_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&["completions", shell]);
        assert!(script.contains("reclora-launch"), "{shell}");
        assert!(script.contains("nproc-per-node"), "{shell}");
    }
}

#[test]
fn unknown_flags_and_stages_are_answered() {
    let error = fails(&["run", "x.toml", "--form", "tune"], 2);
    assert!(error.contains("--from"), "{error}");
    let error = fails(&["run", "x.toml", "--from", "tuna"], 2);
    assert!(error.contains("tune"), "{error}");
    fails(&["run", "x.toml", "--from", "tune", "--only", "tune"], 2);
    fails(&["run", "x.toml", "--nproc-per-node", "0"], 2);
}

#[test]
fn rank_is_not_for_hands() {
    let error = fails(&["rank"], 2);
    assert!(error.contains("is started by `reclora-launch run`"), "{error}");
}
