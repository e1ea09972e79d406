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

/// What the score of a sample starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prior {
    /// Nothing: the LLM says all of it, as published.
    #[default]
    None,
    /// The CRM's logit, to which the LLM adds what the CRM does not know: z = offset + g · r. Before the first step r is
    /// 0 and z the CRM's. g is chosen on valid, and 0 where the LLM adds nothing. The checkpoint of the least log loss
    /// on valid is kept. Needs crm.holdout and a trained head.
    Crm,
}

/// A model that is tuned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TunedModel {
    /// RecLoRA. Always among them.
    Reclora,
    /// Plain LoRA (one expert, no gate), as published: it starts from nothing.
    Lora,
    /// Plain LoRA that starts from the CRM as RecLoRA does. Needs tune.prior = "crm".
    LoraCrm,
}

/// What is learnt of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TuneObjective {
    /// The tokens of the answer among the whole vocabulary, as published.
    #[default]
    Tokens,
    /// The choice between yes and no: binary cross-entropy on their difference.
    Answer,
}

/// What the CRM is told of the ratings before a sample: of its user, its item and its categories, how many there were
/// and how many of them likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Counting {
    /// Nothing.
    #[default]
    None,
    /// All ratings before the sample's moment, those of valid and test included, as a service counts along.
    Online,
    /// Those of train among them.
    Train,
}

/// What the CRM is told of the items' texts, by the vectors that the LLM embeds them as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemVectors {
    /// How the user liked earlier items whose texts are like the target's: two numbers, as inputs of the prediction
    /// network.
    Affinity,
    /// How much the text of each history item is like the target's, as an input of the attention network.
    Attention,
    /// The target's vector, as an input of the prediction network.
    Input,
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
