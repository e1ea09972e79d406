//! What the program says: results on standard output, remarks on standard error, JSON in files.

use std::io::{ErrorKind, Write};
use std::path::Path;

use indicatif::HumanCount;
use reclora_storage::atomic::write_bytes_atomic;
use serde::Serialize;

use crate::error::Result;

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    print_to_reader(text).map(drop)
}

/// Writes what would go on and on to standard output; returns whether anybody still reads.
pub fn print_to_reader(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes a value to standard output: as JSON, or as `readable` says it.
pub fn show<T: Serialize>(value: &T, json: bool, readable: impl Fn(&T) -> String) -> Result<()> {
    print(&if json { self::json(value)? } else { readable(value) })
}

/// Writes a value as JSON into a file, which is whole or not there.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    Ok(write_bytes_atomic(path, json(value)?.as_bytes())?)
}

fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// A number with commas: `1,234,567`.
pub fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// Text of a rank without characters that would move a terminal's cursor.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A line on standard error; a closed one is not worth dying for.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let grouped = ["0", "12", "123", "1,234", "1,234,567"];
        assert_eq!([0, 12, 123, 1234, 1_234_567].map(count), grouped);
    }

    #[test]
    fn control_characters_are_removed() {
        assert_eq!(printable("a\x1b[2Jb\rc"), "a [2Jb c");
    }
}
