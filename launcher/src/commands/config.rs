//! `config`: settings, of an experiment or all there are.

use crate::cli::ConfigCommand;
use crate::config;
use crate::error::Result;
use crate::output::print;

/// Prints them as TOML.
pub fn config(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Show { config, set } => print(&config::render(&config::load(config, set)?)),
        ConfigCommand::Reference => print(&config::reference()),
    }
}
