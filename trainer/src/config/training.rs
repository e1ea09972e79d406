//! Choices of `[crm]`, `[tune]` and `[evaluate]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which rows of the CRM's embedding table a step moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingOptimizer {
    /// All of them: a row without a gradient moves as its moments say, as in the published code.
    #[default]
    Adamw,
    /// Those of the batch's samples: for tables much larger than a batch.
    LazyAdamw,
}

/// Which samples of a split are scored, where a limit leaves some out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitOrder {
    /// Any, each as likely as the others, drawn with the seed; fewer are a subset of more.
    #[default]
    Sample,
    /// The first in time: a handful of users, whose samples may be easier or harder than the rest.
    First,
}

/// Which samples of train the adapters are tuned on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FewShotSampler {
    /// Any, each as likely as the others.
    #[default]
    Uniform,
    /// One of every user before a second of any: as many users as possible.
    User,
    /// As many of each sixteenth of train's time.
    Time,
    /// As many of each tenth of the CRM's scores, from those it is sure are disliked to those liked.
    CrmScore,
}
