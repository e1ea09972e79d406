//! `inspect`: a look at raw ratings before a run. Nothing is written.
//!
//! What is looked at is a config (its `[data]` section), a directory whose format is detected, or one
//! table. For a table without a mapping of its columns, one is guessed from their names and shown as the
//! lines of a config, so that it can be checked and copied.

mod guess;
mod render;

use std::path::{Path, PathBuf};

use reclora_storage::StorageError;
use reclora_storage::inspect::{self, Inspection};
use reclora_storage::protocol::{LabelRule, ProtocolConfig};
use reclora_storage::raw::{
    self, ColumnMapping, DatasetFormat, Known, RawTables, TableSample, Unusable,
};
use reclora_storage::spill::Spill;
use reclora_trainer::config::{Config, DataConfig};
use reclora_trainer::error::TrainerError;
use serde::Serialize;

use crate::cli::InspectArgs;
use crate::config;
use crate::error::{LaunchError, Result};
use crate::output::show;

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
    /// Tables of CSV or Parquet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tables: Vec<TableReport>,
    /// The `[data]` section that the guess amounts to.
    #[serde(skip_serializing_if = "Option::is_none")]
    suggestion: Option<String>,
    /// What one should know of the guess or the ratings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    /// Why the ratings can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// What is in the ratings; none where they can't be read, or where it is not known in which columns they are.
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
pub fn inspect(args: &InspectArgs) -> Result<()> {
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
    show(&report, args.json, render::text)?;
    match report.problem {
        None if report.inspection.is_none() => {
            Err(color_eyre::eyre::eyre!("the columns of the ratings are not known"))
        }
        None => Ok(()),
        Some(_) => Err(color_eyre::eyre::eyre!("the ratings can't be read as they are")),
    }
}

fn is_config(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "toml") && !path.is_dir()
}

fn of_config(path: &Path, set: &[String]) -> Result<Report> {
    let config = config::load(path, set)?;
    config.validate(1)?;
    look(&config.data, format!("data.format of {}", path.display()))
}

/// The tables that a mapping names, as far as they can be shown.
fn mapped_tables(data: &DataConfig) -> Vec<TableReport> {
    let columns = &data.columns;
    let name = |name: &String, default: &str| {
        if name.is_empty() { default.to_owned() } else { name.clone() }
    };
    let ratings = name(&columns.ratings, &format!("ratings.{}", data.format.name()));
    let mut tables = Vec::new();
    for name in [&ratings, &columns.items, &columns.users].into_iter().filter(|n| !n.is_empty()) {
        let plain = data.path.join(name);
        let path = if plain.exists() { plain } else { data.path.join(format!("{name}.gz")) };
        // Why one can't be shown, the reading says.
        if let Ok(sample) = raw::sample(data.format, &path, columns) {
            tables.push(TableReport { name: name.clone(), sample });
        }
    }
    tables
}

/// A directory or a table.
fn of_data(args: &InspectArgs) -> Result<Report> {
    if !args.path.exists() {
        let what = format!(
            "{} is not there; name a config (NAME.toml), a directory of ratings or a table",
            args.path.display()
        );
        return Err(LaunchError::Usage(what).into());
    }
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
    let names = table.map_or_else(|| tables(&dir, format), |name| Ok(vec![name]))?;
    unmapped(base, &args.set, from, &names)
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

/// Reads the ratings. What is wrong with them is no error of `inspect`, but said in its report.
fn look(data: &DataConfig, format_from: String) -> Result<Report> {
    let mut report = describe(data, format_from)?;
    if data.format.is_mapped() {
        report.tables = mapped_tables(data);
    }
    match read(data) {
        Ok(tables) => look_into(&mut report, &tables)?,
        // Without a table to show, it is all there is to say.
        Err(error) if report.tables.is_empty() => return Err(TrainerError::from(error).into()),
        Err(error) => report.problem = Some(error.to_string()),
    }
    Ok(report)
}

fn read(data: &DataConfig) -> Result<RawTables, StorageError> {
    raw::read_within(data.format, &data.path, &data.columns, data.duplicates, &Spill::never())
}

/// What is in the ratings.
fn look_into(report: &mut Report, tables: &RawTables) -> Result<()> {
    let found = inspect::inspect(tables, &report.protocol).map_err(TrainerError::from)?;
    let likes = found.levels.iter().filter(|level| level.like).count();
    if likes == 0 || likes == found.levels.len() {
        let levels: Vec<f32> = found.levels.iter().map(|level| level.stars).collect();
        let all = if likes == 0 { "no rating is" } else { "every rating is" };
        report.notes.push(match guess::rule(&levels) {
            Some(rule) => format!(
                "{all} a like by data.label = {}; one that cuts them in two is label = {}",
                guess::inline(report.protocol.label),
                guess::inline(rule)
            ),
            None => {
                "all ratings are the same: no rule can tell likes from others; add what was shown \
                     and not taken"
                    .into()
            }
        });
    }
    report.inspection = Some(found);
    Ok(())
}

/// All but what takes reading the ratings.
fn describe(data: &DataConfig, format_from: String) -> Result<Report> {
    let files = raw::files(data.format, &data.path, &data.columns)?;
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
        notes: Vec::new(),
        problem: None,
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

/// Shows tables, guesses what `set` leaves open of the mapping, and looks at the ratings where that succeeds.
fn unmapped(
    base: DataConfig,
    set: &[String],
    format_from: String,
    names: &[String],
) -> Result<Report> {
    let own_label = set.iter().any(|set| set.trim_start().starts_with("data.label"));
    let data = with(base.clone(), set)?;
    let (mut looks, mut notes, mut failed) = (Vec::new(), Vec::new(), None);
    for name in names {
        match guess::look(data.format, &data.path, name, data.columns.header) {
            Ok(look) => looks.push(look),
            Err(error) => {
                notes.push(format!("{name} can't be read: {error}"));
                failed.get_or_insert(error);
            }
        }
    }
    if let (true, Some(error)) = (looks.is_empty(), failed) {
        return Err(error);
    }
    let Some(columns) = guess::mapping(&looks, &data.columns) else {
        let ratings = match data.columns.ratings.as_str() {
            "" => names.first().cloned().unwrap_or_default(),
            given => given.to_owned(),
        };
        let columns = ColumnMapping { ratings, ..data.columns };
        let report = describe(&DataConfig { columns, ..data }, format_from)?;
        let problem = looks.iter().find_map(|look| look.table.sample.problem.clone());
        let tables = looks.into_iter().map(|look| look.table).collect();
        return Ok(Report { tables, notes, problem, ..report });
    };
    notes.extend(guess::note(&looks, &columns));
    let rule = guess::rule(&guess::levels(&looks, &columns)).filter(|_| !own_label);
    let data = DataConfig { label: rule.unwrap_or(data.label), columns, ..base };
    let mut data = with(data, set)?;
    let (mut report, read) = read_guessed(&mut data, format_from)?;
    report.tables = looks.into_iter().map(|look| look.table).collect();
    report.notes = notes;
    match read {
        Ok(tables) => {
            if !own_label {
                let rule = guess::rule(&tables.rating_levels);
                data.label = rule.unwrap_or(data.label);
                report.protocol.label = data.label;
            }
            look_into(&mut report, &tables)?;
        }
        Err(error) => report.problem = Some(error.to_string()),
    }
    if data.columns.unmatched == Unusable::Drop {
        report.notes.push("ratings of users or items that their table lacks are left out".into());
    }
    report.suggestion = Some(guess::section(&data)?);
    Ok(report)
}

/// Reads the ratings by a guess; those whose user or item is not in its table are left out where there are any.
fn read_guessed(
    data: &mut DataConfig,
    format_from: String,
) -> Result<(Report, Result<RawTables, StorageError>)> {
    let mut tables = read(data);
    if tables.is_err() && !(data.columns.items.is_empty() && data.columns.users.is_empty()) {
        data.columns.unmatched = Unusable::Drop;
        match read(data) {
            Ok(dropped) => tables = Ok(dropped),
            Err(_) => data.columns.unmatched = Unusable::Refuse,
        }
    }
    Ok((describe(data, format_from)?, tables))
}
