//! The rows of a shared-out table in checkpoints: a shard per rank, beside the file of the rest.

use std::path::{Path, PathBuf};

use reclora_storage::shard::{Column, Shard, write_shard};

use crate::error::{Result, TrainerError};
use crate::parameters::{Table, TableShare};

const KIND: &str = "table-rows";
/// What is kept of each row.
const COLUMNS: [&str; 4] = ["parameters", "first_moment", "second_moment", "best"];

/// Values of rows, one column after the other; the last is empty where no epoch has ended.
pub(super) type Rows<T> = [T; COLUMNS.len()];

/// File of a part.
pub(super) fn path_of(dir: &Path, step: u64, part: usize, parts: usize) -> PathBuf {
    dir.join(format!("step-{step:010}.part-{part}-of-{parts}.shard"))
}

/// Writes the rows that this rank holds; returns their fingerprint.
pub(super) fn save(
    dir: &Path,
    step: u64,
    share: TableShare,
    part: usize,
    rows: Rows<&[f32]>,
) -> Result<String> {
    let path = path_of(dir, step, part, share.parts());
    let columns = COLUMNS.into_iter().zip(rows.map(Column::F32));
    write_shard(&path, KIND, &columns.collect::<Vec<_>>())?;
    Ok(Shard::open(&path, KIND)?.fingerprint())
}

/// A part that is what was written.
struct Part(Shard);

impl Part {
    fn open(dir: &Path, step: u64, part: usize, fingerprints: &[String]) -> Result<Self> {
        let shard = Shard::open(&path_of(dir, step, part, fingerprints.len()), KIND)?;
        if fingerprints.get(part) != Some(&shard.fingerprint()) {
            return Err(TrainerError::file(shard.path(), "is a part of another checkpoint"));
        }
        shard.verify()?;
        Ok(Self(shard))
    }

    /// Its columns, if they have the lengths of `held`.
    fn columns(&self, held: Table) -> Result<Rows<&[f32]>> {
        let mut columns = [&[] as &[f32]; COLUMNS.len()];
        for (column, name) in columns.iter_mut().zip(COLUMNS) {
            *column = self.0.f32(name)?;
        }
        let [rest @ .., best] = &columns;
        if rest.iter().all(|column| column.len() == held.len())
            && (best.is_empty() || best.len() == held.len())
        {
            return Ok(columns);
        }
        Err(TrainerError::file(self.0.path(), "holds rows of another table"))
    }
}

/// The rows of `share`, of the parts with these fingerprints, however many ranks wrote them.
pub(super) fn load(
    dir: &Path,
    step: u64,
    fingerprints: &[String],
    share: TableShare,
) -> Result<Rows<Vec<f32>>> {
    let (table, count) = (share.table(), fingerprints.len());
    // Which parts are read repeats after so many rows.
    let mut needed: Vec<usize> = share.rows().take(count).map(|row| row % count).collect();
    needed.sort_unstable();
    needed.dedup();
    let parts = needed.iter().map(|part| Part::open(dir, step, *part, fingerprints));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let mut columns = vec![None; count];
    for (part, opened) in needed.into_iter().zip(&parts) {
        columns[part] = Some(opened.columns(TableShare::part(table, part, count).held())?);
    }
    let of = |column: usize| {
        let mut values = Vec::with_capacity(share.held().len());
        for row in share.rows() {
            let part = columns[row % count].map_or(&[] as &[f32], |columns| columns[column]);
            let start = row / count * table.width;
            values.extend_from_slice(part.get(start..start + table.width).unwrap_or_default());
        }
        values
    };
    Ok([of(0), of(1), of(2), of(3)])
}

/// Whether all parts are what was written.
pub(super) fn are_whole(dir: &Path, step: u64, fingerprints: &[String]) -> bool {
    (0..fingerprints.len()).all(|part| Part::open(dir, step, part, fingerprints).is_ok())
}
