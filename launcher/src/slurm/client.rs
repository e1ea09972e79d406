//! Calls of Slurm's programs, each with a deadline.

use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use color_eyre::eyre::{WrapErr, eyre};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::Result;

/// How long one of Slurm's programs may take; they have time limits of their own, mostly shorter.
const LIMIT: Duration = Duration::from_secs(60);

/// Standard output of a program that must succeed.
pub fn call(program: &str, args: &[&str]) -> Result<String> {
    let child = Command::new(program)
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
    let pid = Pid::from_raw(child.id() as i32);
    let (ended, end) = channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    let Ok(output) = end.recv_timeout(LIMIT) else {
        // It has not been waited for, so the number is still its own.
        let _ = kill(pid, Signal::SIGKILL);
        return Err(eyre!("{program} did not answer within {} s", LIMIT.as_secs()));
    };
    let output = output.wrap_err_with(|| format!("can't watch {program}"))?;
    let [out, error] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if output.status.success() {
        return Ok(out);
    }
    let command = [&[program], args].concat().join(" ");
    let said = [error.trim(), out.trim()].into_iter().find(|text| !text.is_empty());
    let said = said.unwrap_or("it said nothing");
    Err(eyre!("`{command}` failed ({}): {said}", output.status))
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
