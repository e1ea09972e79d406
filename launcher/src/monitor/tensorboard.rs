//! Curves as TensorBoard reads them: `RUN/tensorboard/TASK/events.out.tfevents.*`.
//!
//! A file holds TFRecords: the length (u64) and the bytes of a message, each followed by its masked CRC-32C, all
//! little-endian. The message is an `Event` of TensorFlow's event.proto, of which only what is needed is here. Tasks
//! have directories of their own: a file that begins at a step makes TensorBoard forget what its directory said of
//! later ones, which is right after a restart, and only of the same task.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use color_eyre::eyre::WrapErr;
use prost::encoding::{WireType, double, encode_key, float, int32, int64, string};
use reclora_storage::atomic::create_dir_all;
use reclora_trainer::telemetry::History;
use reclora_trainer::telemetry::measure::Curve;

use super::sample::now;
use crate::error::Result;

/// Directory in the run directory.
pub const DIR: &str = "tensorboard";

/// Writes scalars; a file for each task.
#[derive(Debug)]
pub struct Scalars {
    directory: PathBuf,
    /// The file of each task, and its last step.
    files: HashMap<String, (File, u64)>,
}

impl Scalars {
    /// Below `directory`, which is made when there is something to write.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), files: HashMap::new() }
    }

    /// Appends what is new.
    pub fn write(&mut self, curves: &[Curve]) -> Result<()> {
        for Curve { task, history } in curves {
            let mut records = Vec::new();
            let mut scalar = |step: u64, tag: &str, value: f64| {
                record(&mut records, &scalar_event(step, tag, value));
            };
            for step in &history.steps {
                scalar(step.step, "loss", step.loss.into());
                step.deciding_loss
                    .into_iter()
                    .for_each(|loss| scalar(step.step, "deciding_loss", loss.into()));
                scalar(step.step, "learning_rate", step.learning_rate.into());
                scalar(step.step, "gradient_norm", step.gradient_norm.into());
            }
            for epoch in &history.epochs {
                scalar(epoch.epoch, "epoch/train_loss", epoch.train_loss);
                let others = [
                    ("deciding_loss", epoch.deciding_loss),
                    ("valid_auc", epoch.valid_auc),
                    ("valid_log_loss", epoch.valid_log_loss),
                ];
                for (name, value) in others {
                    value.into_iter().for_each(|value| {
                        scalar(epoch.epoch, &format!("epoch/{name}"), value);
                    });
                }
            }
            let path = self.directory.join(slug(task));
            let written = self.append(task, &path, history, &records);
            written.wrap_err_with(|| format!("can't write {}", path.display()))?;
        }
        Ok(())
    }

    /// Writes the records of what a task has gone through.
    fn append(
        &mut self,
        task: &str,
        directory: &Path,
        history: &History,
        records: &[u8],
    ) -> Result<()> {
        let first = history.steps.first().map(|step| step.step);
        // Another file after an error, which may have left half a record, and for steps that are done again.
        let known = self.files.remove(task);
        let known = known.filter(|(_, last)| first.is_none_or(|first| first > *last));
        let (mut file, last) = match known {
            Some(known) => known,
            None => (open(directory, first)?, 0),
        };
        file.write_all(records)?;
        let last = history.steps.last().map_or(last, |step| step.step);
        self.files.insert(task.to_owned(), (file, last));
        Ok(())
    }
}

/// A new file, which goes on at a step.
fn open(directory: &Path, first: Option<u64>) -> Result<File> {
    /// TensorBoard reads the files of a directory in the order of their names.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    create_dir_all(directory)?;
    let (time, pid) = (now() as u64, std::process::id());
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("events.out.tfevents.{time:010}.reclora.{pid}.{number:04}");
    let path = directory.join(name);
    let mut file = OpenOptions::new().create_new(true).append(true).open(path)?;
    let mut records = Vec::new();
    let mut version = event(0);
    string::encode(3, &"brain.Event:2".to_owned(), &mut version);
    record(&mut records, &version);
    if let Some(first) = first {
        let mut start = event(first);
        let mut session = Vec::new();
        // SessionLog.status = START: what was said of later steps is no longer so.
        int32::encode(1, &1, &mut session);
        message(7, &session, &mut start);
        record(&mut records, &start);
    }
    file.write_all(&records)?;
    Ok(file)
}

/// A directory's name of a task's.
fn slug(task: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' };
    task.trim_start_matches('.').chars().map(letter).collect()
}

/// The beginning of an `Event`: `wall_time` and `step`.
fn event(step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    double::encode(1, &now(), &mut event);
    int64::encode(2, &(step as i64), &mut event);
    event
}

fn scalar_event(step: u64, tag: &str, value: f64) -> Vec<u8> {
    // Summary.Value: tag and simple_value.
    let mut scalar = Vec::new();
    string::encode(1, &tag.to_owned(), &mut scalar);
    float::encode(2, &(value as f32), &mut scalar);
    let mut summary = Vec::new();
    message(1, &scalar, &mut summary);
    let mut event = event(step);
    message(5, &summary, &mut event);
    event
}

/// A message within a message.
fn message(field: u32, content: &[u8], into: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, into);
    prost::encoding::encode_varint(content.len() as u64, into);
    into.extend_from_slice(content);
}

/// Appends a TFRecord.
fn record(records: &mut Vec<u8>, content: &[u8]) {
    let length = (content.len() as u64).to_le_bytes();
    for part in [&length[..], content] {
        records.extend_from_slice(part);
        // The mask that TFRecord puts on sums, lest a sum of data with sums in it be easily right.
        let sum = crc32c::crc32c(part).rotate_right(15).wrapping_add(0xa282_ead8);
        records.extend_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reclora_trainer::telemetry::StepRecord;

    #[test]
    fn a_record_is_as_tensorflow_writes_it() {
        let mut records = Vec::new();
        record(&mut records, b"abc");
        assert_eq!(records.len(), 8 + 4 + 3 + 4);
        assert_eq!(records[..8], 3_u64.to_le_bytes());
        let mut event = scalar_event(7, "loss", 0.5);
        event.drain(..9);
        let expected: &[u8] = b"\x10\x07\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x3f";
        assert_eq!(event, expected);
    }

    #[test]
    fn every_task_has_files_of_its_own() {
        let run = tempfile::tempdir().unwrap();
        let curve = |task: &str, step: u64| {
            let (loss, learning_rate, gradient_norm) = (0.5, 0.1, 2.0);
            let deciding_loss = None;
            let step =
                StepRecord { step, epoch: 1, loss, deciding_loss, learning_rate, gradient_norm };
            let history = History { steps: vec![step], epochs: Vec::new() };
            Curve { task: task.into(), history }
        };
        for _ in 0..2 {
            let mut scalars = Scalars::new(&run.path().join(DIR));
            scalars.write(&[curve("tune RecLoRA", 3), curve("../CRM", 1)]).unwrap();
            scalars.write(&[curve("tune RecLoRA", 4)]).unwrap();
        }
        let files =
            |task: &str| std::fs::read_dir(run.path().join(DIR).join(task)).unwrap().count();
        assert_eq!((files("tune_RecLoRA"), files("_CRM")), (2, 2));
        // Ranks that begin again go back to what they had saved.
        let mut scalars = Scalars::new(&run.path().join(DIR));
        for step in [7, 8, 8, 9] {
            scalars.write(&[curve("again", step)]).unwrap();
        }
        assert_eq!(files("again"), 2);
    }
}
