//! The text of a config file and how places in it are shown.

use std::ops::Range;

/// A config file as read, with the name errors call it by.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path as the user gave it.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl Source {
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
