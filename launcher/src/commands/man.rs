//! `man`: the manual, made of what `--help` says.

use std::path::Path;

use clap::CommandFactory;
use color_eyre::eyre::WrapErr;
use reclora_storage::atomic::create_dir_all;

use crate::cli::Cli;
use crate::error::Result;
use crate::output::print;

/// Prints the first page, or writes a page for every command.
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
