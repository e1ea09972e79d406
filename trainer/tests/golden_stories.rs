//! The shipped tiny LLaMA against values from the reference implementation (`transformers`).

use std::path::Path;

use reclora_trainer::backbone::Backbone;
use reclora_trainer::engine::{AdaptedModel, Prompt, Workspace};
use serde_json::Value;

fn stories() -> Backbone {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/stories260k");
    Backbone::load(&root).unwrap()
}

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stories260k.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn logits_after_bos() {
    let (backbone, golden) = (stories(), golden());
    let prompt = Prompt { tokens: &[1], representation: &[] };
    let model = AdaptedModel::bare(&backbone);
    let logits = model.logits_at(&mut Workspace::new(), &prompt, 0, None).unwrap();
    for entry in golden["logits_after_bos_top10"].as_array().unwrap() {
        let (id, value) = (entry[0].as_u64().unwrap() as usize, entry[1].as_f64().unwrap());
        assert!((f64::from(logits[id]) - value).abs() < 1e-4, "{id}: {} {value}", logits[id]);
    }
    let sum: f64 = logits.iter().map(|x| f64::from(*x)).sum();
    let expected = golden["logits_after_bos_sum"].as_f64().unwrap();
    // The sum of 512 f32 logits: 1e-4 of each, relative.
    assert!((sum - expected).abs() < 1e-4 * expected.abs(), "{sum} {expected}");
}

#[test]
fn greedy_continuation() {
    let (backbone, golden) = (stories(), golden());
    let ids = golden["greedy_ids_from_bos"].as_array().unwrap();
    let ids: Vec<u32> = ids.iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let model = AdaptedModel::bare(&backbone);
    let mut ws = Workspace::new();
    for (position, next) in ids.iter().enumerate().skip(1) {
        let prompt = Prompt { tokens: &ids, representation: &[] };
        let logits = model.logits_at(&mut ws, &prompt, position - 1, None).unwrap();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        assert_eq!(best as u32, *next, "token {position}");
    }
}
