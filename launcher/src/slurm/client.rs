//! Calls of Slurm's programs, each with a deadline.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, eyre};

use crate::error::Result;

/// How long one of Slurm's programs may take; they have time limits of their own, mostly shorter.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether it has ended.
const POLL: Duration = Duration::from_millis(10);
/// Most that is read of an answer.
const ANSWER: u64 = 1 << 20;

/// Standard output of a program that must succeed.
pub fn call(program: &str, args: &[&str]) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => eyre!(
                "{program} is not on this machine\n  help: run this on a node of a Slurm cluster from \
                 which jobs can be submitted"
            ),
            _ => eyre!("can't start {program}: {error}"),
        })?;
    let reader = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let read = pipe.map(|pipe| pipe.take(ANSWER).read_to_end(&mut text));
            read.transpose().map(|_| String::from_utf8_lossy(&text).into_owned())
        })
    };
    let out = reader(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let error = reader(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let until = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().wrap_err_with(|| format!("can't watch {program}"))? {
            break status;
        }
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(eyre!("{program} did not answer within {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(POLL);
    };
    let text = |thread: std::thread::JoinHandle<std::io::Result<String>>| {
        thread.join().ok().and_then(|text| text.ok()).unwrap_or_default()
    };
    let (out, error) = (text(out), text(error));
    if status.success() {
        return Ok(out);
    }
    let command = [&[program], args].concat().join(" ");
    let said = [error.trim(), out.trim()].into_iter().find(|text| !text.is_empty());
    Err(eyre!("`{command}` failed ({status}): {}", said.unwrap_or("it said nothing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_say_is_returned_or_reported() {
        assert_eq!(call("sh", &["-c", "echo 7"]).unwrap(), "7\n");
        let error = call("sh", &["-c", "echo no controller >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no controller"), "{error}");
        let error = call("no-such-program", &[]).unwrap_err().to_string();
        assert!(error.contains("no-such-program is not on this machine"), "{error}");
    }
}
