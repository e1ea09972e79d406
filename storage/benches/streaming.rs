//! Speed of streaming a shuffled epoch of samples with their histories, and of reading columns in order.
//!
//!     cargo bench -p reclora-storage --bench streaming -- data=DIR [KEY=VALUE]...
//!
//! `data=DIR` (a run's `dataset` directory), `history=60` (the latest that many items and ratings, padded
//! with 0 in front), `batch=256`, `samples=N` (the first N; 0: all), `dump=DIR` (the same samples as plain
//! numbers, so that another program can be given them). Prints one JSON object: samples per second, the
//! share of the time the consumer waited, bytes on disk per sample and of the layout that stores every
//! history, and the bandwidth of a column read in order beside that of memcpy.

#![allow(clippy::unwrap_used, reason = "a failure is the report")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use reclora_storage::dataset::Dataset;
use reclora_storage::loader::Prefetch;
use reclora_storage::permutation::EpochOrder;

/// What a training step reads.
#[derive(Default)]
struct Batch {
    /// `[batch, fields]`.
    fields: Vec<u32>,
    /// `[batch, history]`.
    items: Vec<u32>,
    /// `[batch, history]`.
    ratings: Vec<u8>,
    labels: Vec<u8>,
}

impl Batch {
    fn push(&mut self, dataset: &Dataset, index: u64, width: usize) {
        let sample = dataset.sample(index).unwrap();
        let all = dataset.history(sample.user, sample.position);
        let first = all.items.len().saturating_sub(width);
        let padding = width - (all.items.len() - first);
        self.items.resize(self.items.len() + padding, 0);
        self.items.extend_from_slice(&all.items[first..]);
        self.ratings.resize(self.ratings.len() + padding, 0);
        self.ratings.extend_from_slice(&all.ratings[first..]);
        dataset.feature_ids(sample.user, sample.item, &mut self.fields);
        self.labels.push(u8::from(sample.label));
    }

    /// Something that depends on every number, so that none may be left out.
    fn checksum(&self) -> u64 {
        let words = self.items.iter().chain(&self.fields).map(|v| u64::from(*v));
        let bytes = self.ratings.iter().chain(&self.labels).map(|v| u64::from(*v));
        words.chain(bytes).sum()
    }
}

fn dump(dir: &Path, dataset: &Dataset, samples: u64, width: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let mut batch = Batch::default();
    (0..samples).for_each(|index| batch.push(dataset, index, width));
    let write = |name: &str, bytes: &[u8]| {
        std::fs::File::create(dir.join(name)).unwrap().write_all(bytes).unwrap();
    };
    let words = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    write("fields.u32", &words(&batch.fields));
    write("items.u32", &words(&batch.items));
    write("ratings.u8", &batch.ratings);
    write("labels.u8", &batch.labels);
}

/// GB/s of copying a buffer far larger than the caches: the best of several.
fn memcpy_bandwidth() -> f64 {
    let (from, mut to) = (vec![1_u8; 256 << 20], vec![0_u8; 256 << 20]);
    let once = |_| {
        let start = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        from.len() as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..7).map(once).fold(0.0, f64::max)
}

/// GB/s of all users' items, ratings and times, copied out in order of the file: the best of several.
fn sequential_bandwidth(dataset: &Dataset) -> f64 {
    let users = dataset.num_users() as u32;
    let mut out = vec![0_u8; 64 << 20];
    let once = |_| {
        let start = Instant::now();
        let (mut bytes, mut at) = (0, 0);
        for user in 0..users {
            let history = dataset.history(user, u32::MAX);
            let values: &[u32] = history.items;
            let size = size_of_val(values);
            if at + size > out.len() {
                at = 0;
            }
            for (place, value) in out[at..at + size].as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *place = value.to_ne_bytes();
            }
            at += size;
            bytes += size;
        }
        std::hint::black_box(&out);
        bytes as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..7).map(once).fold(0.0, f64::max)
}

fn main() {
    let mut options: BTreeMap<String, String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .map(|argument| {
            let Some((key, value)) = argument.split_once('=') else {
                eprintln!("{argument}: options are KEY=VALUE");
                std::process::exit(2);
            };
            (key.to_owned(), value.to_owned())
        })
        .collect();
    let mut option = |key: &str, default: &str| options.remove(key).unwrap_or(default.to_owned());
    let (data, dump_to) = (option("data", ""), option("dump", ""));
    let width: usize = option("history", "60").parse().unwrap();
    let size: u64 = option("batch", "256").parse().unwrap();
    let limit: u64 = option("samples", "0").parse().unwrap();
    if data.is_empty() || !options.is_empty() {
        eprintln!("data=DIR is needed; history, batch, samples and dump are the other options");
        std::process::exit(2);
    }
    let dataset = Dataset::open(Path::new(&data)).unwrap();
    let all = dataset.num_samples();
    let samples = if limit == 0 { all } else { limit.min(all) };
    if !dump_to.is_empty() {
        dump(Path::new(&dump_to), &dataset, samples, width);
    }
    let mut speeds = Vec::new();
    let mut stalled = 0.0;
    let mut checksum = 0;
    for epoch in 0..5 {
        let order = EpochOrder::new(samples, 42, epoch);
        let mut next = 0;
        let start = Instant::now();
        let next_batch = || {
            let range = next..(next + size).min(samples);
            next = range.end;
            let mut batch = Batch::default();
            range.clone().for_each(|position| batch.push(&dataset, order.at(position), width));
            (!range.is_empty()).then_some(batch)
        };
        checksum = 0;
        let waited = std::thread::scope(|scope| {
            let mut batches = Prefetch::spawn(scope, 4, "batches", next_batch);
            while let Some(batch) = batches.next() {
                checksum += batch.checksum();
            }
            batches.stalls().waited
        });
        let seconds = start.elapsed().as_secs_f64();
        stalled = waited.as_secs_f64() / seconds;
        speeds.push(samples as f64 / seconds);
    }
    speeds.sort_by(f64::total_cmp);
    let file = std::fs::metadata(Path::new(&data).join(reclora_storage::dataset::FILE)).unwrap();
    let (memcpy, sequential) = (memcpy_bandwidth(), sequential_bandwidth(&dataset));
    let result = serde_json::json!({
        "samples_per_second": speeds[speeds.len() / 2].round(),
        "waited": (stalled * 100.0).round() / 100.0,
        "checksum": checksum,
        "samples": samples,
        "bytes_per_interaction": file.len() as f64 / dataset.num_interactions() as f64,
        "bytes_per_sample": file.len() as f64 / all as f64,
        // The published layout: int64 ids and int64 ratings of each sample's history.
        "bytes_per_sample_of_stored_histories": width * 16,
        "memcpy_gb_per_second": memcpy,
        "sequential_gb_per_second": sequential,
    });
    println!("{result}");
}
