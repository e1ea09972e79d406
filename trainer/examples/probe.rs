//! What a backbone makes of texts, for comparison with other implementations: the tokens of every line
//! of a file, and the logits of the whole vocabulary after some of them.
//!
//!     cargo run --release -p reclora-trainer --example probe -- BACKBONE LINES OUT.json [LOGITS]
//!
//! BACKBONE is a Hugging Face directory or a GGUF file; LOGITS is how many lines get logits, evenly
//! spread over the file (3 if absent). trainer/tests/peer/check_gguf.py reads OUT.json.

use std::error::Error;
use std::path::Path;

use reclora_trainer::backbone::Backbone;
use reclora_trainer::engine::{AdaptedModel, Prompt, Workspace};
use reclora_trainer::tokenizer::Tokenizer;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, lines, out, rest @ ..] = args.as_slice() else {
        return Err("usage: probe BACKBONE LINES OUT.json [LOGITS]".into());
    };
    let count: usize = rest.first().map_or(Ok(3), |count| count.parse())?;
    let path = Path::new(path);
    let (tokenizer, backbone) = (Tokenizer::load(path)?, Backbone::load(path)?);
    let text = std::fs::read_to_string(lines)?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let tokens = lines.iter().map(|line| tokenizer.encode(line)).collect::<Result<Vec<_>, _>>()?;
    let model = AdaptedModel::bare(&backbone);
    let mut workspace = Workspace::new();
    let mut logits = Vec::new();
    for line in (0..lines.len()).step_by(lines.len().div_ceil(count.max(1)).max(1)) {
        let prompt = Prompt { tokens: &tokens[line], representation: &[] };
        let last = tokens[line].len() - 1;
        let values = model.logits_at(&mut workspace, &prompt, last, None)?;
        logits.push(json!({"line": line, "logits": values}));
    }
    let lines = lines.iter().zip(&tokens).map(|(line, tokens)| json!([line, tokens]));
    let report = json!({"lines": lines.collect::<Vec<_>>(), "logits": logits});
    std::fs::write(out, report.to_string())?;
    Ok(())
}
