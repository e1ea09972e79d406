//! DIN, or SIM when the history is retrieved.
//!
//! A shared table E; `h_t = ReLU(Linear([E[item_t]; E[rating_t]]))`; `a_t = MLP([q, h_t, q − h_t, q ⊙ h_t])`
//! without softmax; u = Σ a_t h_t; r = MLP(flatten([fields; u; numbers])); logit = Linear(r). History rows of a
//! batch are packed: what is not there is not multiplied.

use std::ops::Range;

use super::attention::{AttentionInput, SampleRows};
use super::layers::{Dropout, Linear, Mlp, MlpState};
use super::parts::Parts;
use super::{CrmInput, CrmLayout, CrmShape, DropoutKeys, Network, Workspace};
use crate::config::{CrmConfig, Representation};
use crate::error::Result;
use crate::kernels::pointwise::{add, axpy, dot};
use crate::parameters::{Gradient, Init, Parameters, splitmix};

/// What backward needs of a forward, reused.
#[derive(Debug, Default)]
struct Pass {
    /// First history row of each sample, and the number of rows at the end.
    offsets: Vec<usize>,
    /// First sample of each micro-batch, and the number of samples at the end.
    sample_bounds: Vec<usize>,
    /// First history row of each micro-batch, and the number of rows at the end.
    row_bounds: Vec<usize>,
    /// `[rows, 2e]`: item and rating of each history row.
    pairs: Vec<f32>,
    /// `[rows, e]`: h.
    history: Vec<f32>,
    attention_input: AttentionInput,
    attention: MlpState,
    prediction: MlpState,
    /// `[rows]`: similarity of each history row, or empty.
    similarities: Vec<f32>,
    row_keys: Vec<u64>,
    dhistory: Vec<f32>,
    dattention: Vec<f32>,
    dpairs: Vec<f32>,
}

/// The network: where its layers are.
#[derive(Debug)]
pub(super) struct Din {
    embedding_dim: usize,
    dropout: f32,
    representation: Representation,
    shape: CrmShape,
    history: Linear,
    attention: Mlp,
    /// What the first layer of the attention makes of a similarity, `[outputs]`; empty where there is none.
    similarity: Range<usize>,
    prediction: Mlp,
}

fn sample_rows<'a>(
    offsets: &'a [usize],
    samples: &'a [usize],
    rows: &'a [usize],
) -> SampleRows<'a> {
    SampleRows { offsets, of_samples: Parts::new(samples), of_rows: Parts::new(rows) }
}

/// Width of z, the input of the prediction network.
fn width_of_z(shape: CrmShape, embedding_dim: usize) -> usize {
    (shape.fields + 1) * embedding_dim + shape.numbers
}

impl Din {
    /// The network for these settings and this data, its tensors added to the layout.
    pub fn new(config: &CrmConfig, shape: CrmShape, layout: &mut CrmLayout) -> Result<Self> {
        let (e, width) = (config.embedding_dim, config.hidden_dim);
        Ok(Self {
            embedding_dim: e,
            dropout: config.dropout,
            representation: config.representation,
            shape,
            history: layout.linear("history", 2 * e, e)?,
            attention: layout.mlp("attention", 4 * e, width, config.num_attention_layers)?,
            similarity: match shape.similarities {
                true => layout.dense("attention.similarity".into(), &[width], Init::Zero)?,
                false => 0..0,
            },
            prediction: layout.mlp("prediction", width_of_z(shape, e), width, config.num_layers)?,
        })
    }

    fn row<'p>(&self, parameters: Parameters<'p>, feature: u32) -> &'p [f32] {
        let e = self.embedding_dim;
        &parameters.table[feature as usize * e..(feature as usize + 1) * e]
    }

    /// h = ReLU(Linear([E[item]; E[rating]])) for every history row.
    fn history_forward(&self, parameters: Parameters<'_>, ws: &mut Pass, inputs: &[CrmInput<'_>]) {
        ws.offsets.clear();
        ws.pairs.clear();
        ws.similarities.clear();
        let mut rows = 0;
        for input in inputs {
            ws.offsets.push(rows);
            ws.similarities.extend_from_slice(input.similarities);
            for (&item, &rating) in input.history_items.iter().zip(input.history_ratings) {
                ws.pairs.extend_from_slice(self.row(parameters, item));
                ws.pairs.extend_from_slice(self.row(parameters, rating));
                rows += 1;
            }
        }
        ws.offsets.push(rows);
        ws.row_bounds.clear();
        ws.row_bounds.extend(ws.sample_bounds.iter().map(|sample| ws.offsets[*sample]));
        let parts = Parts::new(&ws.row_bounds);
        self.history.forward(parameters.dense, &ws.pairs, parts, &mut ws.history);
        ws.history.iter_mut().for_each(|value| *value = value.max(0.0));
    }

    /// a = MLP([q, h, q − h, q ⊙ h]) for every history row.
    fn attention_forward(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Pass,
        inputs: &[CrmInput<'_>],
        keys: Option<&DropoutKeys<'_>>,
    ) {
        let item_field = self.shape.item_field;
        let queries = inputs.iter().map(|input| self.row(parameters, input.fields[item_field]));
        let y = ws.attention.layer(1);
        let layer = &self.attention.hidden[0];
        let rows = sample_rows(&ws.offsets, &ws.sample_bounds, &ws.row_bounds);
        ws.attention_input.forward(layer, parameters.dense, queries, &ws.history, rows, y);
        let weight = &parameters.dense[self.similarity.clone()];
        // `zip` ends with the shorter: without similarities there is nothing to add.
        for (y, similarity) in y.chunks_exact_mut(layer.outputs).zip(&ws.similarities) {
            axpy(y, *similarity, weight);
        }
        ws.row_keys.clear();
        for (sample, key) in keys.iter().flat_map(|keys| keys.samples.iter().enumerate()) {
            let key = keys.map_or(0, |keys| keys.seed) ^ splitmix(*key);
            let places = 1..=(ws.offsets[sample + 1] - ws.offsets[sample]) as u64;
            ws.row_keys.extend(places.map(|place| splitmix(key ^ place << 32)));
        }
        let probability = self.dropout;
        let dropout = keys.map(|_| Dropout { probability, row_keys: &ws.row_keys });
        self.attention.forward_from(1, parameters.dense, rows.of_rows, dropout, &mut ws.attention);
    }

    /// z = flatten([fields; u; numbers]), u = Σ a h.
    fn pool(&self, parameters: Parameters<'_>, ws: &mut Pass, inputs: &[CrmInput<'_>]) {
        let e = self.embedding_dim;
        let z = ws.prediction.layer(0);
        z.clear();
        for (sample, input) in inputs.iter().enumerate() {
            for &feature in input.fields {
                z.extend_from_slice(self.row(parameters, feature));
            }
            let start = z.len();
            z.resize(start + e, 0.0);
            for row in ws.offsets[sample]..ws.offsets[sample + 1] {
                let h = &ws.history[row * e..(row + 1) * e];
                axpy(&mut z[start..], ws.attention.output[row], h);
            }
            z.extend_from_slice(input.numbers);
        }
    }

    fn history_backward(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Pass,
        inputs: &[CrmInput<'_>],
        gradient: &mut Gradient,
    ) {
        let e = self.embedding_dim;
        for (d, h) in ws.dhistory.iter_mut().zip(&ws.history) {
            *d = if *h > 0.0 { *d } else { 0.0 };
        }
        let (parts, dpairs) = (Parts::new(&ws.row_bounds), &mut ws.dpairs);
        self.history.backward(parameters.dense, &ws.pairs, &ws.dhistory, parts, gradient, dpairs);
        let mut rows = ws.dpairs.chunks_exact(2 * e);
        for (sample, input) in inputs.iter().enumerate() {
            let pairs = input.history_items.iter().zip(input.history_ratings);
            for ((&item, &rating), d) in pairs.zip(&mut rows) {
                add(gradient.row_of(sample, item), &d[..e]);
                add(gradient.row_of(sample, rating), &d[e..]);
            }
        }
    }
}

impl Network for Din {
    fn forward(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
        bounds: &[usize],
        keys: Option<DropoutKeys<'_>>,
    ) -> Vec<f32> {
        let ws = ws.of::<Pass>();
        ws.sample_bounds.clear();
        ws.sample_bounds.extend_from_slice(bounds);
        self.history_forward(parameters, ws, inputs);
        self.attention_forward(parameters, ws, inputs, keys.as_ref());
        self.pool(parameters, ws, inputs);
        let probability = self.dropout;
        ws.row_keys.clear();
        if let Some(keys) = &keys {
            ws.row_keys
                .extend(keys.samples.iter().map(|sample| splitmix(keys.seed ^ splitmix(*sample))));
        }
        let dropout = keys.map(|_| Dropout { probability, row_keys: &ws.row_keys });
        let parts = Parts::new(&ws.sample_bounds);
        self.prediction.forward(parameters.dense, parts, dropout, &mut ws.prediction);
        ws.prediction.output.clone()
    }

    fn representation_dim(&self) -> usize {
        match self.representation {
            Representation::Final => self.prediction.output.inputs,
            Representation::Hidden => width_of_z(self.shape, self.embedding_dim),
            Representation::User => 2 * self.embedding_dim,
        }
    }

    fn representations(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
    ) -> Vec<f32> {
        let ws = ws.of::<Pass>();
        match self.representation {
            Representation::Final => ws.prediction.last_hidden().to_vec(),
            Representation::Hidden => ws.prediction.layer(0).clone(),
            Representation::User => {
                let e = self.embedding_dim;
                let mut users = Vec::with_capacity(inputs.len() * 2 * e);
                for (sample, input) in inputs.iter().enumerate() {
                    let user = input.fields[self.shape.user_field];
                    users.extend_from_slice(self.row(parameters, user));
                    let start = users.len();
                    users.resize(start + e, 0.0);
                    let rows = ws.offsets[sample]..ws.offsets[sample + 1];
                    let count = rows.len().max(1) as f32;
                    for h in ws.history[rows.start * e..rows.end * e].chunks_exact(e) {
                        for (mean, h) in users[start..].iter_mut().zip(h) {
                            *mean += h / count;
                        }
                    }
                }
                users
            }
        }
    }

    fn backward(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
        dlogits: &[f32],
        gradient: &mut Gradient,
    ) {
        let ws = ws.of::<Pass>();
        let e = self.embedding_dim;
        let CrmShape { fields, item_field, .. } = self.shape;
        let rows = sample_rows(&ws.offsets, &ws.sample_bounds, &ws.row_bounds);
        let (dense, state) = (parameters.dense, &mut ws.prediction);
        let dz = self.prediction.backward(dense, dlogits, rows.of_samples, gradient, state);
        let width = width_of_z(self.shape, e);
        ws.dhistory.clear();
        ws.dattention.clear();
        for (sample, input) in inputs.iter().enumerate() {
            let dz = &dz[sample * width..(sample + 1) * width];
            for (feature, d) in input.fields.iter().zip(dz.chunks_exact(e)) {
                add(gradient.row_of(sample, *feature), d);
            }
            let du = &dz[fields * e..(fields + 1) * e];
            for row in ws.offsets[sample]..ws.offsets[sample + 1] {
                ws.dattention.push(dot(du, &ws.history[row * e..(row + 1) * e]));
                let weight = ws.attention.output[row];
                ws.dhistory.extend(du.iter().map(|d| weight * d));
            }
        }
        let state = &mut ws.attention;
        let dy =
            self.attention.backward_to(1, dense, &ws.dattention, rows.of_rows, gradient, state);
        let layer = &self.attention.hidden[0];
        if !self.similarity.is_empty() {
            let of_rows = Parts::new(&ws.row_bounds);
            of_rows.add_weighted_rows(
                gradient.dense(self.similarity.clone()),
                dy,
                &ws.similarities,
            );
        }
        ws.attention_input.backward(layer, dy, rows, gradient, &mut ws.dhistory);
        let dqueries = ws.attention_input.dqueries.chunks_exact(e);
        for (sample, (input, dq)) in inputs.iter().zip(dqueries).enumerate() {
            add(gradient.row_of(sample, input.fields[item_field]), dq);
        }
        self.history_backward(parameters, ws, inputs, gradient);
    }
}
