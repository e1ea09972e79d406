//! The conventional recommendation model: DIN, or SIM when its history is retrieved.
//!
//! A shared table E; `h_t = ReLU(Linear([E[item_t]; E[rating_t]]))`; `a_t = MLP([q, h_t, q − h_t, q ⊙ h_t])`
//! without softmax; u = Σ a_t h_t; r = MLP(flatten([fields; u])); logit = Linear(r). History rows of a
//! batch are packed: what is not there is not multiplied.

mod attention;
mod file;
mod layers;
mod network;

pub use file::Crm;
pub use network::{CrmInput, Workspace};

use std::ops::Range;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::config::{CrmConfig, Representation};
use crate::distributed::table::{Table, TableShare};
use crate::error::{Result, TrainerError};
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

/// A named piece of the flat parameter vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name in files.
    pub name: String,
    /// `[out, in]` of a weight, `[out]` of a bias, `[features, e]` of the table.
    pub shape: Vec<usize>,
    /// Place in the flat vector.
    pub range: Range<usize>,
}

/// The network, without its parameters: those are one flat vector.
#[derive(Clone, Debug)]
pub struct Din {
    config: CrmConfig,
    shape: DinShape,
    tensors: Vec<Tensor>,
    history: Linear,
    attention: Mlp,
    prediction: Mlp,
}

/// Hands out ranges of the flat vector, of which the table is the first.
#[derive(Default)]
struct Builder {
    tensors: Vec<Tensor>,
    end: usize,
}

impl Builder {
    fn tensor(&mut self, name: String, shape: Vec<usize>) -> Range<usize> {
        let range = self.end..self.end + shape.iter().product::<usize>();
        self.end = range.end;
        self.tensors.push(Tensor { name, shape, range: range.clone() });
        range
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Linear {
        let weight = self.tensor(format!("{name}.weight"), vec![outputs, inputs]);
        let bias = self.tensor(format!("{name}.bias"), vec![outputs]);
        let table = self.tensors[0].range.end;
        let [weight, bias] = [weight, bias].map(|range| range.start - table..range.end - table);
        Linear { weight, bias, inputs, outputs }
    }

    fn mlp(&mut self, name: &str, inputs: usize, width: usize, depth: usize) -> Mlp {
        let hidden = (0..depth).map(|layer| {
            let inputs = if layer == 0 { inputs } else { width };
            self.linear(&format!("{name}.{layer}"), inputs, width)
        });
        let hidden = hidden.collect();
        Mlp { hidden, output: self.linear(&format!("{name}.output"), width, 1) }
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
        let mut builder = Builder::default();
        builder.tensor("embedding".into(), vec![shape.features, e]);
        let history = builder.linear("history", 2 * e, e);
        let attention = builder.mlp("attention", 4 * e, width, config.num_attention_layers);
        let inputs = (shape.fields + 1) * e;
        let prediction = builder.mlp("prediction", inputs, width, config.num_layers);
        let tensors = builder.tensors;
        Ok(Self { config: config.clone(), shape, tensors, history, attention, prediction })
    }

    /// Number of trained parameters.
    pub fn num_parameters(&self) -> usize {
        self.tensors.last().map_or(0, |tensor| tensor.range.end)
    }

    /// The embedding table, with which the flat vector of parameters begins.
    pub fn table(&self) -> Table {
        Table { rows: self.shape.features, width: self.config.embedding_dim }
    }

    /// Names, shapes and places of the parameters.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
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
        for tensor in &self.tensors {
            let [height, width] = tensor.shape[..] else { continue };
            let deviation = (2.0 / (height + width) as f64).sqrt();
            let mut normal = Normal::new(deviation, seed, &tensor.name);
            if tensor.range.start < table.len() {
                for (number, row) in share.rows().zip(rows.chunks_exact_mut(table.width)) {
                    normal.fill(number * table.width, row);
                }
            } else {
                let range = tensor.range.start - table.len()..tensor.range.end - table.len();
                normal.fill(0, &mut dense[range]);
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

/// Normal deviates (Box–Muller) from a generator keyed by seed and name: a sequence of which any piece
/// can be had without those before it.
struct Normal {
    random: ChaCha8Rng,
    deviation: f64,
}

impl Normal {
    fn new(deviation: f64, seed: u64, name: &str) -> Self {
        let key = reclora_storage::hash::xxh3_hex(format!("{seed}/crm/{name}").as_bytes());
        let key = u64::from_str_radix(&key, 16).unwrap_or(seed);
        Self { random: ChaCha8Rng::seed_from_u64(key), deviation }
    }

    /// Those from number `start` on.
    fn fill(&mut self, start: usize, values: &mut [f32]) {
        // Each takes two numbers of two words.
        self.random.set_word_pos(4 * start as u128);
        // In (0, 1]: the logarithm below must be finite.
        let mut uniform = || ((self.random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        for value in values {
            let radius = (-2.0 * uniform().ln()).sqrt();
            let angle = std::f64::consts::TAU * uniform();
            *value = (self.deviation * radius * angle.cos()) as f32;
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
