//! Turns serde's words into the user's.

use super::schema::nearest;

/// A message and, where there is one, advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// Explains a deserialisation error of the value at `path` ("tune.epochs").
pub fn explain(path: Option<&str>, message: &str) -> Explained {
    let first = message.lines().next().unwrap_or(message);
    let quoted: Vec<&str> = first.split('`').skip(1).step_by(2).collect();
    let what = if let Some((found, expected)) = first
        .strip_prefix("invalid type: ")
        .or_else(|| first.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "))
    {
        format!("expected {}, found {found}", plain_type(expected))
    } else if let Some(rest) = first.strip_prefix("unknown variant ") {
        let expected = rest.split_once(", ").map_or("", |(_, expected)| expected);
        format!("`{}` is not a choice; {expected}", quoted.first().unwrap_or(&""))
    } else {
        first.to_owned()
    };
    let help = quoted
        .split_first()
        .filter(|_| first.starts_with("unknown variant"))
        .and_then(|(wrong, choices)| nearest(wrong, choices))
        .map(|best| format!("did you mean `{best}`?"));
    let message = path.map_or(what.clone(), |path| format!("`{path}`: {what}"));
    Explained { message, help }
}

/// Rust's names of types in words.
fn plain_type(expected: &str) -> String {
    let expected = expected.trim_matches('`');
    match expected {
        "usize" | "u64" | "u32" | "u8" => "a whole number, 0 or more".into(),
        "i64" | "i32" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "path string" => "a path in quotes".into(),
        "a string" | "string only" => "text in quotes".into(),
        "a sequence" => "a list in brackets".into(),
        other if other.starts_with("struct ") => "a section".into(),
        other if other.starts_with("enum LabelRule") => {
            "`{ greater = 3.0 }` or `{ at_least = 8.0 }`".into()
        }
        other if other.starts_with("enum ") => "one of its choices in quotes".into(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_in_words() {
        let e = explain(Some("tune.epochs"), "invalid type: string \"x\", expected usize");
        assert_eq!(
            e.message,
            "`tune.epochs`: expected a whole number, 0 or more, found string \"x\""
        );
        assert_eq!(e.help, None);
    }

    #[test]
    fn choices_are_suggested() {
        let e = explain(
            Some("retrieve.text_order"),
            "unknown variant `sequental`, expected one of `recent`, `sequential`, `high`, `low`",
        );
        assert!(e.message.contains("`sequental` is not a choice; expected one of `recent`"));
        assert_eq!(e.help.as_deref(), Some("did you mean `sequential`?"));
    }
}
