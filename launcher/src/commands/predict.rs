//! `predict`: how likely a user is to like an item.

use reclora_trainer::stages;
use serde_json::Value;

use crate::cli::{PairArgs, PredictArgs};
use crate::error::Result;
use crate::output::show;
use crate::run_dir::context;

/// Scores the pair with every model of the run, and prints what each says.
pub fn predict(args: &PredictArgs) -> Result<()> {
    let PairArgs { run, user, item } = &args.pair;
    let prediction = stages::predict(&context(run)?, user, item)?;
    show(&serde_json::to_value(&prediction)?, args.json, readable)
}

/// A flat object as lines: short values in a column, long texts below.
fn readable(value: &Value) -> String {
    let (mut short, mut long) = (String::new(), String::new());
    for (name, value) in value.as_object().into_iter().flatten() {
        let title = name.replace('_', " ");
        match value {
            Value::Null => {}
            Value::String(text) if text.contains('\n') || text.len() > 60 => {
                long.push_str(&format!("\n{title}:\n{text}\n"));
            }
            Value::String(text) => short.push_str(&format!("{title:20} {text}\n")),
            Value::Number(n) if n.is_f64() => {
                short.push_str(&format!("{title:20} {:.4}\n", n.as_f64().unwrap_or(f64::NAN)));
            }
            other => short.push_str(&format!("{title:20} {other}\n")),
        }
    }
    short + &long
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_lines() {
        let value = serde_json::json!({
            "user": "1", "reclora": 0.73125, "lora": null, "prompt": "a\nb", "cut": 3
        });
        let text = readable(&value);
        assert!(text.contains("reclora              0.7312\n"), "{text}");
        assert!(text.contains("user                 1\n"), "{text}");
        assert!(text.ends_with("\nprompt:\na\nb\n"), "{text}");
        assert!(!text.contains("\nlora"), "{text}");
    }
}
