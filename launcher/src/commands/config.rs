//! `config`: settings, of an experiment or all there are.

use crate::cli::ConfigCommand;
use crate::config::{self, editor_schema};
use crate::error::Result;
use crate::output::print;

/// Prints them as TOML, or their schema.
pub fn config(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Show { config, set } => print(&config::render(&config::load(config, set)?)),
        ConfigCommand::Reference { config } => print(&config::reference(config.as_deref())?),
        ConfigCommand::Schema => {
            print(&format!("{}\n", serde_json::to_string_pretty(&editor_schema())?))
        }
    }
}
