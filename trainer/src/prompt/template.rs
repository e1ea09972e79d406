//! Prompt templates: TOML files with a Jinja body.

use std::path::{Path, PathBuf};

use minijinja::{Environment, UndefinedBehavior};
use reclora_storage::dataset::Dataset;
use serde::Deserialize;
use serde_json::{Map, Value, json};

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
}

fn plain() -> String {
    "{{ body }}".into()
}

/// A prompt template that has been tried on the dataset's columns.
#[derive(Debug)]
pub struct PromptTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    yes: String,
    no: String,
}

impl PromptTemplate {
    /// Loads a template and renders it once with made-up values for the text columns of `dataset`,
    /// so that a misspelt name is an error now and not after hours.
    ///
    /// # Errors
    /// The file is missing, not TOML, has an unknown key, or its template does not work (with line).
    pub fn load(path: &Path, dataset: &Dataset) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            TrainerError::file(path, format!("can't be read ({error}); is prompt.template right?"))
        })?;
        let file: File = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            TrainerError::file(path, format!("line {line}: {}", error.message()))
        })?;
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, source) in [("body", file.body.trim().to_owned()), ("wrapper", file.wrapper)] {
            environment
                .add_template_owned(name, source)
                .map_err(|error| template_error(path, &error))?;
        }
        let template = Self { path: path.into(), environment, yes: file.yes, no: file.no };
        template.render(&example(dataset))?;
        Ok(template)
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
        let body = self.environment.get_template("body").map_err(fail)?;
        let body = body.render(values).map_err(fail)?;
        let wrapper = self.environment.get_template("wrapper").map_err(fail)?;
        wrapper.render(json!({ "body": body })).map_err(fail)
    }

    /// What stands between the body's last line and the answer, with some of the body: the context in
    /// which the answers are tokenised.
    pub(super) fn tail(&self) -> Result<String> {
        let fail = |error| template_error(&self.path, &error);
        let body = self.environment.get_template("body").map_err(fail)?.source().to_owned();
        // A tag in the last line can't be rendered by itself; what is after it is the tail.
        let last = body.lines().last().unwrap_or_default();
        let last = last.rsplit("}}").next().unwrap_or(last);
        let wrapper = self.environment.get_template("wrapper").map_err(fail)?;
        wrapper.render(json!({ "body": last })).map_err(fail)
    }
}

/// Values of the shape the dataset's samples have.
fn example(dataset: &Dataset) -> Value {
    let columns = |names: &[String]| {
        names.iter().map(|name| (name.clone(), json!("text"))).collect::<Map<_, _>>()
    };
    let item = columns(dataset.item_text_columns());
    let mut shown = item.clone();
    shown.insert("index".into(), json!(0));
    shown.insert("stars".into(), json!(4));
    json!({ "history": [shown], "target": item, "user": columns(dataset.user_text_columns()) })
}

fn template_error(path: &Path, error: &minijinja::Error) -> TrainerError {
    let place = match (error.name(), error.line()) {
        (Some(name), Some(line)) => format!("{name}, line {line} of it: "),
        _ => String::new(),
    };
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    TrainerError::file(path, format!("{place}{detail}; it can use history, target and user"))
}
