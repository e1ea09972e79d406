//! Prompt templates: TOML files with a Jinja body.

use std::path::{Path, PathBuf};

use minijinja::{Environment, Template, UndefinedBehavior};
use reclora_storage::dataset::Dataset;
use reclora_storage::raw::TextColumns;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::made_up::{MadeUp, TEXT};
use crate::error::{Result, TrainerError};

/// The file's keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    body: String,
    #[serde(default = "plain")]
    wrapper: String,
    yes: String,
    no: String,
    #[serde(default = "every_column")]
    item: String,
}

fn plain() -> String {
    "{{ body }}".into()
}

/// An item as text where the template does not say: every text column with its name.
fn every_column() -> String {
    "{{ every_column }}".into()
}

/// The pieces that are templates.
const BODY: &str = "body";
const WRAPPER: &str = "wrapper";
const ITEM: &str = "item";

/// A prompt template.
#[derive(Debug)]
pub struct PromptTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    yes: String,
    no: String,
}

impl PromptTemplate {
    /// Loads a template and tries it on the text columns of `dataset`.
    ///
    /// # Errors
    /// Those of [`Self::open`] and [`Self::made_up`].
    pub fn load(path: &Path, dataset: &Dataset) -> Result<Self> {
        let template = Self::open(path)?;
        let (users, items) = (dataset.user_text_columns(), dataset.item_text_columns());
        template.made_up(&TextColumns { users: users.to_vec(), items: items.to_vec() }, 1)?;
        Ok(template)
    }

    /// Reads a template, whatever data it is for.
    ///
    /// # Errors
    /// The file is missing, not TOML, has an unknown key, or a piece is no template (with line).
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            TrainerError::file(path, format!("can't be read ({error}); is prompt.template right?"))
        })?;
        let file: File = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            TrainerError::file(path, format!("line {line}: {}", error.message()))
        })?;
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let body = file.body.trim().to_owned();
        for (name, source) in [(BODY, body), (WRAPPER, file.wrapper), (ITEM, file.item)] {
            environment
                .add_template_owned(name, source)
                .map_err(|error| template_error(path, &error))?;
        }
        Ok(Self { path: path.into(), environment, yes: file.yes, no: file.no })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The answer for a like, as it follows the wrapper.
    pub fn yes(&self) -> &str {
        &self.yes
    }

    /// The answer for a dislike.
    pub fn no(&self) -> &str {
        &self.no
    }

    /// The prompt's text for `values` (history, target, user).
    ///
    /// # Errors
    /// The template asks for something that is not there.
    pub fn render(&self, values: &Value) -> Result<String> {
        let fail = |error| template_error(&self.path, &error);
        let body = self.piece(BODY)?.render(values).map_err(fail)?;
        self.piece(WRAPPER)?.render(json!({ "body": body })).map_err(fail)
    }

    /// An item's text, as it is embedded, of its text columns' names and texts, in their order.
    ///
    /// # Errors
    /// The template asks for something that is not there.
    pub fn item(&self, columns: &[(&str, &str)]) -> Result<String> {
        let fail = |error| template_error(&self.path, &error);
        let item: Map<_, _> = columns.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let every: Vec<String> = columns.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        let every_column = format!("{}.", every.join(", "));
        let values = json!({ "item": item, "every_column": every_column });
        self.piece(ITEM)?.render(values).map_err(fail)
    }

    /// The piece that says how an item is embedded.
    ///
    /// # Errors
    /// None that [`Self::open`] has not found.
    pub fn item_source(&self) -> Result<String> {
        Ok(self.piece(ITEM)?.source().to_owned())
    }

    /// The prompt's text of a made-up sample of a dataset with these columns, shown with so many items, so
    /// that a misspelt name is an error now and not after hours.
    ///
    /// # Errors
    /// The template does not work: with piece and line, and what is not there by its name.
    pub fn made_up(&self, columns: &TextColumns, history: usize) -> Result<String> {
        self.made_up_of(columns, history, TEXT)
    }

    /// Whether prompts of made-up samples differ where their items do.
    ///
    /// # Errors
    /// Those of [`Self::made_up`].
    pub fn shows_item(&self, columns: &TextColumns) -> Result<bool> {
        let of = |target: &str| self.made_up_of(columns, 1, target);
        Ok(of(TEXT)? != of("another")?)
    }

    fn made_up_of(&self, columns: &TextColumns, history: usize, target: &str) -> Result<String> {
        let render = |name, values: &MadeUp| {
            let piece = self.piece(name)?;
            piece.render(values.values()).map_err(|error| {
                let explained = values.explain(&error, piece.source());
                explained.map_or_else(
                    || template_error(&self.path, &error),
                    |what| TrainerError::file(&self.path, format!("{}{what}", place(&error))),
                )
            })
        };
        let body = render(BODY, &MadeUp::sample(columns, history, target))?;
        let text = render(WRAPPER, &MadeUp::wrapped(body))?;
        render(ITEM, &MadeUp::item(columns))?;
        Ok(text)
    }

    /// What stands between the body's last line and the answer, with some of the body: the context in
    /// which the answers are tokenised.
    pub(crate) fn tail(&self) -> Result<String> {
        let body = self.piece(BODY)?.source().to_owned();
        // A tag in the last line can't be rendered by itself; what is after it is the tail.
        let last = body.lines().last().unwrap_or_default();
        let last = last.rsplit("}}").next().unwrap_or(last);
        let rendered = self.piece(WRAPPER)?.render(json!({ "body": last }));
        rendered.map_err(|error| template_error(&self.path, &error))
    }

    fn piece(&self, name: &str) -> Result<Template<'_, '_>> {
        self.environment.get_template(name).map_err(|error| template_error(&self.path, &error))
    }
}

fn place(error: &minijinja::Error) -> String {
    match (error.name(), error.line()) {
        (Some(name), Some(line)) => format!("{name}, line {line} of it: "),
        _ => String::new(),
    }
}

fn template_error(path: &Path, error: &minijinja::Error) -> TrainerError {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let values = if error.name() == Some(WRAPPER) { "body" } else { "history, target and user" };
    TrainerError::file(path, format!("{}{detail}; it can use {values}", place(error)))
}
