//! From a TOML file and `--set` overrides to a checked [`Config`].
//!
//! Errors name file, line and column, and suggest what was probably meant. Relative paths in the
//! file resolve against the file's directory (so a config works from anywhere); paths given with
//! `--set` resolve against the working directory, where the shell completed them.

mod explain;
mod overrides;
mod render;
mod schema;
mod source;

use std::path::{Path, PathBuf};

use reclora_trainer::config::Config;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{LaunchError, Result};
use explain::explain;
use schema::{PATH_KEYS, SCHEMA, join};
use source::Source;

pub use render::{reference, render};

/// Largest config file that is read; a real one has a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Reads a config file, applies overrides, resolves paths.
pub fn load(path: &Path, overrides: &[String]) -> Result<Config> {
    let source = read(path)?;
    let mut table = parse(&source)?;
    let base = std::path::absolute(path)
        .ok()
        .and_then(|full| full.parent().map(Path::to_path_buf))
        .unwrap_or_default();
    resolve_paths(&mut table, &base);
    for text in overrides {
        overrides::apply(&mut table, text)?;
    }
    let config: Config = table.try_into().map_err(|error: toml::de::Error| {
        LaunchError::Usage(format!("{}: {}", source.name, error.message()))
    })?;
    // Defaults are relative to the config file as well.
    Ok(with_absolute_paths(config, &base))
}

/// Applies overrides to a config that is in no file.
pub fn override_config(config: &Config, overrides: &[String]) -> Result<Config> {
    let mut table = schema::to_table(config);
    for text in overrides {
        overrides::apply(&mut table, text)?;
    }
    Ok(table.try_into().map_err(|error: toml::de::Error| LaunchError::Usage(error.to_string()))?)
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

fn read(path: &Path) -> Result<Source> {
    let name = path.display().to_string();
    let usage = |what: String| LaunchError::Usage(format!("{name}: {what}"));
    let meta = std::fs::metadata(path).map_err(|error| {
        let mut what = format!("can't read the config: {error}");
        if error.kind() == std::io::ErrorKind::NotFound {
            what = "no such config file\n  help: `reclora-launch run configs/quickstart.toml` \
                    runs the shipped experiment"
                .into();
        }
        usage(what)
    })?;
    if meta.is_dir() {
        let mut what = "is a directory, not a config file".to_owned();
        if path.join("config.toml").is_file() {
            what.push_str(&format!(
                "\n  help: to continue that run, give {}",
                path.join("config.toml").display()
            ));
        }
        return Err(usage(what).into());
    }
    if meta.len() > MAX_CONFIG_BYTES {
        return Err(usage(format!("{} bytes is too large for a config", meta.len())).into());
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| usage(format!("can't read the config as UTF-8 text: {error}")))?;
    Ok(Source { name, text })
}

/// Parses and checks the text; the table is known to deserialise into a `Config`.
fn parse(source: &Source) -> Result<toml::Table> {
    let tree = DeTable::parse(&source.text).map_err(|error| {
        LaunchError::Usage(source.block(error.span(), &syntax(error.message()), None))
    })?;
    let unknown = unknown_keys(source, tree.get_ref());
    if !unknown.is_empty() {
        return Err(LaunchError::Usage(unknown.join("\n")).into());
    }
    toml::from_str::<Config>(&source.text).map_err(|error| {
        let path = error.span().and_then(|span| path_at(tree.get_ref(), span.start));
        let explained = explain(path.as_deref(), error.message());
        let block = source.block(error.span(), &explained.message, explained.help.as_deref());
        LaunchError::Usage(block)
    })?;
    let table = source.text.parse::<toml::Table>();
    Ok(table.map_err(|error| LaunchError::Usage(format!("{}: {error}", source.name)))?)
}

fn syntax(message: &str) -> String {
    format!("not valid TOML: {}", message.lines().collect::<Vec<_>>().join(", "))
}

/// Place, message and advice.
type Unknown = (std::ops::Range<usize>, String, String);

/// One block per key that does not exist.
fn unknown_keys(source: &Source, root: &DeTable<'_>) -> Vec<String> {
    let mut found: Vec<Unknown> = Vec::new();
    for (key, value) in root {
        let name = key.get_ref().as_ref();
        if SCHEMA.key(name).is_some() {
            continue;
        }
        if !SCHEMA.has_section(name) || name.is_empty() {
            let (message, help) = match value.get_ref() {
                DeValue::Table(_) => {
                    (format!("unknown section [{name}]"), SCHEMA.section_advice(name))
                }
                _ => (format!("unknown key `{name}`"), SCHEMA.advice("", name)),
            };
            found.push((key.span(), message, help));
            continue;
        }
        if let DeValue::Table(inner) = value.get_ref() {
            unknown_in(name, inner, &mut found);
        }
    }
    found.sort_by_key(|(span, ..)| span.start);
    found.into_iter().map(|(span, m, help)| source.block(Some(span), &m, Some(&help))).collect()
}

/// The keys of a section that do not exist, in the sections inside it as well.
fn unknown_in(section: &str, table: &DeTable<'_>, found: &mut Vec<Unknown>) {
    for (field, value) in table {
        let path = join(section, field.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) if SCHEMA.has_section(&path) => unknown_in(&path, inner, found),
            _ if SCHEMA.key(&path).is_some() || SCHEMA.has_section(&path) => {}
            _ => {
                let message = format!("unknown key `{}` in [{section}]", field.get_ref());
                found.push((field.span(), message, SCHEMA.advice(section, field.get_ref())));
            }
        }
    }
}

/// The dotted path of the value that holds a byte offset.
fn path_at(root: &DeTable<'_>, offset: usize) -> Option<String> {
    path_in("", root, offset)
}

fn path_in(section: &str, table: &DeTable<'_>, offset: usize) -> Option<String> {
    let holds = |value: &Spanned<DeValue<'_>>| value.span().contains(&offset);
    for (key, value) in table {
        let path = join(section, key.get_ref());
        if let DeValue::Table(inner) = value.get_ref()
            && SCHEMA.has_section(&path)
            && let Some(found) = path_in(&path, inner, offset)
        {
            return Some(found);
        }
        if holds(value) {
            return Some(path);
        }
    }
    None
}

fn resolve_paths(table: &mut toml::Table, base: &Path) {
    for path in PATH_KEYS {
        let Some((section, name)) = path.split_once('.') else { continue };
        let value = table.get_mut(section).and_then(|inner| inner.get_mut(name));
        if let Some(toml::Value::String(text)) = value
            && !text.is_empty()
        {
            *text = base.join(&*text).display().to_string();
        }
    }
}

fn with_absolute_paths(mut config: Config, base: &Path) -> Config {
    for path in [&mut config.data.path, &mut config.backbone.path, &mut config.prompt.template] {
        *path = normal(&base.join(&*path));
    }
    // Empty is no path: there is no LoRA to scale.
    if let Some(path) = config.adapter.frozen_lora() {
        config.adapter.scale_of = normal(&base.join(path));
    }
    config
}

/// An absolute path without `.` components (symlinks and `..` are left to the kernel).
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != std::path::Component::CurDir).collect()
}

/// Every setting by its dotted name, as TOML writes its value.
pub fn settings(config: &Config) -> Vec<(String, String)> {
    let table = schema::to_table(config);
    let value = |key: &schema::Key| {
        Some((key.path(), schema::section(&table, &key.section)?.get(&key.name)?.to_string()))
    };
    SCHEMA.keys.iter().filter_map(value).collect()
}
