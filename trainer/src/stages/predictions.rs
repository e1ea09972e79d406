//! `predictions/test.parquet`: one row per test sample, one column per model.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use reclora_storage::atomic::write_bytes_atomic;
use reclora_storage::dataset::{Dataset, Sample};

use crate::error::{Result, TrainerError};

/// File of the predictions.
pub const FILE: &str = "test.parquet";

/// Writes raw ids, label, and P(like) of each model, atomically.
pub fn write(
    path: &Path,
    dataset: &Dataset,
    samples: &[Sample],
    models: &[(&'static str, Vec<f32>)],
) -> Result<()> {
    let bytes = encode(dataset, samples, models)
        .map_err(|error| TrainerError::file(path, format!("can't be written: {error}")))?;
    Ok(write_bytes_atomic(path, &bytes)?)
}

fn encode(
    dataset: &Dataset,
    samples: &[Sample],
    models: &[(&'static str, Vec<f32>)],
) -> Result<Vec<u8>, ParquetError> {
    let columns: String =
        models.iter().map(|(name, _)| format!("  required float {name};\n")).collect();
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
    for (_, probabilities) in models {
        column::<FloatType>(&mut rows, probabilities)?;
    }
    rows.close()?;
    writer.close()?;
    Ok(bytes)
}

fn column<T: DataType>(
    rows: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: &[T::T],
) -> Result<(), ParquetError> {
    let Some(mut column) = rows.next_column()? else {
        return Err(ParquetError::General("more columns than the schema has".into()));
    };
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}
