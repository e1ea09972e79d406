//! What a CRM reads of samples.

use reclora_storage::dataset::Dataset;

use crate::error::{Result, TrainerError};

/// One sample, in rows of the shared table, numbered as they lie in the parameters.
#[derive(Clone, Copy, Debug)]
pub struct CrmInput<'a> {
    /// One feature per field.
    pub fields: &'a [u32],
    /// Item features of the history.
    pub history_items: &'a [u32],
    /// Rating features of the history, one per item.
    pub history_ratings: &'a [u32],
    /// Numbers, as many as the shape says.
    pub numbers: &'a [f32],
    /// How much the text of each history item is like the target's, or nothing where the shape has none.
    pub similarities: &'a [f32],
}

/// CRM inputs of some samples, in rows of the shared table.
#[derive(Debug, Default)]
pub struct CrmBatch {
    fields: Vec<u32>,
    num_fields: usize,
    items: Vec<u32>,
    ratings: Vec<u32>,
    ends: Vec<usize>,
    numbers: Vec<f32>,
    similarities: Vec<f32>,
}

impl CrmBatch {
    /// Adds the sample of `user` and `item`, shown with the user's interactions at `positions`; with `numbers`, as many
    /// as those of the others, and the `similarity` of each item shown, where the others have it.
    pub fn push(
        &mut self,
        dataset: &Dataset,
        (user, item): (u32, u32),
        positions: &[u32],
        numbers: impl IntoIterator<Item = f32>,
        similarity: Option<&dyn Fn(u32) -> f32>,
    ) -> Result<()> {
        self.num_fields = dataset.fields().len();
        dataset.feature_ids(user, item, &mut self.fields);
        let newest = positions.iter().max().map_or(0, |position| position + 1);
        let history = dataset.history(user, newest);
        for &position in positions {
            let pair =
                history.items.get(position as usize).zip(history.ratings.get(position as usize));
            let Some((&item, &level)) = pair else {
                let what = format!("user {user} has no interaction at position {position}");
                return Err(TrainerError::Input(what));
            };
            self.items.push(dataset.item_feature(item));
            self.similarities.extend(similarity.map(|similarity| similarity(item)));
            self.ratings.push(dataset.rating_feature(level));
        }
        self.numbers.extend(numbers);
        self.ends.push(self.items.len());
        Ok(())
    }

    /// The rows of the shared table that the inputs read, as often as they do.
    pub fn rows(&self) -> impl Iterator<Item = u32> {
        self.fields.iter().chain(&self.items).chain(&self.ratings).copied()
    }

    /// Numbers the inputs' rows as they lie in `rows`, which has them all, ascending.
    pub fn number_by(&mut self, rows: &[u32]) -> Result<()> {
        for row in self.fields.iter_mut().chain(&mut self.items).chain(&mut self.ratings) {
            let place = rows.binary_search(row).map_err(|_| {
                TrainerError::Input(format!("row {row} of the table was not brought here"))
            })?;
            *row = place as u32;
        }
        Ok(())
    }

    /// The inputs, in the order they were added.
    pub fn inputs(&self) -> Vec<CrmInput<'_>> {
        let mut start = 0;
        let fields = self.fields.chunks_exact(self.num_fields.max(1));
        let width = self.numbers.len() / self.ends.len().max(1);
        let rows = fields.zip(&self.ends).enumerate().map(|(sample, (fields, &end))| {
            let range = std::mem::replace(&mut start, end)..end;
            CrmInput {
                fields,
                history_items: &self.items[range.clone()],
                history_ratings: &self.ratings[range.clone()],
                numbers: &self.numbers[sample * width..(sample + 1) * width],
                // All samples have them, or none.
                similarities: self.similarities.get(range).unwrap_or_default(),
            }
        });
        rows.collect()
    }
}
