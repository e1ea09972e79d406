//! `inspect`: a look at raw ratings before a run. Nothing is written.
//!
//! What is looked at is a config (its `[data]` section), a directory whose format is detected, or one
//! table. For a table without a mapping of its columns, one is guessed from their names and shown as the
//! lines of a config, so that it can be checked and copied.

mod guess;
mod render;

use std::path::{Path, PathBuf};

use reclora_storage::inspect::{Inspection, inspect};
use reclora_storage::protocol::{LabelRule, ProtocolConfig};
use reclora_storage::raw::{self, ColumnMapping, DatasetFormat, Known, TableSample};
use reclora_storage::spill::Spill;
use reclora_trainer::config::{Config, DataConfig};
use reclora_trainer::error::TrainerError;
use serde::Serialize;

use crate::cli::InspectArgs;
use crate::commands::print;
use crate::config;
use crate::error::{LaunchError, Result};

/// What `inspect` found.
#[derive(Debug, Serialize)]
struct Report {
    /// The directory of the raw files.
    path: PathBuf,
    /// Layout of the files.
    format: DatasetFormat,
    /// Where the format comes from, in words.
    format_from: String,
    /// The files that are read, relative to the directory, with their sizes in bytes.
    files: Vec<(String, u64)>,
    /// Settings of the protocol.
    protocol: ProtocolConfig,
    /// Tables whose columns are not mapped by a config.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tables: Vec<TableReport>,
    /// The `[data]` section that the guess amounts to.
    #[serde(skip_serializing_if = "Option::is_none")]
    suggestion: Option<String>,
    /// What is in the ratings; none where it is not known which columns they are in.
    inspection: Option<Inspection>,
}

/// A table and its first rows.
#[derive(Debug, Serialize)]
struct TableReport {
    name: String,
    #[serde(flatten)]
    sample: TableSample,
}

/// `inspect`.
pub fn run(args: &InspectArgs) -> Result<()> {
    let report = if is_config(&args.path) {
        if args.format.is_some() {
            let what =
                "--format is for directories; a config has data.format (--set data.format=...)";
            return Err(LaunchError::Usage(what.into()).into());
        }
        of_config(&args.path, &args.set)?
    } else {
        of_data(args)?
    };
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&report)?))
    } else {
        print(&render::text(&report))
    }
}

fn is_config(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "toml") || (!path.exists() && !path.is_dir())
}

fn of_config(path: &Path, set: &[String]) -> Result<Report> {
    let config = config::load(path, set)?;
    config.validate(1)?;
    look(&config.data, format!("data.format of {}", path.display()))
}

/// A directory or a table.
fn of_data(args: &InspectArgs) -> Result<Report> {
    let (dir, table) = split(&args.path)?;
    let (format, from) = match (args.format, &table) {
        (Some(format), _) => (format, "--format".to_owned()),
        (None, Some(name)) if name.contains(".parquet") || args.path.is_dir() => {
            (DatasetFormat::Parquet, "detected".to_owned())
        }
        (None, Some(_)) => (DatasetFormat::Csv, "detected".to_owned()),
        (None, None) => {
            let Known { format, files, .. } = raw::detect(&dir)?;
            (format, format!("detected: {files}"))
        }
    };
    let path = std::path::absolute(&dir)?;
    let base = DataConfig { format, path, label: likes(format), ..DataConfig::default() };
    if !format.is_mapped() {
        return look(&with(base, &args.set)?, from);
    }
    let mapped = args.set.iter().any(|set| set.trim_start().starts_with("data.columns."));
    if mapped {
        let ratings = table.unwrap_or_default();
        let columns = ColumnMapping { ratings, ..ColumnMapping::default() };
        return look(&with(DataConfig { columns, ..base }, &args.set)?, from);
    }
    let names = table.map_or_else(|| tables(&dir, format), |name| Ok(vec![name]))?;
    unmapped(with(base, &args.set)?, from, &names)
}

/// A table's directory and its name in there; no name where the path is a directory of several files.
fn split(path: &Path) -> Result<(PathBuf, Option<String>)> {
    let is_parts = path.is_dir()
        && (path.extension().is_some_and(|e| e == "parquet") || path.join("_SUCCESS").exists());
    if path.is_dir() && !is_parts {
        return Ok((path.to_path_buf(), None));
    }
    let full = std::path::absolute(path)?;
    let name = full.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name).to_owned();
    let dir = full.parent().map(Path::to_path_buf).unwrap_or_default();
    Ok((dir, Some(name)))
}

/// The rule of the paper for a format; for others, the default.
fn likes(format: DatasetFormat) -> LabelRule {
    match format {
        DatasetFormat::Movielens100k
        | DatasetFormat::Movielens1m
        | DatasetFormat::Movielens10m
        | DatasetFormat::Movielens25m => LabelRule::Greater(3.0),
        DatasetFormat::Goodreads => LabelRule::AtLeast(4.0),
        DatasetFormat::Bookcrossing => LabelRule::AtLeast(5.0),
        _ => DataConfig::default().label,
    }
}

/// The data section with overrides, checked.
fn with(data: DataConfig, set: &[String]) -> Result<DataConfig> {
    let config = config::override_config(&Config { data, ..Config::default() }, set)?;
    config.validate(1)?;
    Ok(config.data)
}

fn look(data: &DataConfig, format_from: String) -> Result<Report> {
    let mut report = describe(data, format_from)?;
    let spill = Spill::never();
    let tables = raw::read_within(data.format, &data.path, &data.columns, data.duplicates, &spill)
        .map_err(TrainerError::from)?;
    report.inspection = Some(inspect(&tables, &report.protocol).map_err(TrainerError::from)?);
    Ok(report)
}

/// All but what takes reading the ratings.
fn describe(data: &DataConfig, format_from: String) -> Result<Report> {
    let files = raw::files_mapped(data.format, &data.path, &data.columns)?;
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let name =
        |path: &Path| path.strip_prefix(&data.path).unwrap_or(path).to_string_lossy().into_owned();
    Ok(Report {
        path: data.path.clone(),
        format: data.format,
        format_from,
        files: files.iter().map(|path| (name(path), size(path))).collect(),
        protocol: ProtocolConfig {
            k_core: data.k_core,
            min_history: data.min_history,
            label: data.label,
            split: data.split,
        },
        tables: Vec::new(),
        suggestion: None,
        inspection: None,
    })
}

/// Tables in a directory, by name.
fn tables(dir: &Path, format: DatasetFormat) -> Result<Vec<String>> {
    let end = format!(".{}", format.name());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let name = name.strip_suffix(".gz").unwrap_or(&name).to_owned();
        if name.ends_with(&end) && !name.starts_with(['.', '_']) && !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Shows tables, guesses the mapping, and looks at the ratings where that succeeds.
fn unmapped(data: DataConfig, format_from: String, names: &[String]) -> Result<Report> {
    let mut tables = Vec::new();
    let mut best: Option<ColumnMapping> = None;
    for name in names {
        let (sample, columns) = guess::table(data.format, &data.path, name)?;
        if let Some(columns) = columns.filter(|_| best.is_none()) {
            best = Some(columns);
        }
        tables.push(TableReport { name: name.clone(), sample });
    }
    let Some(columns) = best else {
        let columns = ColumnMapping {
            ratings: names.first().cloned().unwrap_or_default(),
            ..ColumnMapping::default()
        };
        let report = describe(&DataConfig { columns, ..data }, format_from)?;
        return Ok(Report { tables, ..report });
    };
    let data = DataConfig { columns, ..data };
    let suggestion = Some(guess::section(&data));
    Ok(Report { tables, suggestion, ..look(&data, format_from)? })
}
