//! A backbone's weights on a device.

use candle_core::{DType, Device, Tensor};

use crate::backbone::{
    Backbone, BackboneConfig, BlockWeights, FrozenLinear, Projection, Weight, WeightType,
};
use crate::error::{Result, TrainerError};

/// Type of the frozen matrices and of activations on a device. Trained parameters, norms, softmax and
/// loss are f32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
}

impl Precision {
    /// That of `backbone.weights`.
    ///
    /// # Errors
    /// A type that devices don't multiply with.
    pub fn of(weights: WeightType) -> Result<Self> {
        match weights {
            WeightType::F32 => Ok(Self::F32),
            WeightType::Bf16 => Ok(Self::Bf16),
            WeightType::Q8_0 => {
                let what = "q8_0 is not supported with [runtime] device = \"cuda\"; use \"bf16\"";
                Err(TrainerError::config("backbone.weights", what))
            }
        }
    }

    pub(super) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Checks that this machine has a GPU of this number, by using it for a moment.
///
/// # Errors
/// [`TrainerError::Device`]: there is none, or no driver.
pub fn require_gpu(ordinal: usize) -> Result<()> {
    Device::new_cuda_with_stream(ordinal)?;
    Ok(())
}

/// How a device computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Type of weights and activations.
    pub precision: Precision,
    /// Keep only each block's input while tuning and compute the rest again in the backward.
    pub recompute: bool,
}

/// A frozen projection: `y = x weight^T + bias`.
pub(super) struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Tensor,
    /// `[outputs]`.
    pub bias: Option<Tensor>,
}

/// One decoder block. Norms are f32.
pub(super) struct Block {
    /// RMSNorm before attention `[hidden]`.
    pub input_norm: Tensor,
    /// RMSNorm before the MLP `[hidden]`.
    pub mlp_norm: Tensor,
    /// RMSNorms of each query head and each key head `[head_dim]`, where the family has them.
    pub qk_norm: [Option<Tensor>; 2],
    /// In the order of [`Projection::ALL`].
    projections: Vec<Linear>,
}

impl Block {
    pub fn projection(&self, projection: Projection) -> &Linear {
        &self.projections[projection as usize]
    }
}

/// A frozen backbone, copied to a device once.
pub struct DeviceBackbone {
    pub(super) config: BackboneConfig,
    pub(super) options: DeviceOptions,
    pub(super) device: Device,
    /// `[vocab, hidden]`.
    pub(super) embedding: Tensor,
    pub(super) blocks: Vec<Block>,
    /// Final RMSNorm `[hidden]`.
    pub(super) norm: Tensor,
    /// `[vocab, hidden]`.
    pub(super) head: Tensor,
}

impl DeviceBackbone {
    /// Copies a backbone to a device.
    ///
    /// # Errors
    /// [`TrainerError::Device`]: no memory, for one.
    pub fn new(backbone: &Backbone, device: &Device, options: DeviceOptions) -> Result<Self> {
        let config = backbone.config().clone();
        let upload = Upload { device, dtype: options.precision.dtype() };
        let embedding = upload.matrix(&backbone.embedding)?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            upload.matrix(backbone.head())?
        };
        let blocks = backbone.blocks.iter().map(|block| upload.block(block));
        Ok(Self {
            blocks: blocks.collect::<Result<_>>()?,
            norm: upload.vector(&backbone.norm)?,
            config,
            options,
            device: device.clone(),
            embedding,
            head,
        })
    }

    /// Copies a backbone to the GPU of this number.
    ///
    /// # Errors
    /// [`TrainerError::Device`]: no such GPU, or not enough memory.
    pub fn on_gpu(backbone: &Backbone, ordinal: usize, options: DeviceOptions) -> Result<Self> {
        // A stream of its own, not one per thread: a model is used by whichever thread comes.
        Self::new(backbone, &Device::new_cuda_with_stream(ordinal)?, options)
    }

    /// Sizes and settings.
    pub fn config(&self) -> &BackboneConfig {
        &self.config
    }
}

struct Upload<'a> {
    device: &'a Device,
    dtype: DType,
}

impl Upload<'_> {
    fn matrix(&self, weight: &Weight) -> Result<Tensor> {
        let weight = weight.mat();
        let mut values = vec![0.0; weight.outputs() * weight.inputs()];
        weight.widen(0, &mut values);
        let shape = (weight.outputs(), weight.inputs());
        Ok(Tensor::from_vec(values, shape, self.device)?.to_dtype(self.dtype)?)
    }

    fn vector(&self, values: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, values.len(), self.device)?)
    }

    fn linear(&self, linear: &FrozenLinear) -> Result<Linear> {
        let bias = match &linear.bias {
            Some(bias) => Some(self.vector(bias)?.to_dtype(self.dtype)?),
            None => None,
        };
        Ok(Linear { weight: self.matrix(&linear.weight)?, bias })
    }

    fn block(&self, block: &BlockWeights) -> Result<Block> {
        let qk_norm = match &block.qk_norm {
            Some([q, k]) => [Some(self.vector(q)?), Some(self.vector(k)?)],
            None => [None, None],
        };
        let projections = Projection::ALL.iter();
        let projections = projections.map(|projection| self.linear(block.projection(*projection)));
        Ok(Block {
            input_norm: self.vector(&block.input_norm)?,
            mlp_norm: self.vector(&block.mlp_norm)?,
            qk_norm,
            projections: projections.collect::<Result<_>>()?,
        })
    }
}
