//! From a TOML file and `--set` overrides to a checked [`Config`].
//!
//! Everything that is wrong is said at once, by file, line and column, with what was probably meant. Relative
//! paths in the file resolve against the file's directory (so a config works from anywhere); paths given with
//! `--set` resolve against the working directory, where the shell completed them.

mod overrides;
mod render;
mod schema;
mod source;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use reclora_trainer::config::{Config, Problem, check};
use toml::{Table, Value};

use crate::error::{LaunchError, Result};
use schema::{SETTINGS, to_table};
use source::Source;

pub use overrides::Override;
pub use reclora_trainer::config::editor_schema;
pub use render::{reference, render};

/// Reads a config file, applies overrides, resolves paths.
pub fn load(path: &Path, set: &[String]) -> Result<Config> {
    load_for(path, set.iter().map(Override::set), |_| None)
}

/// The same, and refuses settings that don't go together with the number of ranks that `ranks` gives.
pub fn load_for(
    path: &Path,
    overrides: impl IntoIterator<Item = Override>,
    ranks: impl FnOnce(&Config) -> Option<usize>,
) -> Result<Config> {
    let source = Source::read(path)?;
    let mut draft = Draft::new(Some(&source), source.table()?);
    draft.apply(overrides);
    let full = std::path::absolute(path).unwrap_or_default();
    draft.resolve_paths(full.parent().unwrap_or(Path::new("")));
    draft.finish(ranks)
}

/// Applies overrides to a config that is in no file, and checks it for one rank.
pub fn override_config(config: &Config, set: &[String]) -> Result<Config> {
    let mut draft = Draft::new(None, to_table(config));
    draft.apply(set.iter().map(Override::set));
    draft.finish(|_| Some(1))
}

/// Reads the config a run was started with.
pub fn load_run(run_dir: &Path) -> Result<Config> {
    let path = run_dir.join("config.toml");
    if !path.is_file() {
        return Err(LaunchError::Usage(format!(
            "{}: not a run directory (it has no config.toml)\n  help: make one with \
             `reclora-launch run CONFIG --run-dir {}`",
            run_dir.display(),
            run_dir.display()
        ))
        .into());
    }
    load(&path, &[])
}

/// Every setting by its dotted name, as TOML writes its value.
pub fn settings(config: &Config) -> Vec<(String, String)> {
    let table = to_table(config);
    let all = SETTINGS.all.iter();
    all.filter_map(|setting| Some((setting.path(), setting.get(&table)?.to_string()))).collect()
}

/// A config on its way, with what is wrong with it.
struct Draft<'a> {
    source: Option<&'a Source>,
    /// Its values that can be read.
    table: Table,
    /// What is wrong with others.
    problems: Vec<Problem>,
    /// Settings that the command line changed, and how that was said.
    overridden: BTreeMap<String, String>,
    /// Changes that could not be made.
    refused: Vec<String>,
}

impl<'a> Draft<'a> {
    /// Values that can't be are taken out, so that the others can be looked at too.
    fn new(source: Option<&'a Source>, mut table: Table) -> Self {
        let mut problems = check("", &table);
        for Problem { field, help, .. } in &mut problems {
            let value = remove(&mut table, field);
            let is_section = value.as_ref().is_some_and(Value::is_table) && !field.contains('.');
            *help = match (SETTINGS.get(field), value) {
                (Some(_), Some(value)) => SETTINGS.choice_advice(field, &value),
                (Some(_), None) => None,
                _ if SETTINGS.has_section(field) => None,
                _ if is_section => Some(SETTINGS.section_advice(field)),
                _ => Some(SETTINGS.advice(field)),
            };
        }
        Self { source, table, problems, overridden: BTreeMap::new(), refused: Vec::new() }
    }

    fn apply(&mut self, overrides: impl IntoIterator<Item = Override>) {
        for change in overrides {
            match change.apply(&mut self.table) {
                Ok(path) => {
                    self.problems.retain(|problem| problem.field != path);
                    self.overridden.insert(path, change.said);
                }
                Err(what) => self.refused.push(what),
            }
        }
    }

    /// Defaults are relative to the config file as well. An empty path is none, where that is the default.
    fn resolve_paths(&mut self, base: &Path) {
        for setting in SETTINGS.all.iter().filter(|setting| setting.is_path()) {
            let default = setting.default();
            let value = setting.get(&self.table).unwrap_or(&default);
            if let Some(path) = value.as_str().filter(|path| !path.is_empty() || value != &default)
            {
                let full = Value::String(normal(&base.join(path)).display().to_string());
                setting.put(&mut self.table, full);
            }
        }
    }

    /// The config, if nothing is wrong.
    fn finish(mut self, ranks: impl FnOnce(&Config) -> Option<usize>) -> Result<Config> {
        let config = std::mem::take(&mut self.table).try_into::<Config>();
        if let Ok(config) = &config
            && let Some(ranks) = ranks(config)
        {
            config.add_conflicts(ranks, &mut self.problems);
        }
        let mut blocks: Vec<(usize, String)> =
            self.problems.iter().map(|p| self.block(p)).collect();
        blocks.sort_by_key(|(at, _)| *at);
        let blocks: Vec<_> = blocks.into_iter().map(|(_, text)| text).chain(self.refused).collect();
        match config {
            Ok(config) if blocks.is_empty() => Ok(config),
            Err(error) if blocks.is_empty() => {
                let name = self.source.map_or("config", |source| &source.name);
                Err(LaunchError::Usage(format!("{name}: {error}")).into())
            }
            _ => Err(LaunchError::Usage(blocks.join("\n")).into()),
        }
    }

    /// Where in the file a problem is, after all places for one that is not there, and how it is told.
    fn block(&self, problem: &Problem) -> (usize, String) {
        let Problem { field, what, help } = problem;
        let is_known = SETTINGS.get(field).is_some() || SETTINGS.has_section(field);
        let message = if is_known { format!("`{field}`: {what}") } else { what.clone() };
        if let Some(said) = self.overridden.get(field) {
            return (usize::MAX, format!("{said}: {message}"));
        }
        match self.source.and_then(|source| Some((source, source.place(field, is_known)?))) {
            Some((source, place)) => {
                (place.start, source.block(Some(place), &message, help.as_deref()))
            }
            None => (usize::MAX, format!("config: {field}: {what}")),
        }
    }
}

fn remove(table: &mut Table, path: &str) -> Option<Value> {
    table.remove(path).or_else(|| {
        table.iter_mut().find_map(|(key, value)| {
            remove(value.as_table_mut()?, path.strip_prefix(key.as_str())?.strip_prefix('.')?)
        })
    })
}

/// An absolute path without `.` components (symlinks and `..` are left to the kernel).
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}
