//! Tokenizer and prompts: a made-up sample is written, tokenised and measured as those of the data will be.

use std::cmp::Reverse;

use reclora_storage::dataset::{Dataset, Sample, Split};
use reclora_storage::raw::TextColumns;

use super::{Finding, Severity};
use crate::backbone::{Backbone, BackboneConfig};
use crate::error::{Result, TrainerError};
use crate::prompt::{Known, PromptBuilder, PromptTemplate, too_long};
use crate::stages::draw::Drawn;
use crate::stages::text::max_tokens;
use crate::stages::{RunContext, Stage};
use crate::tokenizer::{Answers, Tokenizer};

/// Questions of the test set that are measured: those with most text.
const LONGEST: usize = 16;

/// Items of the history that a made-up sample is shown with at most.
const MOST_SHOWN: usize = 64;

/// Whether a stage writes prompts.
fn writes_prompts(stages: &[Stage]) -> bool {
    stages.iter().any(|stage| matches!(stage, Stage::Tune | Stage::Evaluate | Stage::Export))
}

/// Looks at tokenizer and template; `None` is what could not be read, and is told elsewhere.
pub fn check(
    ctx: &RunContext,
    stages: &[Stage],
    columns: Option<&TextColumns>,
    backbone: Option<&BackboneConfig>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let path = &ctx.config.backbone.path;
    let tokenizer = match Tokenizer::load(path) {
        Ok(tokenizer) => {
            findings.push(Finding::fine("tokenizer", path.display(), "can be read"));
            let notes = tokenizer.notes().iter().cloned();
            findings.extend(notes.map(|note| Finding::note("tokenizer", note)));
            Some(tokenizer)
        }
        Err(error) if path.exists() => {
            findings.push(Finding::wrong("tokenizer", error, "correct backbone.path or the model"));
            None
        }
        Err(_) => None,
    };
    if writes_prompts(stages) {
        let check = Check { ctx, columns, backbone, tokenizer: tokenizer.as_ref() };
        findings.extend(check.prompt());
    }
    findings
}

struct Check<'a> {
    ctx: &'a RunContext,
    columns: Option<&'a TextColumns>,
    backbone: Option<&'a BackboneConfig>,
    tokenizer: Option<&'a Tokenizer>,
}

const HELP: &str = "correct the template, or name another one as prompt.template";

impl Check<'_> {
    fn prompt(&self) -> Vec<Finding> {
        let path = &self.ctx.config.prompt.template;
        if !path.is_file() {
            return vec![Finding::absent(
                "prompt",
                "prompt.template",
                path,
                "the file of a prompt template",
            )];
        }
        let template = match PromptTemplate::open(path) {
            Ok(template) => template,
            Err(error) => return vec![Finding::wrong("prompt", error, HELP)],
        };
        let mut findings = Vec::from_iter(self.made_up(&template));
        match template.tail() {
            Ok(tail) => findings.extend(self.answers(&template, &tail)),
            Err(error) if findings.is_empty() => {
                findings.push(Finding::wrong("prompt", error, HELP));
            }
            // It was said with the made-up sample.
            Err(_) => {}
        }
        if findings.is_empty() {
            findings.push(Finding::fine(
                "prompt",
                path.display(),
                "a made-up sample can be written",
            ));
        }
        findings
    }

    /// Writes samples with one item of the history and with as many as there may be, and without any.
    fn made_up(&self, template: &PromptTemplate) -> Option<Finding> {
        let columns = self.columns?;
        let most = self.ctx.config.retrieve.text_k;
        let written = [1, most.clamp(1, MOST_SHOWN)].map(|shown| template.made_up(columns, shown));
        if let Some(error) = written.into_iter().find_map(Result::err) {
            return Some(Finding::wrong("prompt", error, HELP));
        }
        // Items without a text have nothing to be shown.
        if !columns.items.is_empty() && matches!(template.shows_item(columns), Ok(false)) {
            let what = "prompts of different items are the same: the template shows nothing of the item; is \
                        {{ body }} missing in wrapper, or what target has in body?";
            let error = TrainerError::file(template.path(), what);
            return Some(Finding::wrong("prompt", error, HELP));
        }
        // Where every sample has a history it is only cut away where prompts are too long.
        let severity = match most == 0 || self.ctx.config.data.min_history == 0 {
            true => Severity::Wrong,
            false => Severity::Warning,
        };
        let error = template.made_up(columns, 0).err()?;
        let help = "the template should work with an empty history: a prompt that is too long may lose all of it";
        Some(Finding::of("prompt", severity, error, help))
    }

    /// Looks for the tokens of the answers.
    fn answers(&self, template: &PromptTemplate, tail: &str) -> Vec<Finding> {
        let Some(tokenizer) = self.tokenizer else { return Vec::new() };
        match (tokenizer.answers(tail, template.yes(), template.no()), self.backbone) {
            (Err(error), _) => vec![Finding::wrong("tokenizer", error, HELP)],
            (Ok(answers), Some(backbone)) => self.question(template, tokenizer, &answers, backbone),
            (Ok(_), None) => Vec::new(),
        }
    }

    /// Measures the shortest question there may be.
    fn question(
        &self,
        template: &PromptTemplate,
        tokenizer: &Tokenizer,
        answers: &Answers,
        backbone: &BackboneConfig,
    ) -> Vec<Finding> {
        let Some(Ok(text)) = self.columns.map(|columns| template.made_up(columns, 0)) else {
            return Vec::new();
        };
        let mut tokens = match tokenizer.encode(&text) {
            Ok(tokens) => tokens,
            Err(error) => return vec![Finding::wrong("tokenizer", error, HELP)],
        };
        tokens.extend(&answers.lead);
        let needed = tokens.len() + answers.yes.len().max(answers.no.len());
        let limit = max_tokens(&self.ctx.config, backbone);
        let mut findings = Vec::new();
        if needed > limit {
            let error =
                too_long("a made-up question of the shortest texts", needed, limit, template);
            findings.push(Finding::wrong(
                "prompt",
                error,
                "prompts lose their history, never the question",
            ));
        }
        let positions = backbone.max_position_embeddings;
        if self.ctx.config.prompt.max_tokens > positions {
            let what = format!("the backbone has {positions} positions: prompts are cut at that");
            let error = TrainerError::config("prompt.max_tokens", what);
            findings.push(Finding::of(
                "prompt",
                Severity::Warning,
                error,
                "0 is the backbone's limit",
            ));
        }
        let all = tokens.iter().chain(&answers.yes).chain(&answers.no);
        if let Some(token) = all.copied().find(|token| *token as usize >= backbone.vocab_size) {
            let what = format!(
                "the tokenizer gives token {token} for a prompt, and the model has {} of them",
                backbone.vocab_size
            );
            let error = TrainerError::file(&self.ctx.config.backbone.path, what);
            let help = "tokenizer and weights must be of one model: copy both again";
            findings.push(Finding::wrong("tokenizer", error, help));
        }
        findings
    }
}

/// Measures the questions of the test set with most text.
pub fn check_questions(ctx: &RunContext, dataset: &Dataset, stages: &[Stage]) -> Option<Finding> {
    if !stages.contains(&Stage::Evaluate) {
        return None;
    }
    let config = &ctx.config;
    // What can't be read is told elsewhere.
    let backbone = Backbone::read_config(&config.backbone.path).ok()?;
    let tokenizer = Tokenizer::load(&config.backbone.path).ok()?;
    let template = PromptTemplate::load(&config.prompt.template, dataset).ok()?;
    let limit = max_tokens(config, &backbone);
    let builder = PromptBuilder::new(&template, &tokenizer, dataset, limit).ok()?;
    let check = || -> Result<()> {
        let (test, of) = (dataset.split(Split::Test), &config.evaluate);
        let samples = Drawn::limited(test, of.limit, of.limit_order, config.seed);
        for sample in longest(dataset, samples.samples(dataset)?) {
            builder.build(sample.user, sample.item, &[], &Known::default())?;
        }
        Ok(())
    };
    check().err().map(|error| Finding::wrong("prompt", error, HELP))
}

/// The samples whose user and item have most text, each item once.
fn longest(dataset: &Dataset, mut samples: Vec<Sample>) -> Vec<Sample> {
    let length = |sample: &Sample| {
        let of_item = dataset.item_text_columns().iter();
        let of_item = of_item.filter_map(|name| dataset.item_text(sample.item, name)).map(str::len);
        let of_user = dataset.user_text_columns().iter();
        let of_user = of_user.filter_map(|name| dataset.user_text(sample.user, name)).map(str::len);
        of_item.chain(of_user).sum::<usize>()
    };
    samples.sort_unstable_by_key(|sample| (sample.item, sample.user));
    samples.dedup_by_key(|sample| sample.item);
    samples.sort_by_cached_key(|sample| Reverse(length(sample)));
    samples.truncate(LONGEST);
    samples
}
