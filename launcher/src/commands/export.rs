//! `export`: the adapter of a user and an item, for Hugging Face PEFT.

use reclora_trainer::stages::export_pair;

use crate::cli::{ExportArgs, PairArgs};
use crate::error::Result;
use crate::output::print;
use crate::run_dir::context;

/// Writes it, and prints where.
pub fn export(args: &ExportArgs) -> Result<()> {
    let PairArgs { run, user, item } = &args.pair;
    export_pair(&context(run)?, user, item, &args.out)?;
    print(&format!("{}\n", args.out.display()))
}
