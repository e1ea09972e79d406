//! A sample as text and as tokens. The wording is data: one template file per dataset.

mod made_up;
mod template;

pub use template::PromptTemplate;

use reclora_storage::dataset::Dataset;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::engine::Target;
use crate::error::{Result, TrainerError};
use crate::tokenizer::{Answers, Tokenizer};

/// Titles are cut after this many characters, so that one odd title can't fill a prompt.
const TITLE_LIMIT: usize = 120;

/// Writes prompts of one dataset for one backbone.
#[derive(Debug)]
pub struct PromptBuilder<'a> {
    template: &'a PromptTemplate,
    tokenizer: &'a Tokenizer,
    dataset: &'a Dataset,
    answers: Answers,
    max_tokens: usize,
}

/// What was known of a user or an item before a sample, from all users' ratings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counted {
    /// Share of likes, drawn toward that of everyone where there are few ratings.
    pub mean: f32,
    /// Number of ratings.
    pub count: u32,
}

/// What was known before a sample, as templates see it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Known {
    /// `user.mean` and `user.count`.
    pub user: Counted,
    /// `target.mean` and `target.count`.
    pub item: Counted,
}

/// A sample's prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// The tokens before the one that decides between yes and no.
    pub tokens: Vec<u32>,
    /// The text they were made from.
    pub text: String,
    /// History items left out because the prompt was too long.
    pub dropped: usize,
}

/// A sample as it is tuned on: the prompt with its answer, and what is supervised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The prompt's tokens, then the answer's but the last.
    pub tokens: Vec<u32>,
    /// The answer's tokens and where they are predicted.
    pub targets: Vec<Target>,
}

impl<'a> PromptBuilder<'a> {
    /// A builder of prompts of at most `max_tokens` tokens, the answer included.
    ///
    /// # Errors
    /// The tokenizer can't tell the template's answers apart.
    pub fn new(
        template: &'a PromptTemplate,
        tokenizer: &'a Tokenizer,
        dataset: &'a Dataset,
        max_tokens: usize,
    ) -> Result<Self> {
        let tail = template.tail()?;
        let answers = tokenizer.answers(&tail, template.yes(), template.no())?;
        Ok(Self { template, tokenizer, dataset, answers, max_tokens })
    }

    /// The tokens of the answers.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// The prompt for `user` and `item`, showing the user's interactions at `positions` in that
    /// order. While it is too long the oldest of them is left out, never the question.
    ///
    /// # Errors
    /// The question alone is too long.
    pub fn build(
        &self,
        user: u32,
        item: u32,
        positions: &[u32],
        known: &Known,
    ) -> Result<EncodedPrompt> {
        let answer = self.answers.yes.len().max(self.answers.no.len());
        let mut shown = positions.to_vec();
        loop {
            let text = self.render(user, item, &shown, known)?;
            let mut tokens = self.tokenizer.encode(&text)?;
            tokens.extend(&self.answers.lead);
            if tokens.len() + answer <= self.max_tokens {
                let dropped = positions.len() - shown.len();
                return Ok(EncodedPrompt { tokens, text, dropped });
            }
            let Some(oldest) = (0..shown.len()).min_by_key(|&index| shown[index]) else {
                let question = format!("the question for item {}", self.dataset.item_key(item));
                let needed = tokens.len() + answer;
                return Err(too_long(&question, needed, self.max_tokens, self.template));
            };
            shown.remove(oldest);
        }
    }

    /// `prompt` followed by the right answer.
    pub fn example(&self, prompt: &EncodedPrompt, like: bool) -> Example {
        let answer = if like { &self.answers.yes } else { &self.answers.no };
        let first = prompt.tokens.len() - 1;
        let targets = answer.iter().enumerate();
        let targets =
            targets.map(|(index, &token)| Target { position: first + index, token }).collect();
        let mut tokens = prompt.tokens.clone();
        tokens.extend(answer.iter().take(answer.len() - 1));
        Example { tokens, targets }
    }

    fn render(&self, user: u32, item: u32, positions: &[u32], known: &Known) -> Result<String> {
        let dataset = self.dataset;
        let columns = |names: &[String], text: &dyn Fn(&str) -> Option<String>| {
            names.iter().map(|name| (name.clone(), json!(text(name)))).collect::<Map<_, _>>()
        };
        let item_columns = |item: u32| {
            columns(dataset.item_text_columns(), &|name| dataset.item_text(item, name).map(clean))
        };
        // Up to here only what is older than the sample was chosen; its ratings are the last column.
        let newest = positions.iter().max().map_or(0, |position| position + 1);
        let history = dataset.history(user, newest);
        let mut shown = Vec::new();
        for (index, &position) in positions.iter().enumerate() {
            let (Some(&item), Some(&level)) =
                (history.items.get(position as usize), history.ratings.get(position as usize))
            else {
                let what = format!("user {user} has no interaction at position {position}");
                return Err(TrainerError::Input(what));
            };
            let mut entry = item_columns(item);
            entry.insert("index".into(), json!(index));
            entry.insert("stars".into(), stars(dataset.rating_levels().get(level as usize)));
            shown.push(Value::Object(entry));
        }
        let user_columns =
            columns(dataset.user_text_columns(), &|name| dataset.user_text(user, name).map(clean));
        // A text column of that name goes before a count.
        let with = |counted: Counted, columns: Map<String, Value>| {
            let mean = json!((f64::from(counted.mean) * 100.0).round() / 100.0);
            let counts = [("mean".to_owned(), mean), ("count".to_owned(), json!(counted.count))];
            Map::from_iter(counts.into_iter().chain(columns))
        };
        let (target, user) = (with(known.item, item_columns(item)), with(known.user, user_columns));
        let values = json!({ "history": shown, "target": target, "user": user });
        self.template.render(&values)
    }
}

/// A question that is too long even without a history.
pub(crate) fn too_long(
    question: &str,
    needed: usize,
    limit: usize,
    template: &PromptTemplate,
) -> TrainerError {
    let path = template.path().display();
    let what = format!(
        "{question} alone needs {needed} tokens, the limit is {limit}; raise it or shorten {path}"
    );
    TrainerError::config("prompt.max_tokens", what)
}

/// A rating as people write it: "4", "3.5".
fn stars(level: Option<&f32>) -> Value {
    match level {
        Some(level) if level.fract() == 0.0 => json!(*level as i64),
        level => json!(level),
    }
}

/// One line of at most [`TITLE_LIMIT`] characters.
fn clean(text: &str) -> String {
    let mut clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TITLE_LIMIT).collect();
    if text.chars().nth(TITLE_LIMIT).is_some() {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_one_line_of_bounded_length() {
        assert_eq!(clean("Two\nlines\t\u{7}"), "Two lines  ");
        let long = clean(&"ä".repeat(500));
        assert_eq!(long.chars().count(), TITLE_LIMIT + 1);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn stars_are_written_as_people_do() {
        assert_eq!((stars(Some(&4.0)), stars(Some(&3.5))), (json!(4), json!(3.5)));
    }
}
