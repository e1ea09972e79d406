//! Where the parameters of a CRM are.

use std::ops::Range;

use super::layers::{Linear, Mlp};
use crate::error::Result;
use crate::parameters::{Init, ParameterLayout, Table, TableShare, TensorLayout};

/// Names, shapes and places of a CRM's parameters: the embedding table first, then what is dense, whose places
/// are counted from behind the table.
#[derive(Clone, Debug)]
pub(super) struct CrmLayout {
    layout: ParameterLayout,
    table: Table,
}

impl CrmLayout {
    /// A layout of nothing but the table.
    ///
    /// # Errors
    /// A table that no memory can hold.
    pub fn new(table: Table) -> Result<Self> {
        let mut layout = ParameterLayout::default();
        layout.push("embedding".into(), &[table.rows, table.width], Init::XavierNormal)?;
        Ok(Self { layout, table })
    }

    /// Adds a dense tensor; returns its place behind the table.
    pub(super) fn dense(
        &mut self,
        name: String,
        shape: &[usize],
        init: Init,
    ) -> Result<Range<usize>> {
        let (range, table) = (self.layout.push(name, shape, init)?, self.table.len());
        Ok(range.start - table..range.end - table)
    }

    /// Adds a linear layer: `NAME.weight` `[outputs, inputs]` and `NAME.bias` `[outputs]`.
    pub(super) fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let weight = [outputs, inputs];
        let weight = self.dense(format!("{name}.weight"), &weight, Init::XavierNormal)?;
        let bias = self.dense(format!("{name}.bias"), &[outputs], Init::Zero)?;
        Ok(Linear { weight, bias, inputs, outputs })
    }

    /// Adds a stack of `depth` hidden layers of one width, and an output of width 1.
    pub(super) fn mlp(
        &mut self,
        name: &str,
        inputs: usize,
        width: usize,
        depth: usize,
    ) -> Result<Mlp> {
        let hidden = (0..depth).map(|layer| {
            let inputs = if layer == 0 { inputs } else { width };
            self.linear(&format!("{name}.{layer}"), inputs, width)
        });
        let hidden = hidden.collect::<Result<_>>()?;
        Ok(Mlp { hidden, output: self.linear(&format!("{name}.output"), width, 1)? })
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        self.layout.len()
    }

    /// The embedding table.
    pub fn table(&self) -> Table {
        self.table
    }

    /// Names, shapes and places in the flat vector.
    pub fn tensors(&self) -> &[TensorLayout] {
        self.layout.tensors()
    }

    /// First values of what a rank holds: the rows of `share`, then the dense part. A pure function of
    /// (seed, name, place), so that shares put together are the whole.
    pub fn init_share(&self, seed: u64, share: TableShare) -> Vec<f32> {
        let (table, held) = (self.table, share.held());
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
}
