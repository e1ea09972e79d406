//! The conventional recommendation model (CRM): what a network is, and what all networks share.
//!
//! Each network reads a sample's features as rows of one embedding table and says a logit; its representation
//! of the sample is what the gates of the adapter read. A network is one file beside this one that implements
//! `Network`, a variant of [`CrmNetwork`] and a line of `network` below.

mod attention;
mod batch;
mod din;
mod file;
mod layers;
mod layout;
mod parts;

/// Reusable buffers of one thread, of whichever network it is used with.
pub use crate::kernels::buffer::Scratch as Workspace;
pub use batch::{CrmBatch, CrmInput};
pub use file::TrainedCrm;

use std::fmt::Debug;

use reclora_comm::tree;
use serde::{Deserialize, Serialize};

use crate::config::{CrmConfig, CrmNetwork};
use crate::error::{Result, TrainerError};
use crate::parameters::{Gradient, Parameters, Table, TableShare, TensorLayout};
use crate::telemetry::measure::{Phase, processed, timed};
use din::Din;
use layout::CrmLayout;

/// What a network needs to know of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrmShape {
    /// Rows of the shared table, those of ratings included.
    pub features: usize,
    /// Fields of a sample.
    pub fields: usize,
    /// Index of the item field.
    pub item_field: usize,
    /// Index of the user field.
    pub user_field: usize,
    /// Numbers of a sample that are inputs as they are: counters, and the vector of the item's text.
    pub numbers: usize,
    /// Whether the attention network reads how much the texts of history items are like the target's.
    pub similarities: bool,
}

impl CrmShape {
    /// Shapes come from files too: no product of sizes may overflow.
    fn check(self) -> Result<()> {
        let Self { features, fields, item_field, user_field, numbers, .. } = self;
        let fits = features <= u32::MAX as usize
            && fields <= usize::from(u16::MAX)
            && numbers <= usize::from(u16::MAX)
            && item_field.max(user_field) < fields;
        if fits {
            Ok(())
        } else {
            Err(TrainerError::Input(format!("{self:?} is no shape of a CRM")))
        }
    }
}

/// A network, without its parameters, which are one flat vector: the rows of the embedding table, then what is
/// dense.
///
/// A feature is the number of a row of `parameters.table` and nothing else: where ranks share the table it is renumbered
/// from batch to batch. So what belongs to a feature must be in its row, never in a dense tensor.
trait Network: Debug + Send + Sync {
    /// The logit of each sample. Leaves in the workspace what `representations` and `backward` read; with `dropout` as in
    /// training, without it as in use. `bounds` are the first sample of each micro-batch, and the number of samples at
    /// the end: the logit of a sample does not depend on them to the bit.
    ///
    /// Features outside the parameters' rows are a defect of the caller and panic.
    fn forward(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
        bounds: &[usize],
        dropout: Option<DropoutKeys<'_>>,
    ) -> Vec<f32>;

    /// Width of the representation that the gates read.
    fn representation_dim(&self) -> usize;

    /// The representations of the samples of the last forward, `[samples, representation_dim]`.
    fn representations(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
    ) -> Vec<f32>;

    /// Adds to `gradient` what the derivatives of a loss by the logits of the last forward make of the
    /// parameters; sums over its micro-batches are in the order of the tree. `Linear`, `Mlp` and `Parts` see to that for
    /// dense tensors, `Gradient::row_of` for rows of the table: nothing may be added to the dense part across the bounds
    /// of micro-batches in another way.
    fn backward(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
        dlogits: &[f32],
        gradient: &mut Gradient,
    );
}

/// The network of the config's choice, its tensors added to the layout.
fn network(
    config: &CrmConfig,
    shape: CrmShape,
    layout: &mut CrmLayout,
) -> Result<Box<dyn Network>> {
    Ok(match config.network {
        CrmNetwork::Din => Box::new(Din::new(config, shape, layout)?),
    })
}

/// What dropout of a training batch is keyed by.
#[derive(Clone, Copy, Debug)]
struct DropoutKeys<'a> {
    seed: u64,
    /// One per sample.
    samples: &'a [u64],
}

/// A CRM, without its parameters: a network with its settings and its layout.
#[derive(Debug)]
pub struct Crm {
    config: CrmConfig,
    shape: CrmShape,
    layout: CrmLayout,
    network: Box<dyn Network>,
}

impl Crm {
    /// The CRM for these settings and this data.
    ///
    /// # Errors
    /// A setting that can't work, by name.
    pub fn new(config: &CrmConfig, shape: CrmShape) -> Result<Self> {
        config.validate()?;
        shape.check()?;
        let table = Table { rows: shape.features, width: config.embedding_dim };
        let mut layout = CrmLayout::new(table)?;
        let network = network(config, shape, &mut layout)?;
        Ok(Self { config: config.clone(), shape, layout, network })
    }

    /// Number of trained parameters.
    pub fn num_parameters(&self) -> usize {
        self.layout.num_parameters()
    }

    /// The embedding table, with which the flat vector of parameters begins.
    pub fn table(&self) -> Table {
        self.layout.table()
    }

    /// Names, shapes and places of the parameters.
    pub fn tensors(&self) -> &[TensorLayout] {
        self.layout.tensors()
    }

    /// Fresh parameters: Xavier normal weights, zero biases. A pure function of (seed, name).
    pub fn init(&self, seed: u64) -> Vec<f32> {
        self.init_share(seed, TableShare::all(self.table()))
    }

    /// Those of [`Crm::init`] that a rank holds: the rows of `share`, then the dense part.
    pub fn init_share(&self, seed: u64, share: TableShare) -> Vec<f32> {
        self.layout.init_share(seed, share)
    }

    /// Width of the representation c that the gate reads.
    pub fn representation_dim(&self) -> usize {
        self.network.representation_dim()
    }

    /// Logit of each sample, and its representation `[dim]` one after the other. Dropout off.
    ///
    /// Features outside the parameters' rows are a defect of the caller and panic.
    pub fn score(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
    ) -> (Vec<f32>, Vec<f32>) {
        processed(inputs.len(), 0);
        let bounds = [0, inputs.len()];
        let forward = || self.network.forward(parameters, ws, inputs, &bounds, None);
        let logits = timed(Phase::Forward, forward);
        (logits, self.network.representations(parameters, ws, inputs))
    }

    /// Adds `weight` times the gradient of each sample's binary cross-entropy; returns their sum.
    /// Dropout is on, a pure function of (`dropout_seed`, sample key, place). Of several micro-batches, which
    /// `gradient` tells apart, the sums are those of the tree.
    #[expect(clippy::too_many_arguments, reason = "what a training step is a function of")]
    pub fn loss_and_gradient(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
        labels: &[f32],
        sample_keys: &[u64],
        dropout_seed: u64,
        weight: f32,
        gradient: &mut Gradient,
    ) -> f32 {
        let keys = DropoutKeys { seed: dropout_seed, samples: sample_keys };
        let keys = Some(keys).filter(|_| self.config.dropout > 0.0);
        processed(inputs.len(), 0);
        let bounds = gradient.bounds(inputs.len());
        let forward = || self.network.forward(parameters, ws, inputs, &bounds, keys);
        let logits = timed(Phase::Forward, forward);
        let mut losses = vec![0.0; bounds.len() - 1];
        let mut dlogits = Vec::with_capacity(inputs.len());
        for (loss, bounds) in losses.iter_mut().zip(bounds.windows(2)) {
            let range = bounds[0]..bounds[1];
            for (&logit, &label) in logits[range.clone()].iter().zip(&labels[range]) {
                // log(1 + e^x) without overflow.
                *loss += logit.max(0.0) - logit * label + (-logit.abs()).exp().ln_1p();
                dlogits.push(weight * (1.0 / (1.0 + (-logit).exp()) - label));
            }
        }
        let backward = || self.network.backward(parameters, ws, inputs, &dlogits, gradient);
        timed(Phase::Backward, backward);
        tree::fold(losses, |left, right| *left += right).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ml_1m_network_has_the_published_number_of_parameters() {
        let shape = CrmShape {
            features: 16_944,
            fields: 8,
            item_field: 5,
            user_field: 0,
            numbers: 0,
            similarities: false,
        };
        let crm = Crm::new(&CrmConfig::default(), shape).unwrap();
        assert_eq!(crm.num_parameters(), 1_438_274);
    }

    #[test]
    fn initial_weights_are_xavier_normal() {
        let shape = CrmShape {
            features: 3000,
            fields: 4,
            item_field: 1,
            user_field: 0,
            numbers: 0,
            similarities: false,
        };
        let crm = Crm::new(&CrmConfig::default(), shape).unwrap();
        let parameters = crm.init(1);
        let table = &parameters[crm.tensors()[0].range.clone()];
        let square: f64 = table.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        let deviation = (square / table.len() as f64).sqrt();
        assert!((deviation / (2.0f64 / 3064.0).sqrt() - 1.0).abs() < 0.01, "{deviation}");
        assert_eq!(parameters, crm.init(1));
        let share = TableShare::part(crm.table(), 1, 4);
        let held = crm.init_share(1, share);
        let width = crm.table().width;
        for (row, values) in share.rows().zip(held.chunks(width)) {
            assert_eq!(values, &parameters[row * width..(row + 1) * width]);
        }
        assert_eq!(held[share.held().len()..], parameters[crm.table().len()..]);
        assert_ne!(parameters, crm.init(2));
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let shape = CrmShape {
            features: 10,
            fields: 2,
            item_field: 1,
            user_field: 0,
            numbers: 0,
            similarities: false,
        };
        for (config, field) in [
            (CrmConfig { hidden_dim: 0, ..CrmConfig::default() }, "crm.hidden_dim"),
            (CrmConfig { dropout: 1.0, ..CrmConfig::default() }, "crm.dropout"),
        ] {
            let error = Crm::new(&config, shape).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        // What a file may claim: no panic, no overflow.
        for shape in [
            CrmShape { features: usize::MAX, ..shape },
            CrmShape { fields: usize::MAX, ..shape },
            CrmShape { item_field: 2, ..shape },
            CrmShape { numbers: usize::MAX, ..shape },
        ] {
            let error = Crm::new(&CrmConfig::default(), shape).unwrap_err().to_string();
            assert!(error.contains("no shape of a CRM"), "{error}");
        }
    }
}
