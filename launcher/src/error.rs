//! How the program ends: errors as a person reads them, and exit codes.

use color_eyre::Report;
use nix::sys::signal::Signal;

use crate::failure::Failure;

/// Result of everything in the binary.
pub type Result<T, E = Report> = std::result::Result<T, E>;

/// The command did what it should.
pub const EXIT_OK: i32 = 0;
/// Something went wrong that is neither of the other codes.
pub const EXIT_FAILURE: i32 = 1;
/// The command line or the config can't work; nothing was started.
pub const EXIT_USAGE: i32 = 2;
/// A rank died or reported an error; `RUN/error.json` says which and why.
pub const EXIT_RANK: i32 = 3;
/// Between ranks and launcher only: the rank stopped because another rank went away.
pub const EXIT_PEER_LOST: i32 = 75;

/// Errors that decide the exit code.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Command line or config.
    #[error("{0}")]
    Usage(String),
    /// A gang failed.
    #[error("{0}")]
    Rank(Box<Failure>),
    /// Ctrl-C, SIGTERM or SIGHUP; all ranks have been ended.
    #[error("{0}")]
    Interrupted(Signal),
}

/// The exit code of an error.
pub fn exit_code(error: &Report) -> i32 {
    use reclora_trainer::error::TrainerError;
    match error.downcast_ref::<LaunchError>() {
        Some(LaunchError::Usage(_)) => EXIT_USAGE,
        Some(LaunchError::Rank(_)) => EXIT_RANK,
        Some(LaunchError::Interrupted(signal)) => 128 + *signal as i32,
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
        _ => {
            let mut text = format!("error: {error}");
            let mut last = error.to_string();
            for cause in error.chain().skip(1).map(ToString::to_string) {
                // Transparent wrappers repeat their cause.
                if !last.contains(&cause) {
                    text.push_str(&format!("\n  because: {cause}"));
                }
                last = cause;
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
        assert_eq!(exit_code(&color_eyre::eyre::eyre!("x")), 1);
    }
}
