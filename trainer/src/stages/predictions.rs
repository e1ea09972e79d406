//! `predictions/*.parquet`: one row per sample of a split, one column per model.

use std::fmt::Display;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::record::{Row, RowAccessor};
use parquet::schema::parser::parse_message_type;
use reclora_storage::atomic::write_bytes_atomic;
use reclora_storage::dataset::{Dataset, Sample};

use super::{RunContext, Stage, artifacts, finished};
use crate::error::{Result, TrainerError};

/// Columns before those of the models.
const FIXED: usize = 5;

/// P(like) by a model.
#[derive(Clone, Copy, Debug)]
pub enum Likes<'a> {
    /// Of every sample.
    All(&'a [f32]),
    /// Of those that it has scored.
    Scored(&'a [Option<f32>]),
}

/// Writes raw ids, label, and P(like) of each model, atomically.
pub fn write(
    path: &Path,
    dataset: &Dataset,
    samples: &[Sample],
    models: &[(&'static str, Likes<'_>)],
) -> Result<()> {
    let bytes = encode(dataset, samples, models)
        .map_err(|error| TrainerError::file(path, format!("can't be written: {error}")))?;
    Ok(write_bytes_atomic(path, &bytes)?)
}

fn encode(
    dataset: &Dataset,
    samples: &[Sample],
    models: &[(&'static str, Likes<'_>)],
) -> Result<Vec<u8>, ParquetError> {
    let columns = models.iter().map(|(name, likes)| match likes {
        Likes::All(_) => format!("  required float {name};\n"),
        Likes::Scored(_) => format!("  optional float {name};\n"),
    });
    let columns: String = columns.collect();
    let schema = parse_message_type(&format!(
        "message predictions {{
           required int64 key;
           required binary user (UTF8);
           required binary item (UTF8);
           required int64 timestamp;
           required boolean label;
         {columns}}}"
    ))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, Arc::new(schema), Arc::new(properties))?;
    let mut rows = writer.next_row_group()?;
    let text = |key: &str| ByteArray::from(key.as_bytes().to_vec());
    let of = |value: &dyn Fn(&Sample) -> i64| samples.iter().map(value).collect::<Vec<_>>();
    let names = |name: &dyn Fn(&Sample) -> ByteArray| samples.iter().map(name).collect::<Vec<_>>();
    column::<Int64Type>(&mut rows, &of(&|sample| sample.index as i64))?;
    column::<ByteArrayType>(&mut rows, &names(&|sample| text(dataset.user_key(sample.user))))?;
    column::<ByteArrayType>(&mut rows, &names(&|sample| text(dataset.item_key(sample.item))))?;
    column::<Int64Type>(&mut rows, &of(&|sample| sample.timestamp))?;
    let labels: Vec<bool> = samples.iter().map(|sample| sample.label).collect();
    column::<BoolType>(&mut rows, &labels)?;
    for (_, likes) in models {
        match likes {
            Likes::All(likes) => column::<FloatType>(&mut rows, likes)?,
            Likes::Scored(likes) => {
                let values: Vec<f32> = likes.iter().flatten().copied().collect();
                let levels: Vec<i16> = likes.iter().map(|like| like.is_some().into()).collect();
                leveled_column::<FloatType>(&mut rows, &values, Some(&levels))?;
            }
        }
    }
    rows.close()?;
    writer.close()?;
    Ok(bytes)
}

/// A test sample as a model saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// Raw id of the user.
    pub user: String,
    /// Raw id of the item.
    pub item: String,
    /// When it was rated.
    pub timestamp: i64,
    /// Whether the user liked the item.
    pub label: bool,
    /// P(like) by the model.
    pub probability: f32,
}

/// Reads what a run predicted with one of its models.
///
/// # Errors
/// The run has not evaluated, the file is not what was written, or it has no such model: they are named.
pub fn predictions(ctx: &RunContext, model: &str) -> Result<Vec<Predicted>> {
    // As it was written, so as whole as it was then.
    finished(ctx, Stage::Evaluate).verify()?;
    let path = ctx.path(Stage::Evaluate).join(artifacts::TEST);
    let failed = |error: &dyn Display| TrainerError::file(&path, format!("can't be read: {error}"));
    let file = File::open(&path).map_err(|error| failed(&error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| failed(&error))?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let names: Vec<&str> = schema.columns().iter().map(|column| column.name()).collect();
    let Some(column) = names.iter().skip(FIXED).position(|name| *name == model) else {
        let models = names.get(FIXED..).unwrap_or_default().join(", ");
        let text = format!("{}: no model {model}; there are {models}", path.display());
        return Err(TrainerError::NotFound(text));
    };
    let rows = reader.get_row_iter(None).map_err(|error| failed(&error))?;
    let read = |row: Result<Row, ParquetError>| {
        let row = row?;
        Ok::<_, ParquetError>(Predicted {
            user: row.get_string(1)?.clone(),
            item: row.get_string(2)?.clone(),
            timestamp: row.get_long(3)?,
            label: row.get_bool(4)?,
            probability: row.get_float(FIXED + column)?,
        })
    };
    rows.map(read).collect::<Result<_, _>>().map_err(|error| failed(&error))
}

fn column<T: DataType>(
    rows: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: &[T::T],
) -> Result<(), ParquetError> {
    leveled_column::<T>(rows, values, None)
}

/// A column; of an optional one `levels` say which rows have a value: 1, or 0.
fn leveled_column<T: DataType>(
    rows: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let Some(mut column) = rows.next_column()? else {
        return Err(ParquetError::General("more columns than the schema has".into()));
    };
    column.typed::<T>().write_batch(values, levels, None)?;
    column.close()
}
