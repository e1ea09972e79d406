//! What the program says about itself.

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
        &["synth"],
        &["completions"],
    ] {
        let help = stdout(&[command, &["--help"]].concat());
        assert!(help.contains("Usage: reclora-launch"), "{help}");
        assert!(help.contains("Examples:"), "{command:?}\n{help}");
    }
    assert!(stdout(&["config", "--help"]).contains("reference"));
}

#[test]
fn top_level_help_teaches_and_documents_exit_codes() {
    let help = stdout(&["--help"]);
    for text in ["Exit codes:", "a rank died", "130", "configs/quickstart.toml", "predict"] {
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
        ["prepare", "embed", "retrieve", "pretrain", "few2many", "tune", "evaluate", "export"]
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
