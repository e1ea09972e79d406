//! `export`: the adapter of a user and an item, for Hugging Face PEFT.

use reclora_trainer::stages::export_pair;

use crate::cli::ExportArgs;
use crate::error::Result;
use crate::output::print;
use crate::run_dir::context;

/// Writes it, and prints where.
pub fn export(args: &ExportArgs) -> Result<()> {
    export_pair(&context(&args.run)?, &args.user, &args.item, &args.out)?;
    print(&format!("{}\n", args.out.display()))
}
