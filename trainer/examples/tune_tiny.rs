//! Tunes a tiny adapter through the library: no files but the backbone's, no processes.
//!
//!     cargo run --release -p reclora-trainer --example tune_tiny -- configs/models/stories260k
//!
//! Two users ask the same question and want different answers; only the representations, which the gates read, tell them
//! apart. The loss is printed as it falls.

use std::error::Error;
use std::path::Path;

use reclora_trainer::adapter::Adapter;
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::AdapterConfig;
use reclora_trainer::engine::{Engine, Prompt, Target, TrainingSample};
use reclora_trainer::losses;
use reclora_trainer::parameters::{GradientSink, GradientSum};
use reclora_trainer::tokenizer::Tokenizer;
use reclora_trainer::training::AdamW;

const STEPS: usize = 40;
const REPRESENTATIONS: [[f32; 4]; 2] = [[1.0, 0.0, 0.5, -0.5], [-1.0, 0.3, -0.5, 0.5]];

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: tune_tiny BACKBONE")?;
    let path = Path::new(&path);
    let (tokenizer, backbone) = (Tokenizer::load(path)?, Backbone::load(path)?);
    let text = "Will the user like the story of the little dog?";
    let answers = tokenizer.answers(text, " Yes.", " No.")?;
    let mut tokens = tokenizer.encode(text)?;
    tokens.extend(&answers.lead);
    let position = tokens.len() - 1;
    let [no, yes] = answers.deciding();
    let targets = [yes, no].map(|token| [Target { position, token }]);
    let samples: Vec<TrainingSample<'_>> = REPRESENTATIONS
        .iter()
        .zip(&targets)
        .map(|(representation, targets)| {
            let prompt = Prompt { tokens: &tokens, representation };
            TrainingSample::new(prompt, targets)
        })
        .collect();

    let config = AdapterConfig { experts: 2, rank: 4, ..AdapterConfig::default() };
    let adapter = Adapter::new(backbone.config(), &config, REPRESENTATIONS[0].len(), 1)?;
    let mut parameters = adapter.parameters().to_vec();
    let mut optimizer = AdamW::new(parameters.len(), 0.0);
    for step in 0..STEPS {
        let mut gradient = vec![0.0; parameters.len()];
        let (loss, weight) = (losses::for_head(false), 1.0 / samples.len() as f32);
        let sum = {
            let model = backbone.adapted(Some(adapter.view_of(&parameters)?))?;
            model.train(&samples, loss, weight, GradientSink::from(&mut gradient))?
        };
        optimizer.step(&mut parameters, &GradientSum::of_dense(gradient), 1e-2);
        if step % 10 == 0 || step + 1 == STEPS {
            println!("step {step:>2}: loss {:.4}", sum.training * weight);
        }
    }
    Ok(())
}
