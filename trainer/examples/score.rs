//! Loads a tuned adapter and asks it about one prompt.
//!
//!     cargo run --release -p reclora-trainer --example score -- BACKBONE ADAPTER PROMPT.txt [C.json]
//!
//! BACKBONE is a Hugging Face directory or a GGUF file, ADAPTER the `adapter_model.safetensors` of a run, PROMPT.txt
//! the text before the answer. C.json is the CRM's representation of the sample, a list of numbers; without it the
//! gates see zeros.

use std::error::Error;
use std::path::Path;

use reclora_trainer::adapter::Adapter;
use reclora_trainer::backbone::Backbone;
use reclora_trainer::engine::{Engine, Prompt};
use reclora_trainer::tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [backbone, adapter, prompt, rest @ ..] = args.as_slice() else {
        return Err("usage: score BACKBONE ADAPTER PROMPT.txt [C.json]".into());
    };
    let path = Path::new(backbone);
    let (tokenizer, backbone) = (Tokenizer::load(path)?, Backbone::load(path)?);
    let adapter = Adapter::load(Path::new(adapter), backbone.config())?;
    let representation: Vec<f32> = match rest.first() {
        Some(file) => serde_json::from_slice(&std::fs::read(file)?)?,
        None => vec![0.0; adapter.representation_dim()],
    };
    let text = std::fs::read_to_string(prompt)?;
    let text = text.trim_end();
    let answers = tokenizer.answers(text, " Yes.", " No.")?;
    let mut tokens = tokenizer.encode(text)?;
    tokens.extend(&answers.lead);
    let model = backbone.adapted(Some(adapter.view()))?;
    let prompt = Prompt { tokens: &tokens, representation: &representation };
    let logits = model.answers(&[prompt], answers.deciding(), &|_| ())?;
    for [no, yes] in logits {
        println!("P(yes) = {:.4}", 1.0 / (1.0 + (no - yes).exp()));
    }
    Ok(())
}
