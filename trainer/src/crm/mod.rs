//! The conventional recommendation model: DIN, or SIM when its history is retrieved.
//!
//! A shared table E; `h_t = ReLU(Linear([E[item_t]; E[rating_t]]))`; `a_t = MLP([q, h_t, q − h_t, q ⊙ h_t])`
//! without softmax; u = Σ a_t h_t; r = MLP(flatten([fields; u])); logit = Linear(r). History rows of a
//! batch are packed: what is not there is not multiplied.

mod attention;
mod file;
mod layers;
mod network;
mod parts;

pub use file::Crm;
pub use network::{CrmInput, Workspace};

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::config::{CrmConfig, Representation};
use crate::error::{Result, TrainerError};
use crate::parameters::{Init, ParameterLayout, Table, TableShare, TensorLayout};
use layers::{Linear, Mlp};

/// What the network needs to know of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DinShape {
    /// Rows of the shared table, those of ratings included.
    pub features: usize,
    /// Fields of a sample.
    pub fields: usize,
    /// Index of the item field.
    pub item_field: usize,
    /// Index of the user field.
    pub user_field: usize,
}

impl DinShape {
    /// Shapes come from files too: no product of sizes may overflow.
    fn check(self) -> Result<()> {
        let Self { features, fields, item_field, user_field } = self;
        let fits = features <= u32::MAX as usize
            && fields <= usize::from(u16::MAX)
            && item_field.max(user_field) < fields;
        if fits {
            Ok(())
        } else {
            Err(TrainerError::Input(format!("{self:?} is no shape of a CRM")))
        }
    }
}

/// The network, without its parameters: those are one flat vector.
#[derive(Clone, Debug)]
pub struct Din {
    config: CrmConfig,
    shape: DinShape,
    layout: ParameterLayout,
    history: Linear,
    attention: Mlp,
    prediction: Mlp,
}

/// Lays out the network: the table first, then what is dense, whose places are counted from behind the table.
struct Builder {
    layout: ParameterLayout,
    table: usize,
}

impl Builder {
    fn new(table: Table) -> Result<Self> {
        let mut layout = ParameterLayout::default();
        let shape = [table.rows, table.width];
        let table = layout.push("embedding".into(), &shape, Init::XavierNormal)?.end;
        Ok(Self { layout, table })
    }

    fn dense(&mut self, name: String, shape: &[usize], init: Init) -> Result<Range<usize>> {
        let range = self.layout.push(name, shape, init)?;
        Ok(range.start - self.table..range.end - self.table)
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let weight = [outputs, inputs];
        let weight = self.dense(format!("{name}.weight"), &weight, Init::XavierNormal)?;
        let bias = self.dense(format!("{name}.bias"), &[outputs], Init::Zero)?;
        Ok(Linear { weight, bias, inputs, outputs })
    }

    fn mlp(&mut self, name: &str, inputs: usize, width: usize, depth: usize) -> Result<Mlp> {
        let hidden = (0..depth).map(|layer| {
            let inputs = if layer == 0 { inputs } else { width };
            self.linear(&format!("{name}.{layer}"), inputs, width)
        });
        let hidden = hidden.collect::<Result<_>>()?;
        Ok(Mlp { hidden, output: self.linear(&format!("{name}.output"), width, 1)? })
    }
}

impl Din {
    /// The network for these settings and this data.
    ///
    /// # Errors
    /// A setting that can't work, by name.
    pub fn new(config: &CrmConfig, shape: DinShape) -> Result<Self> {
        config.validate()?;
        shape.check()?;
        let (e, width) = (config.embedding_dim, config.hidden_dim);
        let mut builder = Builder::new(Table { rows: shape.features, width: e })?;
        let history = builder.linear("history", 2 * e, e)?;
        let attention = builder.mlp("attention", 4 * e, width, config.num_attention_layers)?;
        let inputs = (shape.fields + 1) * e;
        let prediction = builder.mlp("prediction", inputs, width, config.num_layers)?;
        let layout = builder.layout;
        Ok(Self { config: config.clone(), shape, layout, history, attention, prediction })
    }

    /// Number of trained parameters.
    pub fn num_parameters(&self) -> usize {
        self.layout.len()
    }

    /// The embedding table, with which the flat vector of parameters begins.
    pub fn table(&self) -> Table {
        Table { rows: self.shape.features, width: self.config.embedding_dim }
    }

    /// Names, shapes and places of the parameters.
    pub fn tensors(&self) -> &[TensorLayout] {
        self.layout.tensors()
    }

    /// Fresh parameters: Xavier normal weights, zero biases. A pure function of (seed, name).
    pub fn init(&self, seed: u64) -> Vec<f32> {
        self.init_share(seed, TableShare::all(self.table()))
    }

    /// Those of [`Din::init`] that a rank holds: the rows of `share`, then the dense part.
    pub fn init_share(&self, seed: u64, share: TableShare) -> Vec<f32> {
        let (table, held) = (self.table(), share.held());
        let mut parameters = vec![0.0; held.len() + self.num_parameters() - table.len()];
        let (rows, dense) = parameters.split_at_mut(held.len());
        for tensor in self.tensors() {
            if tensor.range.start < table.len() {
                for (number, row) in share.rows().zip(rows.chunks_exact_mut(table.width)) {
                    tensor.fill(seed, number * table.width, row);
                }
            } else {
                let range = tensor.range.start - table.len()..tensor.range.end - table.len();
                tensor.fill(seed, 0, &mut dense[range]);
            }
        }
        parameters
    }

    /// Width of the representation c that the gate reads.
    pub fn representation_dim(&self) -> usize {
        match self.config.representation {
            Representation::Final => self.config.hidden_dim,
            Representation::Hidden => (self.shape.fields + 1) * self.config.embedding_dim,
            Representation::User => 2 * self.config.embedding_dim,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ml_1m_network_has_the_published_number_of_parameters() {
        let shape = DinShape { features: 16_944, fields: 8, item_field: 5, user_field: 0 };
        let din = Din::new(&CrmConfig::default(), shape).unwrap();
        assert_eq!(din.num_parameters(), 1_438_274);
    }

    #[test]
    fn initial_weights_are_xavier_normal() {
        let shape = DinShape { features: 3000, fields: 4, item_field: 1, user_field: 0 };
        let din = Din::new(&CrmConfig::default(), shape).unwrap();
        let parameters = din.init(1);
        let table = &parameters[din.tensors()[0].range.clone()];
        let square: f64 = table.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        let deviation = (square / table.len() as f64).sqrt();
        assert!((deviation / (2.0f64 / 3064.0).sqrt() - 1.0).abs() < 0.01, "{deviation}");
        assert_eq!(parameters, din.init(1));
        let share = TableShare::part(din.table(), 1, 4);
        let held = din.init_share(1, share);
        let width = din.table().width;
        for (row, values) in share.rows().zip(held.chunks(width)) {
            assert_eq!(values, &parameters[row * width..(row + 1) * width]);
        }
        assert_eq!(held[share.held().len()..], parameters[din.table().len()..]);
        assert_ne!(parameters, din.init(2));
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let shape = DinShape { features: 10, fields: 2, item_field: 1, user_field: 0 };
        for (config, field) in [
            (CrmConfig { hidden_dim: 0, ..CrmConfig::default() }, "crm.hidden_dim"),
            (CrmConfig { dropout: 1.0, ..CrmConfig::default() }, "crm.dropout"),
        ] {
            let error = Din::new(&config, shape).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        // What a file may claim: no panic, no overflow.
        for shape in [
            DinShape { features: usize::MAX, ..shape },
            DinShape { fields: usize::MAX, ..shape },
            DinShape { item_field: 2, ..shape },
        ] {
            let error = Din::new(&CrmConfig::default(), shape).unwrap_err().to_string();
            assert!(error.contains("no shape of a CRM"), "{error}");
        }
    }
}
