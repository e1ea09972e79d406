//! What to do about an error, in commands, flags and settings: the crates below say what is wrong and where.

use std::error::Error;
use std::path::Path;

use reclora_comm::CommError;
use reclora_storage::StorageError;
use reclora_trainer::error::{Remedy, TrainerError};
use reclora_trainer::stages::Stage;
use reclora_trainer::stages::preflight::{Finding, Help};

/// An error with what to do about it, where that is known.
pub fn said(error: &(dyn Error + 'static)) -> String {
    with(error.to_string(), hint(error))
}

/// What a look ahead has seen, and what to do about it.
pub fn of_finding(finding: &Finding) -> (String, &'static str) {
    let help = match finding.help {
        Help::Words(words) => words,
        Help::Path => "set it in the config (relative to it), or with --set",
        Help::RawFiles => "`reclora-launch inspect` shows what is in the files",
    };
    (with(finding.to_string(), finding.remedy.as_ref().map(of_remedy)), help)
}

fn with(text: String, hint: Option<String>) -> String {
    match hint {
        Some(hint) => format!("{text}; {hint}"),
        None => text,
    }
}

fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<TrainerError>() {
        return match error {
            TrainerError::Storage(error) => of_storage(error),
            TrainerError::Comm(error) => of_comm(error),
            TrainerError::Remake { remedy, .. } => Some(of_remedy(remedy)),
            _ => None,
        };
    }
    let storage = || of_storage(error.downcast_ref()?);
    storage().or_else(|| of_comm(error.downcast_ref()?))
}

fn of_storage(error: &StorageError) -> Option<String> {
    match error {
        StorageError::Corrupt { path, .. } => Some(format!(
            "remove it and run the stage that writes it again (`{}`)",
            from(stage_of(path).map_or("STAGE", Stage::name))
        )),
        StorageError::Incomplete { stage, .. } => Some(format!("run it again: `{}`", from(stage))),
        StorageError::StageFile { stage, .. } => Some(format!("rebuild it: `{}`", from(stage))),
        StorageError::Exists { .. } => Some("give --force to replace it".into()),
        _ => None,
    }
}

fn of_comm(error: &CommError) -> Option<String> {
    let hint = match error {
        CommError::Timeout { .. } => "where it is only slow, raise runtime.collective_timeout",
        CommError::Rendezvous { .. } => {
            "where they only begin late, raise runtime.rendezvous_timeout"
        }
        CommError::Bind { .. } => {
            "choose another with --rdzv-endpoint, or leave it out for any free port"
        }
        _ => return None,
    };
    Some(hint.into())
}

fn of_remedy(remedy: &Remedy) -> String {
    match remedy {
        Remedy::Rebuild(stage) => format!("copy it again, or rebuild it with `{}`", from(stage)),
        Remedy::Again(stage) => format!("make it again: {}", from(stage)),
        Remedy::Settings(config) => format!(
            "make it again: reclora-launch run {}, or run the config that it was made with, whose settings are \
             there then",
            config.display()
        ),
        Remedy::Afresh(Some(stage)) => format!("run {stage} again with --force"),
        Remedy::Afresh(None) => "use --force".into(),
    }
}

/// The command that does a stage and those after it again.
fn from(stage: &str) -> String {
    format!("reclora-launch run CONFIG --from {stage}")
}

/// The stage that writes a file, by the directory that it is in.
fn stage_of(path: &Path) -> Option<Stage> {
    let of_name = |name: &Path| {
        let name = name.file_name()?;
        Stage::ALL.into_iter().find(|stage| name == stage.directory())
    };
    path.ancestors().find_map(of_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn errors_of_the_crates_below_come_with_what_to_do() {
        let (path, problem) = (Path::new("/runs/x/lens/lens-000001.shard"), "its hash differs");
        let stage = || "tune".to_owned();
        let storage: [(StorageError, &str); 5] = [
            (
                StorageError::Corrupt { path: path.into(), problem: problem.into() },
                "shard: its hash differs; remove it and run the stage that writes it again \
                 (`reclora-launch run CONFIG --from few2many`)",
            ),
            (
                StorageError::Corrupt { path: "/data/x".into(), problem: problem.into() },
                "(`reclora-launch run CONFIG --from STAGE`)",
            ),
            (
                StorageError::Incomplete { path: path.into(), stage: stage() },
                "did not finish; run it again: `reclora-launch run CONFIG --from tune`",
            ),
            (
                StorageError::StageFile {
                    path: path.into(),
                    stage: stage(),
                    problem: problem.into(),
                },
                "differs; rebuild it: `reclora-launch run CONFIG --from tune`",
            ),
            (StorageError::Exists { path: path.into() }, "exists; give --force to replace it"),
        ];
        for (error, end) in storage {
            assert!(said(&error).ends_with(end), "{}", said(&error));
            let (alone, wrapped) = (said(&error), said(&TrainerError::from(error)));
            assert_eq!(alone, wrapped);
        }
        let (collective, timeout) = ("barrier".to_owned(), Duration::from_secs(2));
        let late = CommError::Timeout { collective, sequence: 3, missing: vec![1], timeout };
        assert!(said(&late).ends_with("raise runtime.collective_timeout"), "{}", said(&late));
        let bind = CommError::Bind { address: "a:1".into(), why: "in use".into() };
        let says = "can't listen on a:1: in use; choose another with --rdzv-endpoint";
        assert!(said(&TrainerError::from(bind)).starts_with(says));
        let what = "adapter: was made".to_owned();
        let other = TrainerError::Remake { what, remedy: Remedy::Again("tune") };
        let says = "adapter: was made; make it again: reclora-launch run CONFIG --from tune";
        assert_eq!(said(&other), says);
        assert_eq!(said(&TrainerError::Paused), TrainerError::Paused.to_string());
    }
}
