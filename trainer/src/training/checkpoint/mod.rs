//! Where a training run stands: everything the next step depends on.
//!
//! Rank 0 writes and reads one file; the others get its bytes, so that all ranks continue from one state
//! even if their file systems disagree. The rows of a table that is shared out are beside it, a file per
//! rank; a checkpoint without one of them is none. Any number of ranks continues from either kind.

mod parts;

use std::path::{Path, PathBuf};

use reclora_comm::Communicator;
use reclora_storage::atomic::{create_dir_all, remove_file, write_bytes_atomic};
use reclora_storage::codec::{decode, encode};
use reclora_storage::hash::xxh3_hex;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainerError};
use crate::parameters::TableShare;
use crate::telemetry::History;

/// Everything the next step depends on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Epochs finished.
    pub epoch: u64,
    /// Global batches of the current epoch that are done.
    pub batch: u64,
    /// Optimizer steps taken.
    pub step: u64,
    /// Trained parameters.
    pub parameters: Vec<f32>,
    /// AdamW's first moment.
    pub first_moment: Vec<f32>,
    /// AdamW's second moment.
    pub second_moment: Vec<f32>,
    /// The curves so far.
    pub history: History,
    /// The best epoch so far and its parameters, where epochs are selected.
    pub best: Option<(u64, Vec<f32>)>,
    /// Logits of the valid samples by the parameters that would be kept now, where they are wanted.
    pub valid_logits: Vec<f32>,
    /// Fingerprints of the files that hold the table's rows, where these are not in the vectors above.
    pub parts: Vec<String>,
}

/// How a checkpoint is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One file, of rank 0, which holds everything.
    Whole,
    /// The rows that each rank holds in a file of its own.
    Parts(TableShare),
}

/// Checkpoints kept: the newest, and one before it in case the newest can't be read.
const KEEP: usize = 2;
/// Largest checkpoint that is read.
const LIMIT: usize = 1 << 36;

fn path_of(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("step-{step:010}.checkpoint"))
}

/// The checkpoints in `dir`, oldest first.
fn list(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "checkpoint"))
        .collect();
    paths.sort();
    paths
}

/// Writes `state` and drops all but the newest checkpoints. Every rank calls this.
pub fn save(
    dir: &Path,
    state: &TrainState,
    layout: Layout,
    comm: &mut dyn Communicator,
) -> Result<()> {
    let rest = match layout {
        Layout::Whole if comm.rank() > 0 => return Ok(()),
        Layout::Whole => None,
        Layout::Parts(share) => Some(save_rows(dir, state, share, comm)?),
    };
    if comm.rank() > 0 {
        return Ok(());
    }
    write(dir, rest.as_ref().unwrap_or(state))?;
    drop_old(dir)
}

/// Writes what one rank has of a state that all of them share, whatever became of the others. Ranks that do so
/// at the same time have the same step, or one more.
pub fn write(dir: &Path, state: &TrainState) -> Result<()> {
    create_dir_all(dir)?;
    let mut bytes = encode(state)?;
    bytes.extend_from_slice(xxh3_hex(&bytes).as_bytes());
    Ok(write_bytes_atomic(&path_of(dir, state.step), &bytes)?)
}

/// Writes this rank's rows; returns the state without them, when every rank has.
fn save_rows(
    dir: &Path,
    state: &TrainState,
    share: TableShare,
    comm: &mut dyn Communicator,
) -> Result<TrainState> {
    create_dir_all(dir)?;
    let rows = share.held().len();
    let best = state.best.as_ref().map_or(&[] as &[f32], |(_, best)| &best[..rows]);
    let of = |values: &'_ [f32]| values[rows..].to_vec();
    let TrainState { parameters, first_moment, second_moment, .. } = state;
    let held = [&parameters[..rows], &first_moment[..rows], &second_moment[..rows], best];
    let fingerprint = parts::save(dir, state.step, share, comm.rank(), held)?;
    let parts = comm.all_gather("checkpoint parts", fingerprint.as_bytes())?;
    Ok(TrainState {
        parameters: of(parameters),
        first_moment: of(first_moment),
        second_moment: of(second_moment),
        history: state.history.clone(),
        best: state.best.as_ref().map(|(epoch, best)| (*epoch, of(best))),
        valid_logits: state.valid_logits.clone(),
        parts: parts.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect(),
        ..*state
    })
}

/// Removes old checkpoints, and parts of none.
fn drop_old(dir: &Path) -> Result<()> {
    let paths = list(dir);
    let (old, kept) = paths.split_at(paths.len().saturating_sub(KEEP));
    old.iter().try_for_each(|path| remove_file(path))?;
    let kept: Vec<_> = kept.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let part = name.split_once(".part-").filter(|_| name.ends_with(".shard"));
        if part.is_some_and(|(step, _)| !kept.contains(&step)) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// The newest state in `dir` that is whole, with the rows of `share`; `None` if there is none. Every rank
/// calls this, and gets the same step.
pub fn load(
    dir: &Path,
    share: TableShare,
    comm: &mut dyn Communicator,
) -> Result<Option<TrainState>> {
    let mut paths = if comm.rank() == 0 { list(dir) } else { Vec::new() };
    loop {
        let newest = std::iter::from_fn(|| paths.pop()).find_map(|path| read(&path));
        let mut bytes = newest.unwrap_or_default();
        comm.broadcast("checkpoint", 0, &mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let state: TrainState = decode(&bytes, LIMIT)?;
        drop(bytes);
        let in_parts = !state.parts.is_empty();
        let state =
            if in_parts { with_rows(dir, state, share) } else { of_share(dir, state, share) };
        if !in_parts {
            return state.map(Some);
        }
        let whole = comm.all_gather("checkpoint parts", &[u8::from(state.is_ok())])?;
        if whole.iter().all(|whole| whole == &[1]) {
            return state.map(Some);
        }
    }
}

/// A state whose rows are in parts, with those of `share`.
fn with_rows(dir: &Path, state: TrainState, share: TableShare) -> Result<TrainState> {
    let [parameters, first_moment, second_moment, best] =
        parts::load(dir, state.step, &state.parts, share)?;
    if state.best.is_some() && best.len() != share.held().len() {
        return Err(TrainerError::file(dir, "a checkpoint without the rows of its best epoch"));
    }
    Ok(TrainState {
        parameters: [parameters, state.parameters].concat(),
        first_moment: [first_moment, state.first_moment].concat(),
        second_moment: [second_moment, state.second_moment].concat(),
        best: state.best.map(|(epoch, dense)| (epoch, [best, dense].concat())),
        parts: Vec::new(),
        ..state
    })
}

/// A state that holds all rows, with those of `share`.
fn of_share(dir: &Path, state: TrainState, share: TableShare) -> Result<TrainState> {
    let table = share.table();
    let vectors = [&state.parameters, &state.first_moment, &state.second_moment];
    let best = state.best.iter().map(|(_, best)| best);
    if vectors.into_iter().chain(best).any(|values| values.len() < table.len()) {
        return Err(TrainerError::other_checkpoint(dir));
    }
    if share.is_all() {
        return Ok(state);
    }
    let of = |values: &[f32]| -> Vec<f32> {
        let rows = share.rows().flat_map(|row| &values[row * table.width..(row + 1) * table.width]);
        rows.chain(&values[table.len()..]).copied().collect()
    };
    Ok(TrainState {
        parameters: of(&state.parameters),
        first_moment: of(&state.first_moment),
        second_moment: of(&state.second_moment),
        best: state.best.map(|(epoch, best)| (epoch, of(&best))),
        ..state
    })
}

/// Whether the file at `path` is a whole checkpoint; `None` if by its name it is none.
pub fn is_whole(path: &Path) -> Option<bool> {
    let named_so = path.extension().is_some_and(|extension| extension == "checkpoint");
    let parts_are_whole = |bytes: &[u8]| {
        let dir = path.parent().unwrap_or(Path::new("."));
        let state = decode::<TrainState>(bytes, LIMIT);
        state.is_ok_and(|state| parts::are_whole(dir, state.step, &state.parts))
    };
    named_so.then(|| read(path).is_some_and(|bytes| parts_are_whole(&bytes)))
}

/// The bytes of a whole checkpoint, without its hash; its parts are not looked at.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let hash = bytes.split_off(bytes.len().checked_sub(16)?);
    let whole = xxh3_hex(&bytes).as_bytes() == hash && decode::<TrainState>(&bytes, LIMIT).is_ok();
    whole.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reclora_comm::Solo;

    fn state(step: u64) -> TrainState {
        let parameters = vec![step as f32, -0.0];
        TrainState { step, parameters, best: Some((1, vec![2.0])), ..TrainState::default() }
    }

    fn save(dir: &Path, state: &TrainState) -> Result<()> {
        super::save(dir, state, Layout::Whole, &mut Solo)
    }

    fn load(dir: &Path, comm: &mut dyn Communicator) -> Result<Option<TrainState>> {
        super::load(dir, TableShare::default(), comm)
    }

    #[test]
    fn the_newest_whole_checkpoint_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path(), &mut Solo).unwrap(), None);
        for step in [9, 10, 11] {
            save(dir.path(), &state(step)).unwrap();
        }
        assert_eq!(list(dir.path()).len(), KEEP);
        assert_eq!(load(dir.path(), &mut Solo).unwrap(), Some(state(11)));
        let newest = path_of(dir.path(), 11);
        let mut bytes = std::fs::read(&newest).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&newest, &bytes).unwrap();
        assert_eq!(load(dir.path(), &mut Solo).unwrap(), Some(state(10)));
        std::fs::write(path_of(dir.path(), 12), b"").unwrap();
        let is_whole = [10, 11, 12].map(|step| is_whole(&path_of(dir.path(), step)));
        assert_eq!(is_whole, [Some(true), Some(false), Some(false)]);
        assert_eq!(load(dir.path(), &mut Solo).unwrap(), Some(state(10)));
    }
}
