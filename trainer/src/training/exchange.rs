//! Rows of a shared-out table on their way to who reads them, and their gradients on the way back.
//!
//! A step of data-parallel training costs two exchanges of the rows that the ranks' batches touch, however
//! large the table is. Gradients are added by the holder of a row in the order of the tree over ranks
//! ([`reclora_comm::tree`]): the bits are those of ranks that all hold the whole table.

use reclora_comm::{Communicator, tree};

use crate::error::{Result, TrainerError};
use crate::parameters::{GradientSum, Parameters, Table, TableShare};

/// Values that [`gather`] takes from all ranks at a time.
const GATHERED: usize = 1 << 20;

/// A rank's parameters: the rows that it holds, then what is behind the table.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Which rows are held.
    pub share: TableShare,
    /// The rows held, one after the other, then the dense part.
    pub values: &'a [f32],
}

/// Rows that came from other ranks.
#[derive(Debug, Default)]
pub struct Fetched {
    rows: Vec<u32>,
    values: Vec<f32>,
}

impl Held<'_> {
    /// What an objective needs to read the rows that `rows` names, in any order: all parameters where this
    /// rank holds them, otherwise those rows, which are brought into `fetched`. A collective.
    ///
    /// # Errors
    /// Of `rows` and of the collective; a row outside the table.
    pub fn parameters<'a>(
        &'a self,
        rows: impl FnOnce() -> Result<Vec<u32>>,
        fetched: &'a mut Fetched,
        comm: &mut dyn Communicator,
    ) -> Result<Parameters<'a>> {
        let (table, dense) = self.values.split_at(self.share.held().len());
        if self.share.is_all() {
            return Ok(Parameters { table, rows: None, dense });
        }
        fetched.rows = rows()?;
        fetched.rows.sort_unstable();
        fetched.rows.dedup();
        fetched.values = fetch(self.share, table, &fetched.rows, comm)?;
        Ok(Parameters { table: &fetched.values, rows: Some(&fetched.rows), dense })
    }
}

/// The values of `rows` (ascending), one row after the other, of a table of which this rank holds `held`.
/// Every rank must call it.
pub fn fetch(
    share: TableShare,
    held: &[f32],
    rows: &[u32],
    comm: &mut dyn Communicator,
) -> Result<Vec<f32>> {
    let mut wanted = vec![Vec::new(); share.parts()];
    for row in rows {
        let (part, place) = share.place(*row);
        wanted[part].extend(place.to_le_bytes());
    }
    let width = share.table().width;
    let asked = comm.all_to_all("rows asked for", wanted)?;
    let answers = asked.iter().enumerate().map(|(rank, places)| {
        answer(held, width, places).ok_or_else(|| foreign("rows asked for", rank))
    });
    let answers = answers.collect::<Result<Vec<_>>>()?;
    let answers = comm.all_to_all("rows of the table", answers)?;
    let mut streams: Vec<_> = answers.iter().map(|bytes| bytes.chunks_exact(4 * width)).collect();
    let mut values = Vec::with_capacity(rows.len() * width);
    for row in rows {
        let (part, _) = share.place(*row);
        let bytes = streams[part].next().ok_or_else(|| foreign("rows of the table", part))?;
        values.extend(bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)));
    }
    Ok(values)
}

/// The values of held rows by their places, as bytes; `None` where one does not exist.
fn answer(held: &[f32], width: usize, places: &[u8]) -> Option<Vec<u8>> {
    let (places, rest) = places.as_chunks::<4>();
    let mut bytes = Vec::with_capacity(4 * width * places.len());
    for place in places {
        let start = u32::from_le_bytes(*place) as usize * width;
        bytes.extend(held.get(start..start + width)?.iter().flat_map(|value| value.to_le_bytes()));
    }
    rest.is_empty().then_some(bytes)
}

fn foreign(collective: &str, rank: usize) -> TrainerError {
    TrainerError::Input(format!("{collective}: what rank {rank} sent is none of this table's"))
}

/// Replaces a rank's touched rows by the sum over ranks of all touched rows that this rank holds, numbered
/// as it holds them. Every rank must call it.
pub fn reduce(share: TableShare, sum: &mut GradientSum, comm: &mut dyn Communicator) -> Result<()> {
    if share.table().is_empty() || comm.world_size() == 1 {
        return Ok(());
    }
    let name = "gradient of the table";
    let of_ranks = if share.is_all() {
        comm.all_gather(name, &sum.rows_to_bytes())?
    } else {
        comm.all_to_all(name, sum.parts_to_bytes(share))?
    };
    let parts = of_ranks.iter().enumerate().map(|(rank, bytes)| {
        let mut part = GradientSum::of_rows(share.held());
        if part.set_rows(bytes) { Ok(part) } else { Err(foreign(name, rank)) }
    });
    let parts = parts.collect::<Result<Vec<_>>>()?;
    if let Some(rows) = tree::fold(parts, |left, right| left.add(&right)) {
        sum.take_rows(rows);
    }
    Ok(())
}

/// Hands all rows of the table to `write` on rank 0, which may ask for them `times` times; `held` are this rank's.
/// Rank 0 never has more than some MiB of the others' rows. Every rank must call it.
///
/// # Errors
/// Of `write` and of the communication.
pub fn gather_rows(
    share: TableShare,
    held: &[f32],
    times: usize,
    comm: &mut dyn Communicator,
    write: impl FnOnce(&mut Rows<'_>) -> Result<()>,
) -> Result<()> {
    if comm.rank() > 0 {
        return (0..times).try_for_each(|_| gather(share, held, comm, &mut |_| Ok(())));
    }
    write(&mut |sink| gather(share, held, comm, sink))
}

/// Hands the rows of a table, in order, to who takes them.
pub type Rows<'a> = dyn FnMut(&mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> + 'a;

/// Hands all rows of the table to `sink` on rank 0, in order; nothing comes to the others.
fn gather(
    share: TableShare,
    held: &[f32],
    comm: &mut dyn Communicator,
    sink: &mut dyn FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    if share.is_all() {
        return if comm.rank() == 0 { sink(held) } else { Ok(()) };
    }
    let (name, parts, Table { rows, width }) = ("rows of the table", share.parts(), share.table());
    // Rows of each rank at a time.
    let block = (GATHERED / (width * parts).max(1)).max(1);
    for first in (0..rows.div_ceil(parts)).step_by(block) {
        let place = |row: usize| (row * width).min(held.len());
        let own = &held[place(first)..place(first + block)];
        let mut pieces = vec![Vec::new(); parts];
        pieces[0] = own.iter().flat_map(|value| value.to_le_bytes()).collect();
        let of_ranks = comm.all_to_all(name, pieces)?;
        if comm.rank() > 0 {
            continue;
        }
        let count = rows.min((first + block) * parts) - first * parts;
        let mut streams: Vec<_> = of_ranks.iter().map(|b| b.chunks_exact(4 * width)).collect();
        let mut values = Vec::with_capacity(count * width);
        for rank in (0..parts).cycle().take(count) {
            let bytes = streams[rank].next().ok_or_else(|| foreign(name, rank))?;
            values.extend(bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)));
        }
        sink(&values)?;
    }
    Ok(())
}

/// The sum of squares of a gradient whose rows were summed by [`reduce`]: the same bits on every rank,
/// whoever holds which rows. Rows are taken in `classes` (a multiple of the number of parts): row r is in
/// class r mod `classes`, which one rank holds; each class is added up by itself, in f64. Then comes the
/// dense part. A collective.
pub fn squares(
    share: TableShare,
    sum: &GradientSum,
    classes: usize,
    comm: &mut dyn Communicator,
) -> Result<Squares> {
    let width = share.table().width.max(1);
    let mut of_classes = vec![0.0f64; classes];
    for (row, values) in sum.rows().iter().zip(sum.values().chunks_exact(width)) {
        let class = share.number(*row) % classes;
        let square = |value: &f32| f64::from(*value) * f64::from(*value);
        of_classes[class] = values.iter().map(square).fold(of_classes[class], |a, b| a + b);
    }
    if !share.is_all() {
        let name = "norm of the table's gradient";
        let bytes: Vec<u8> = of_classes.iter().flat_map(|value| value.to_le_bytes()).collect();
        let of_ranks = comm.all_gather(name, &bytes)?;
        for (class, square) in of_classes.iter_mut().enumerate() {
            let rank = class % share.parts();
            let word = of_ranks.get(rank).and_then(|bytes| bytes.as_chunks::<8>().0.get(class));
            *square = f64::from_le_bytes(*word.ok_or_else(|| foreign(name, rank))?);
        }
    }
    let dense = sum.dense().iter().map(|value| f64::from(*value) * f64::from(*value));
    Ok(Squares { table: of_classes.into_iter().sum(), dense: dense.sum() })
}

/// Sums of squares of a gradient's values; not finite where one of them is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Squares {
    /// Of the table's rows.
    pub table: f64,
    /// Of what is behind the table.
    pub dense: f64,
}

impl Squares {
    /// The Euclidean norm of the gradient.
    pub fn norm(self) -> f32 {
        (self.table + self.dense).sqrt() as f32
    }
}
