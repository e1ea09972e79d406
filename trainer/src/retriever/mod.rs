//! Which of a user's earlier items a sample is shown with: item embeddings, PCA, cosine top-K.

mod top_k;

pub use top_k::{Shown, TARGETS, Target, Workspace, top_k};

use std::path::Path;

use nalgebra::{DMatrix, SymmetricEigen};
use reclora_storage::shard::{Column, Shard, write_shard};

use crate::error::{Result, TrainerError};
use crate::kernels::pointwise::dot;

/// Principal components of a set of rows (fitted in f64).
#[derive(Clone, Debug)]
pub struct Pca {
    mean: Vec<f64>,
    /// `[components, dimensions]`, largest variance first.
    components: Vec<Vec<f64>>,
}

impl Pca {
    /// Fits the `components` directions of largest variance (at most `dimensions`) of `rows`, `[n,
    /// dimensions]`. The sign of a direction is the one whose largest entry is positive.
    ///
    /// # Errors
    /// No row, or a value that is not finite.
    pub fn fit(rows: &[f32], dimensions: usize, components: usize) -> Result<Self> {
        if rows.is_empty() || dimensions == 0 {
            return Err(TrainerError::Input("there is no item to embed".into()));
        }
        if rows.iter().any(|value| !value.is_finite()) {
            let hint = "the backbone's weights are damaged or overflow".into();
            return Err(TrainerError::NotFinite { what: "an item embedding".into(), hint });
        }
        let count = rows.len() / dimensions;
        let mut mean = vec![0.0f64; dimensions];
        for row in rows.chunks_exact(dimensions) {
            for (sum, value) in mean.iter_mut().zip(row) {
                *sum += f64::from(*value) / count as f64;
            }
        }
        let centred = DMatrix::from_fn(count, dimensions, |row, column| {
            f64::from(rows[row * dimensions + column]) - mean[column]
        });
        let eigen = SymmetricEigen::new(centred.tr_mul(&centred));
        let mut order: Vec<usize> = (0..dimensions).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        let components =
            order.iter().take(components.max(1)).map(|&index| {
                let direction = eigen.eigenvectors.column(index);
                let largest = direction.iter().fold(0.0f64, |best: f64, value| {
                    if value.abs() > best.abs() { *value } else { best }
                });
                direction.iter().map(|value| value * largest.signum()).collect()
            });
        Ok(Self { components: components.collect(), mean })
    }

    /// Number of components.
    pub fn components(&self) -> usize {
        self.components.len()
    }

    /// The components of one row.
    pub fn transform(&self, row: &[f32]) -> Vec<f32> {
        let centred: Vec<f64> =
            row.iter().zip(&self.mean).map(|(value, mean)| f64::from(*value) - mean).collect();
        let project = |direction: &Vec<f64>| {
            direction.iter().zip(&centred).map(|(a, b)| a * b).sum::<f64>() as f32
        };
        self.components.iter().map(project).collect()
    }
}

/// One vector of length 1 per item, so that a dot product is a cosine.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemEmbeddings {
    dimensions: usize,
    rows: Vec<f32>,
}

const KIND: &str = "item-embeddings";

impl ItemEmbeddings {
    /// Reduces `rows` (`[items, dimensions]`) to at most `components` dimensions and to length 1.
    ///
    /// # Errors
    /// As [`Pca::fit`].
    pub fn from_states(rows: &[f32], dimensions: usize, components: usize) -> Result<Self> {
        let pca = Pca::fit(rows, dimensions, components)?;
        let mut reduced = Vec::with_capacity(rows.len() / dimensions * pca.components());
        for row in rows.chunks_exact(dimensions) {
            let mut vector = pca.transform(row);
            let length = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
            if length > 0.0 {
                vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
            }
            reduced.extend(vector);
        }
        Ok(Self { dimensions: pca.components(), rows: reduced })
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.rows.len() / self.dimensions
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Cosine of the angle between two items; 0 for an item that does not exist.
    pub fn similarity(&self, a: u32, b: u32) -> f32 {
        dot(self.row(a), self.row(b))
    }

    /// Copies the vectors of items, one after the other; zeros for an item that does not exist.
    fn copy_rows(&self, items: impl Iterator<Item = u32>, rows: &mut Vec<f32>) {
        rows.clear();
        for item in items {
            let end = rows.len() + self.dimensions;
            rows.extend_from_slice(self.row(item));
            rows.resize(end, 0.0);
        }
    }

    /// Width of a vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The vector of an item; empty for one that does not exist.
    pub fn row(&self, item: u32) -> &[f32] {
        let start = item as usize * self.dimensions;
        self.rows.get(start..start + self.dimensions).unwrap_or_default()
    }

    /// Writes the vectors as a shard.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let dimensions = [self.dimensions as u64];
        let columns =
            [("dimensions", Column::U64(&dimensions)), ("vectors", Column::F32(&self.rows))];
        Ok(write_shard(path, KIND, &columns)?)
    }

    /// Reads what [`ItemEmbeddings::save`] wrote.
    ///
    /// # Errors
    /// The file is missing, damaged or of another kind.
    pub fn load(path: &Path) -> Result<Self> {
        let shard = Shard::open(path, KIND)?;
        shard.verify()?;
        let rows = shard.f32("vectors")?.to_vec();
        match shard.u64("dimensions")? {
            [dimensions] if *dimensions > 0 && (rows.len() as u64).is_multiple_of(*dimensions) => {
                Ok(Self { dimensions: *dimensions as usize, rows })
            }
            _ => Err(TrainerError::file(path, "its dimensions do not fit its vectors")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeddings() -> ItemEmbeddings {
        let rows: Vec<f32> = (0..40u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 3e4 - (i % 3) as f32)
            .collect();
        ItemEmbeddings::from_states(&rows, 4, 3).unwrap()
    }

    #[test]
    fn pca_finds_the_direction_of_a_line() {
        let rows: Vec<f32> = (0..9).flat_map(|i| [3.0 * i as f32, -4.0 * i as f32, 7.0]).collect();
        let pca = Pca::fit(&rows, 3, 2).unwrap();
        let first = pca.transform(&[3.0 * 8.0, -4.0 * 8.0, 7.0]);
        assert!((first[0] + 20.0).abs() < 1e-4 && first[1].abs() < 1e-4, "{first:?}");
        assert!(Pca::fit(&[f32::NAN], 1, 1).is_err() && Pca::fit(&[], 3, 1).is_err());
    }

    #[test]
    fn embeddings_have_length_one_and_come_back() {
        let embeddings = embeddings();
        assert_eq!(embeddings.len(), 10);
        for item in 0..10 {
            assert!((embeddings.similarity(item, item) - 1.0).abs() < 1e-6);
        }
        assert_eq!(embeddings.similarity(0, 99), 0.0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.shard");
        embeddings.save(&path).unwrap();
        assert_eq!(ItemEmbeddings::load(&path).unwrap(), embeddings);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(ItemEmbeddings::load(&path).unwrap_err().to_string().contains("items.shard"));
    }
}
