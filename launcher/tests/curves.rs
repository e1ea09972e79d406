//! What TensorBoard is given of a run is what the run's own files say.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::path::Path;

use common::launch;

/// The contents of a file of TFRecords, whose sums must be right.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let masked = |part: &[u8]| crc32c::crc32c(part).rotate_right(15).wrapping_add(0xa282_ead8);
    let mut rest = bytes;
    let mut records = Vec::new();
    let mut take = |count: usize| {
        let (part, left) = rest.split_at(count);
        rest = left;
        (part, left.is_empty())
    };
    loop {
        let (length, _) = take(8);
        let sum = take(4).0;
        assert_eq!(sum, masked(length).to_le_bytes());
        let (content, _) = take(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let (sum, is_end) = take(4);
        assert_eq!(sum, masked(content).to_le_bytes());
        records.push(content);
        if is_end {
            return records;
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    unreachable!("the bytes end before")
}

/// The fields of a message: number, and the value or its bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let count = match key & 7 {
            0 => {
                let value = varint(&mut bytes);
                fields.push((key >> 3, value.to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(&mut bytes) as usize,
        };
        let (value, rest) = bytes.split_at(count);
        fields.push((key >> 3, value.to_vec()));
        bytes = rest;
    }
    fields
}

fn field(fields: &[(u64, Vec<u8>)], number: u64) -> Option<&[u8]> {
    fields.iter().find(|(known, _)| *known == number).map(|(_, value)| value.as_slice())
}

/// (step, value) of a tag, in the files of a directory.
fn scalars(directory: &Path, wanted: &str) -> Vec<(u64, f32)> {
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut scalars = Vec::new();
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        for record in records(&bytes) {
            let event = fields(record);
            let Some(summary) = field(&event, 5) else { continue };
            let value = fields(field(&fields(summary), 1).unwrap());
            if field(&value, 1).unwrap() == wanted.as_bytes() {
                let step = u64::from_le_bytes(field(&event, 2).unwrap().try_into().unwrap());
                let value = f32::from_le_bytes(field(&value, 2).unwrap().try_into().unwrap());
                scalars.push((step, value));
            }
        }
    }
    scalars
}

#[test]
fn e2e_tensorboard_is_given_every_step_and_epoch() {
    let (dir, config) = common::small();
    let run = dir.path().join("run");
    launch(&["run", &config, "--run-dir", run.to_str().unwrap(), "--nproc-per-node", "2"])
        .assert()
        .success();
    for (task, history) in
        [("tune_RecLoRA", "adapter/history.json"), ("train_CRM", "crm/history.json")]
    {
        let history = std::fs::read(run.join(history)).unwrap();
        let history: serde_json::Value = serde_json::from_slice(&history).unwrap();
        let directory = run.join("tensorboard").join(task);
        let expect = |list: &str, step: &str, value: &str| -> Vec<(u64, f32)> {
            let list = history[list].as_array().into_iter().flatten();
            let pair =
                |one: &serde_json::Value| Some((one[step].as_u64()?, one[value].as_f64()? as f32));
            list.filter_map(pair).collect()
        };
        let epochs = expect("epochs", "epoch", "valid_auc");
        assert!(!epochs.is_empty(), "{task}");
        assert_eq!(scalars(&directory, "epoch/valid_auc"), epochs, "{task}");
        let steps = expect("steps", "step", "loss");
        // The CRM's file has no steps.
        if task == "tune_RecLoRA" {
            assert!(steps.len() > 2, "{task}");
            assert_eq!(scalars(&directory, "loss"), steps, "{task}");
            let deciding = expect("steps", "step", "deciding_loss");
            assert_eq!(deciding.len(), steps.len());
            assert_eq!(scalars(&directory, "deciding_loss"), deciding, "{task}");
            let rates = expect("steps", "step", "learning_rate");
            assert_eq!(scalars(&directory, "learning_rate"), rates, "{task}");
        }
        assert!(!scalars(&directory, "loss").is_empty(), "{task}");
    }
    let page = std::fs::read_to_string(run.join("report/index.html")).unwrap();
    assert!(page.contains("By the length of the user"), "no breakdown in the report");
}
