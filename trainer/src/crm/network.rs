//! Forward and backward of DIN over a packed batch.

use super::attention::AttentionInput;
use super::layers::{Dropout, MlpState};
use super::parts::Parts;
use super::{Din, DinShape};
use crate::config::Representation;
use crate::kernels::pointwise::{add, axpy, dot};
use crate::parameters::{Gradient, Parameters, splitmix};
use crate::telemetry::measure::{Phase, processed, timed};
use reclora_comm::tree;

/// One sample, in rows of the shared table, numbered as they lie in the parameters.
#[derive(Clone, Copy, Debug)]
pub struct CrmInput<'a> {
    /// One feature per field.
    pub fields: &'a [u32],
    /// Item features of the history.
    pub history_items: &'a [u32],
    /// Rating features of the history, one per item.
    pub history_ratings: &'a [u32],
}

/// Reusable buffers of one thread.
#[derive(Debug, Default)]
pub struct Workspace {
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
    row_keys: Vec<u64>,
    dhistory: Vec<f32>,
    dattention: Vec<f32>,
    dpairs: Vec<f32>,
}

/// What dropout of a training batch is keyed by.
struct DropoutKeys<'a> {
    seed: u64,
    samples: &'a [u64],
}

impl Din {
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
        ws.sample_bounds = vec![0, inputs.len()];
        timed(Phase::Forward, || self.forward(parameters, ws, inputs, None));
        (ws.prediction.output.clone(), self.representations(parameters, ws, inputs))
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
        ws.sample_bounds = gradient.bounds(inputs.len());
        timed(Phase::Forward, || self.forward(parameters, ws, inputs, keys));
        let mut losses = vec![0.0; ws.sample_bounds.len() - 1];
        let mut dlogits = Vec::with_capacity(inputs.len());
        for (loss, bounds) in losses.iter_mut().zip(ws.sample_bounds.windows(2)) {
            let range = bounds[0]..bounds[1];
            for (&logit, &label) in ws.prediction.output[range.clone()].iter().zip(&labels[range]) {
                // log(1 + e^x) without overflow.
                *loss += logit.max(0.0) - logit * label + (-logit.abs()).exp().ln_1p();
                dlogits.push(weight * (1.0 / (1.0 + (-logit).exp()) - label));
            }
        }
        timed(Phase::Backward, || self.backward(parameters, ws, inputs, &dlogits, gradient));
        tree::fold(losses, |left, right| *left += right).unwrap_or_default()
    }

    fn row<'p>(&self, parameters: Parameters<'p>, feature: u32) -> &'p [f32] {
        let e = self.config.embedding_dim;
        &parameters.table[feature as usize * e..(feature as usize + 1) * e]
    }

    fn forward(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
        keys: Option<DropoutKeys<'_>>,
    ) {
        self.history_forward(parameters, ws, inputs);
        self.attention_forward(parameters, ws, inputs, keys.as_ref());
        self.pool(parameters, ws, inputs);
        let probability = self.config.dropout;
        ws.row_keys.clear();
        if let Some(keys) = &keys {
            ws.row_keys
                .extend(keys.samples.iter().map(|sample| splitmix(keys.seed ^ splitmix(*sample))));
        }
        let dropout = keys.map(|_| Dropout { probability, row_keys: &ws.row_keys });
        let parts = Parts::new(&ws.sample_bounds);
        self.prediction.forward(parameters.dense, parts, dropout, &mut ws.prediction);
    }

    /// h = ReLU(Linear([E[item]; E[rating]])) for every history row.
    fn history_forward(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
    ) {
        ws.offsets.clear();
        ws.pairs.clear();
        let mut rows = 0;
        for input in inputs {
            ws.offsets.push(rows);
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
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
        keys: Option<&DropoutKeys<'_>>,
    ) {
        let item_field = self.shape.item_field;
        let queries = inputs.iter().map(|input| self.row(parameters, input.fields[item_field]));
        let y = ws.attention.layer(1);
        let layer = &self.attention.hidden[0];
        let parts = [&ws.sample_bounds, &ws.row_bounds].map(|bounds| Parts::new(bounds));
        let (input, dense) = (&mut ws.attention_input, parameters.dense);
        input.forward(layer, dense, queries, &ws.history, &ws.offsets, parts, y);
        ws.row_keys.clear();
        for (sample, key) in keys.iter().flat_map(|keys| keys.samples.iter().enumerate()) {
            let key = keys.map_or(0, |keys| keys.seed) ^ splitmix(*key);
            let places = 1..=(ws.offsets[sample + 1] - ws.offsets[sample]) as u64;
            ws.row_keys.extend(places.map(|place| splitmix(key ^ place << 32)));
        }
        let probability = self.config.dropout;
        let dropout = keys.map(|_| Dropout { probability, row_keys: &ws.row_keys });
        let [_, of_rows] = parts;
        self.attention.forward_from(1, parameters.dense, of_rows, dropout, &mut ws.attention);
    }

    /// z = flatten([fields; u]), u = Σ a h.
    fn pool(&self, parameters: Parameters<'_>, ws: &mut Workspace, inputs: &[CrmInput<'_>]) {
        let e = self.config.embedding_dim;
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
        }
    }

    fn representations(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
    ) -> Vec<f32> {
        match self.config.representation {
            Representation::Final => ws.prediction.last_hidden().to_vec(),
            Representation::Hidden => ws.prediction.layer(0).clone(),
            Representation::User => {
                let e = self.config.embedding_dim;
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
        let e = self.config.embedding_dim;
        let keep = 1.0 - self.config.dropout;
        let DinShape { fields, item_field, .. } = self.shape;
        let parts = [&ws.sample_bounds, &ws.row_bounds].map(|bounds| Parts::new(bounds));
        let [of_samples, of_rows] = parts;
        let (dense, state) = (parameters.dense, &mut ws.prediction);
        let dz = self.prediction.backward(dense, dlogits, of_samples, keep, gradient, state);
        let width = (fields + 1) * e;
        ws.dhistory.clear();
        ws.dattention.clear();
        for (sample, input) in inputs.iter().enumerate() {
            let dz = &dz[sample * width..(sample + 1) * width];
            for (feature, d) in input.fields.iter().zip(dz.chunks_exact(e)) {
                add(gradient.row_of(sample, *feature), d);
            }
            let du = &dz[fields * e..];
            for row in ws.offsets[sample]..ws.offsets[sample + 1] {
                ws.dattention.push(dot(du, &ws.history[row * e..(row + 1) * e]));
                let weight = ws.attention.output[row];
                ws.dhistory.extend(du.iter().map(|d| weight * d));
            }
        }
        let state = &mut ws.attention;
        let dy =
            self.attention.backward_to(1, dense, &ws.dattention, of_rows, keep, gradient, state);
        let layer = &self.attention.hidden[0];
        ws.attention_input.backward(layer, dy, &ws.offsets, parts, gradient, &mut ws.dhistory);
        let dqueries = ws.attention_input.dqueries.chunks_exact(e);
        for (sample, (input, dq)) in inputs.iter().zip(dqueries).enumerate() {
            add(gradient.row_of(sample, input.fields[item_field]), dq);
        }
        self.history_backward(parameters, ws, inputs, gradient);
    }

    fn history_backward(
        &self,
        parameters: Parameters<'_>,
        ws: &mut Workspace,
        inputs: &[CrmInput<'_>],
        gradient: &mut Gradient,
    ) {
        let e = self.config.embedding_dim;
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
