//! `synth`: made-up ratings with something to learn in them.

use reclora_storage::synth::{self, SynthSpec, Titles};

use crate::cli::{SynthArgs, SynthTitles};
use crate::error::{LaunchError, Result};
use crate::output::print;

/// Writes them, and prints where.
pub fn synth(args: &SynthArgs) -> Result<()> {
    let SynthArgs { users, items, ratings, seed, .. } = *args;
    let titles = match args.titles {
        SynthTitles::Plain => Titles::Plain,
        SynthTitles::Telling => Titles::Telling,
        SynthTitles::Shuffled => Titles::Shuffled,
    };
    let spec = SynthSpec { users, items, ratings, seed, titles };
    if let Some(problem) = spec.problem() {
        return Err(LaunchError::Usage(problem).into());
    }
    synth::write(&args.out_dir, &spec, args.force)?;
    print(&format!("{}\n", args.out_dir.display()))
}
