//! How the program ends: exit codes, and errors as a person reads them.

use std::panic::PanicHookInfo;

use color_eyre::Report;
use nix::sys::signal::Signal;
use reclora_trainer::error::TrainerError;

use crate::error::LaunchError;
use crate::hints::said;

/// The command did what it should.
pub const EXIT_OK: i32 = 0;
/// Something went wrong that is neither of the other codes.
pub const EXIT_FAILURE: i32 = 1;
/// The command line or the config can't work; nothing was started.
pub const EXIT_USAGE: i32 = 2;
/// A rank or a node died; `RUN/error.json` says which and why. The same command, here or elsewhere, may succeed.
pub const EXIT_DIED: i32 = 3;
/// A rank reported an error, or attempts made no progress: the same would come again. Do not requeue.
pub const EXIT_HOPELESS: i32 = 4;
/// All that was done is saved, as SIGUSR1 asked: the same command continues. Requeue (EX_TEMPFAIL).
pub const EXIT_REQUEUE: i32 = 75;
/// Between ranks and launcher only: the rank stopped because another rank went away.
pub const EXIT_PEER_LOST: i32 = 76;

/// The exit code of an error.
pub fn exit_code(error: &Report) -> i32 {
    match error.downcast_ref::<LaunchError>() {
        Some(LaunchError::Usage(_)) => EXIT_USAGE,
        Some(LaunchError::Hopeless(_)) => EXIT_HOPELESS,
        Some(LaunchError::Died(_) | LaunchError::NodeMissing(_)) => EXIT_DIED,
        Some(LaunchError::Interrupted(signal) | LaunchError::Paused(signal)) => match signal {
            Signal::SIGUSR1 => EXIT_REQUEUE,
            signal => 128 + *signal as i32,
        },
        Some(LaunchError::LeaderEnded(_, code)) => *code,
        None => match error.downcast_ref::<TrainerError>() {
            Some(TrainerError::Config { .. }) => EXIT_USAGE,
            _ => EXIT_FAILURE,
        },
    }
}

/// One readable block, without a stack trace.
pub fn block(error: &Report) -> String {
    match error.downcast_ref::<LaunchError>() {
        Some(LaunchError::Interrupted(signal)) => format!(
            "stopped by {signal}; every rank has been ended. This continues from there:\n  {}",
            continue_command()
        ),
        Some(LaunchError::Paused(signal)) => format!(
            "stopped by {signal}; every rank has saved what it had. This continues from there:\n  {}",
            continue_command()
        ),
        _ => {
            let mut text = String::new();
            let mut last = String::new();
            for cause in error.chain() {
                let plain = cause.to_string();
                let lead = if text.is_empty() { "error: " } else { "\n  because: " };
                // Transparent wrappers repeat their cause.
                if text.is_empty() || !last.contains(&plain) {
                    text.push_str(&format!("{lead}{}", said(cause)));
                }
                last = plain;
            }
            text
        }
    }
}

/// The command that continues what this process was doing, as it could be typed.
pub fn continue_command() -> String {
    continuing(std::env::args_os().map(|word| word.to_string_lossy().into_owned()))
}

/// `--from` and `--force` mean "from the beginning", so a continuation leaves them out.
fn continuing(words: impl Iterator<Item = String>) -> String {
    let mut kept = Vec::new();
    let mut words = words;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--force" => {}
            "--from" => drop(words.next()),
            _ if word.starts_with("--from=") => {}
            _ => kept.push(quote(&word)),
        }
    }
    kept.join(" ")
}

/// Quotes a word for a POSIX shell where it needs it.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A panic in one line: a bug of ours, said as such.
pub fn panic_line(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let what = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown".into());
    let place =
        info.location().map_or(String::new(), |at| format!(" at {}:{}", at.file(), at.line()));
    format!("internal error{place}: {}; this is a bug, please report it", what.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_when_needed() {
        assert_eq!(quote("tune.epochs=3"), "tune.epochs=3");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote(""), "''");
    }

    #[test]
    fn a_continuation_does_not_begin_again() {
        let command = |text: &str| continuing(text.split(' ').map(str::to_owned));
        assert_eq!(
            command("x run c.toml --from tune --force --set a.b=1"),
            "x run c.toml --set a.b=1"
        );
        assert_eq!(command("x run c.toml --from=tune"), "x run c.toml");
        assert_eq!(command("x run c.toml --only tune"), "x run c.toml --only tune");
    }

    #[test]
    fn codes() {
        let usage: Report = LaunchError::Usage("x".into()).into();
        assert_eq!(exit_code(&usage), 2);
        let stopped: Report = LaunchError::Interrupted(Signal::SIGINT).into();
        assert_eq!(exit_code(&stopped), 130);
        let paused: Report = LaunchError::Paused(Signal::SIGUSR1).into();
        assert_eq!(exit_code(&paused), 75);
        let elsewhere: Report = LaunchError::LeaderEnded("x".into(), 3).into();
        assert_eq!(exit_code(&elsewhere), 3);
        assert_eq!(exit_code(&color_eyre::eyre::eyre!("x")), 1);
    }
}
