//! The text of a config file and how places in it are shown.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::LaunchError;

/// Largest config file that is read; a real one has a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A config file as read, with the name errors call it by.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path as the user gave it.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// Reads a config file.
    pub fn read(path: &Path) -> Result<Self, LaunchError> {
        let name = path.display().to_string();
        let usage = |what: String| LaunchError::Usage(format!("{name}: {what}"));
        let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => usage(
                "no such config file\n  help: `reclora-launch run configs/quickstart.toml` runs the \
                 shipped experiment"
                    .into(),
            ),
            _ => usage(format!("can't read the config: {error}")),
        })?;
        if meta.is_dir() {
            let mut what = "is a directory, not a config file".to_owned();
            let inside = path.join("config.toml");
            if inside.is_file() {
                what += &format!("\n  help: to continue that run, give {}", inside.display());
            }
            return Err(usage(what));
        }
        if meta.len() > MAX_CONFIG_BYTES {
            return Err(usage(format!("{} bytes is too large for a config", meta.len())));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| usage(format!("can't read the config as UTF-8 text: {error}")))?;
        Ok(Self { name, text })
    }

    /// The text as a table.
    pub fn table(&self) -> Result<toml::Table, LaunchError> {
        self.text.parse().map_err(|error: toml::de::Error| {
            let what = error.message().lines().collect::<Vec<_>>().join(", ");
            LaunchError::Usage(self.block(error.span(), &format!("not valid TOML: {what}"), None))
        })
    }

    /// Where a key or a table is, by its dotted path, or (`of_value`) the value of a key.
    pub fn place(&self, path: &str, of_value: bool) -> Option<Range<usize>> {
        let tree = DeTable::parse(&self.text).ok()?;
        let (key, value) = find(tree.get_ref(), path)?;
        Some(if of_value && !value.get_ref().is_table() { value.span() } else { key })
    }

    /// Line and column of a byte offset, both from 1; the column counts characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before.get(start..).unwrap_or("").chars().count() + 1;
        (line, column)
    }

    /// One readable block: place, message, the line itself with the span underlined, advice.
    pub fn block(&self, span: Option<Range<usize>>, message: &str, help: Option<&str>) -> String {
        let mut out = match &span {
            Some(span) => {
                let (line, column) = self.position(span.start);
                format!("{}:{line}:{column}: {message}", self.name)
            }
            None => format!("{}: {message}", self.name),
        };
        if let Some(span) = span {
            out.push_str(&self.excerpt(span));
        }
        if let Some(help) = help {
            out.push_str(&format!("\n  help: {help}"));
        }
        out
    }

    fn excerpt(&self, span: Range<usize>) -> String {
        let (line, column) = self.position(span.start);
        let text = self.text.lines().nth(line - 1).unwrap_or("");
        let room = text.chars().count().saturating_sub(column - 1).max(1);
        let spanned = self.text.get(span).unwrap_or("");
        let width = spanned.lines().next().unwrap_or("").chars().count().clamp(1, room);
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        // Tabs are shown as one column wide so that the marks stay below what they mark.
        let text = text.replace('\t', " ");
        format!(
            "\n {gutter} |\n {number} | {text}\n {gutter} | {}{}",
            " ".repeat(column - 1),
            "^".repeat(width)
        )
    }
}

fn find<'a, 'i>(
    table: &'a DeTable<'i>,
    path: &str,
) -> Option<(Range<usize>, &'a Spanned<DeValue<'i>>)> {
    table.iter().find_map(|(key, value)| match path.strip_prefix(key.get_ref().as_ref())? {
        "" => Some((key.span(), value)),
        below => find(value.get_ref().as_table()?, below.strip_prefix('.')?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters() {
        let source = Source { name: "c.toml".into(), text: "a = 1\né = 2\nb".into() };
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(6), (2, 1));
        assert_eq!(source.position(8), (2, 2)); // é is two bytes, one column
        assert_eq!(source.position(999), (3, 2));
    }

    #[test]
    fn places_are_of_keys_and_values() {
        let text = "seed = 1\n[tune]\nepochs = 3\n[data]\n\"a.b\" = 2\n";
        let source = Source { name: "c.toml".into(), text: text.into() };
        let at = |path, of_value| source.place(path, of_value).and_then(|place| text.get(place));
        assert_eq!(at("seed", false), Some("seed"));
        assert_eq!(at("tune.epochs", true), Some("3"));
        assert_eq!(at("tune", false), Some("tune"));
        assert_eq!(at("data.a.b", true), Some("2"));
        assert_eq!(at("tune.rank", true), None);
    }

    #[test]
    fn block_shows_the_line() {
        let source = Source { name: "c.toml".into(), text: "[tune]\nepoch = 2\n".into() };
        let block =
            source.block(Some(7..12), "unknown key `epoch`", Some("did you mean `epochs`?"));
        assert_eq!(
            block,
            "c.toml:2:1: unknown key `epoch`\n   |\n 2 | epoch = 2\n   | ^^^^^\n  help: did you mean `epochs`?"
        );
    }
}
