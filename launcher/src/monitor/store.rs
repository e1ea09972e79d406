//! Samples in files, `RUN/monitor/NAME.jsonl`: a line each, one writer per file, any number of readers.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use color_eyre::eyre::WrapErr;
use reclora_storage::atomic::{create_dir_all, write_bytes_atomic};

use super::sample::Sample;
use super::window::{WINDOW, Window};
use crate::error::Result;

/// Directory in the run directory.
pub const DIR: &str = "monitor";
/// Name of the file of the node that has rank 0.
pub const LEADER: &str = "node_0";
/// A file longer than this loses every other sample: of what is older, less is left.
const MAX_BYTES: u64 = 16 << 20;
/// What readers look at: more than a window of a node with many ranks.
const TAIL_BYTES: u64 = 1 << 20;

/// Appends to a file.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Writer {
    /// Goes on with a node's file.
    pub fn open(run_dir: &Path, name: &str) -> Result<Self> {
        let dir = run_dir.join(DIR);
        create_dir_all(&dir)?;
        let path = dir.join(format!("{name}.jsonl"));
        let (mut file, bytes) = append(&path)?;
        // What an earlier writer could not finish ends here.
        file.write_all(b"\n").wrap_err_with(|| format!("can't write {}", path.display()))?;
        Ok(Self { path, file, bytes })
    }

    /// Writes a sample.
    pub fn write(&mut self, sample: &Sample) -> Result<()> {
        let mut line = serde_json::to_vec(sample)?;
        line.push(b'\n');
        self.file.write_all(&line).wrap_err_with(|| format!("{}", self.path.display()))?;
        self.bytes += line.len() as u64;
        if self.bytes > MAX_BYTES {
            self.thin()?;
        }
        Ok(())
    }

    fn thin(&mut self) -> Result<()> {
        let text = std::fs::read(&self.path)?;
        let lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.len() > 1);
        let lines = lines.step_by(2);
        write_bytes_atomic(&self.path, &lines.collect::<Vec<_>>().concat())?;
        (self.file, self.bytes) = append(&self.path)?;
        Ok(())
    }
}

fn append(path: &Path) -> Result<(File, u64)> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    let file = opened.wrap_err_with(|| format!("can't write {}", path.display()))?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

/// Calls `take` for every sample of a node, from the first on.
pub fn each(run_dir: &Path, name: &str, mut take: impl FnMut(Sample)) -> Result<()> {
    let path = run_dir.join(DIR).join(format!("{name}.jsonl"));
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).wrap_err_with(|| format!("can't read {}", path.display())),
    };
    // Twice what a file holds before it gets thinner: nobody else writes here.
    for line in BufReader::new(file.take(2 * MAX_BYTES)).split(b'\n') {
        let line = line.wrap_err_with(|| format!("can't read {}", path.display()))?;
        if let Ok(sample) = serde_json::from_slice(&line) {
            take(sample);
        }
    }
    Ok(())
}

/// Names of the nodes of which there is a file, sorted.
pub fn names(run_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run_dir.join(DIR)).into_iter().flatten().flatten();
    let name = |entry: std::fs::DirEntry| {
        entry.file_name().to_str()?.strip_suffix(".jsonl").map(str::to_owned)
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    names
}

/// The latest samples of every node.
pub fn read(run_dir: &Path) -> Result<Vec<Window>> {
    let names = names(run_dir);
    let windows = names.iter().map(|name| {
        let path = run_dir.join(DIR).join(format!("{name}.jsonl"));
        let samples = tail(&path).wrap_err_with(|| format!("can't read {}", path.display()))?;
        Ok(Window::new(name, samples))
    });
    let mut windows = windows.collect::<Result<Vec<_>>>()?;
    windows.retain(|window| window.last().is_some());
    Ok(windows)
}

/// The samples of the last [`WINDOW`] of a file. A line that is no sample is left out: it was cut when its writer
/// was killed, or is of another version.
fn tail(path: &Path) -> std::io::Result<Vec<Sample>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.take(2 * TAIL_BYTES).read_to_end(&mut text)?;
    let lines = text.split(|byte| *byte == b'\n');
    let mut samples: Vec<Sample> =
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let from = samples.last().map_or(0.0, |sample| sample.time - WINDOW);
    samples.retain(|sample| sample.time >= from);
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(time: f64) -> Sample {
        Sample { time, host: "h".into(), ..Sample::default() }
    }

    #[test]
    fn torn_and_strange_lines_are_left_out() {
        let run = tempfile::tempdir().unwrap();
        assert!(read(run.path()).unwrap().is_empty());
        let mut writer = Writer::open(run.path(), "node_0").unwrap();
        writer.write(&sample(100.0)).unwrap();
        let path = run.path().join("monitor/node_0.jsonl");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"time\": 1").unwrap();
        let mut writer = Writer::open(run.path(), "node_0").unwrap();
        writer.write(&sample(101.0)).unwrap();
        std::fs::write(run.path().join("monitor/node_1.jsonl"), b"\xff\xfe\n[]\n{}\n\0").unwrap();
        let windows = read(run.path()).unwrap();
        assert_eq!(windows.len(), 1);
        let mut all = Vec::new();
        each(run.path(), "node_0", |sample| all.push(sample.time)).unwrap();
        assert_eq!(all, [100.0, 101.0]);
        let times: Vec<f64> = windows[0].samples.iter().map(|sample| sample.time).collect();
        assert_eq!(times, [100.0, 101.0]);
    }

    #[test]
    fn a_long_file_gets_thinner() {
        let run = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(run.path(), "node_0").unwrap();
        writer.bytes = MAX_BYTES - 500;
        for time in 0..100 {
            writer.write(&sample(f64::from(time))).unwrap();
        }
        assert!(writer.bytes < 40_000, "{}", writer.bytes);
        let windows = read(run.path()).unwrap();
        assert_eq!(windows[0].last().unwrap().time, 99.0);
    }
}
