//! Sequences of different lengths as one packed batch: no padding.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::backbone::BackboneConfig;
use crate::error::Result;
use crate::kernels::heads::RopeTable;

/// Some or all tokens of a packed batch, sequence after sequence.
pub(super) struct Rows {
    /// Which packed tokens; `None`: all.
    pub index: Option<Tensor>,
    /// Rows of each sequence.
    pub ranges: Vec<Range<usize>>,
    /// Sequence of each row `[rows]`.
    pub sequence: Tensor,
    /// Position of each row in its sequence `[rows]`, f32.
    pub positions: Tensor,
    /// Cosines of the rotary embedding `[rows, head_dim / 2]`, f32.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

/// Sequences, packed, and the rows that are asked for.
pub(super) struct Batch {
    /// Token ids `[tokens]`.
    pub tokens: Tensor,
    /// All tokens.
    pub all: Rows,
    /// Those whose final state is asked for; `None`: all.
    pub wanted: Option<Rows>,
}

impl Batch {
    /// Packs sequences of (tokens, wanted positions, ascending).
    pub fn new(
        config: &BackboneConfig,
        sequences: &[(&[u32], Vec<u32>)],
        device: &Device,
    ) -> Result<Self> {
        let longest = sequences.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0);
        let mut rope = RopeTable::default();
        rope.prepare(config.rope_theta, config.rope_scaling, config.head_dim, longest);
        let half = config.head_dim / 2;
        let (cos, sin) = rope.tables();
        let tables = [
            Tensor::from_slice(&cos[..longest * half], (longest, half), device)?,
            Tensor::from_slice(&sin[..longest * half], (longest, half), device)?,
        ];
        let tokens: Vec<u32> = sequences.iter().flat_map(|(tokens, _)| *tokens).copied().collect();
        let every = sequences.iter().map(|(tokens, _)| (0..tokens.len() as u32).collect());
        let all = Rows::new(every.collect(), &tables, device)?;
        let count: usize = sequences.iter().map(|(_, wanted)| wanted.len()).sum();
        let wanted = if count == tokens.len() {
            None
        } else {
            let positions = sequences.iter().map(|(_, wanted)| wanted.clone()).collect();
            let mut rows = Rows::new(positions, &tables, device)?;
            let starts = all.ranges.iter().map(|range| range.start as u32);
            let index: Vec<u32> = starts
                .zip(sequences)
                .flat_map(|(start, (_, wanted))| wanted.iter().map(move |at| start + at))
                .collect();
            rows.index = Some(Tensor::from_vec(index, count, device)?);
            Some(rows)
        };
        Ok(Self { tokens: Tensor::new(tokens.as_slice(), device)?, all, wanted })
    }

    /// The rows whose final state is asked for.
    pub fn wanted(&self) -> &Rows {
        self.wanted.as_ref().unwrap_or(&self.all)
    }
}

impl Rows {
    fn new(sequences: Vec<Vec<u32>>, [cos, sin]: &[Tensor; 2], device: &Device) -> Result<Self> {
        let mut ranges = Vec::new();
        let (mut sequence, mut positions) = (Vec::new(), Vec::new());
        for (number, rows) in sequences.iter().enumerate() {
            ranges.push(positions.len()..positions.len() + rows.len());
            sequence.resize(positions.len() + rows.len(), number as u32);
            positions.extend_from_slice(rows);
        }
        let at = Tensor::from_slice(&positions, positions.len(), device)?;
        let positions: Vec<f32> = positions.iter().map(|position| *position as f32).collect();
        Ok(Self {
            index: None,
            ranges,
            sequence: Tensor::from_slice(&sequence, sequence.len(), device)?,
            positions: Tensor::from_slice(&positions, positions.len(), device)?,
            cos: cos.index_select(&at, 0)?,
            sin: sin.index_select(&at, 0)?,
        })
    }

    /// These rows of a tensor of all tokens.
    pub fn select(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.index {
            Some(index) => x.index_select(index, 0)?,
            None => x.clone(),
        })
    }

    /// Adds rows to those of a tensor of all tokens that they were selected from.
    pub fn add_to(&self, all: &Tensor, rows: &Tensor) -> Result<Tensor> {
        Ok(match &self.index {
            Some(index) => all.index_add(index, rows, 0)?,
            None => (all + rows)?,
        })
    }

    /// One sequence's rows of a tensor of these rows.
    pub fn of(&self, x: &Tensor, sequence: usize) -> Result<Tensor> {
        let range = &self.ranges[sequence];
        Ok(x.narrow(0, range.start, range.len())?)
    }
}
