//! `synth`: made-up ratings with something to learn in them.

use reclora_storage::synth::{self, SynthSpec};

use crate::cli::SynthArgs;
use crate::error::{LaunchError, Result};
use crate::output::print;

/// Writes them, and prints where.
pub fn synth(args: &SynthArgs) -> Result<()> {
    let SynthArgs { users, items, ratings, seed, .. } = *args;
    let spec = SynthSpec { users, items, ratings, seed };
    if let Some(problem) = spec.problem() {
        return Err(LaunchError::Usage(problem).into());
    }
    synth::write(&args.out_dir, &spec, args.force)?;
    print(&format!("{}\n", args.out_dir.display()))
}
