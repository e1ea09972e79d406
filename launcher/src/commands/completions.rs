//! `completions`: commands and flags, for a shell to complete.

use clap::CommandFactory;

use crate::cli::Cli;
use crate::error::Result;
use crate::output::print;

/// Prints a shell's script.
pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "reclora-launch", &mut script);
    print(&String::from_utf8_lossy(&script))
}
