//! A whole run with the LLM on a GPU beside one on the CPU. Needs a build with CUDA; where there is no
//! GPU, `scripts/gpu-sim/run.sh` simulates one.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use common::{configs, launch, small};
use parquet::file::reader::SerializedFileReader;
use parquet::record::RowAccessor;
use serde_json::{Value, json};

/// Settings that make the small experiment one of a few prompts: a simulated GPU is slow.
const TINY: [&str; 10] = [
    "data.k_core=20",
    "retrieve.pca_dimensions=8",
    "retrieve.text_k=1",
    "crm.epochs=1",
    "tune.few_shot=8",
    "tune.epochs=2",
    "tune.global_batch=4",
    "tune.micro_batches=2",
    "tune.valid_samples=4",
    "evaluate.limit=8",
];

/// A backbone of one narrow block with the shipped tokenizer, for the same reason.
fn narrow_backbone(dir: &Path) {
    const WIDTH: u64 = 8;
    let shipped = configs().join("models/stories260k");
    std::fs::create_dir(dir).unwrap();
    std::fs::copy(shipped.join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    let text = std::fs::read(shipped.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (field, value) in [
        ("hidden_size", WIDTH),
        ("intermediate_size", WIDTH),
        ("num_hidden_layers", 1),
        ("num_attention_heads", 1),
        ("num_key_value_heads", 1),
    ] {
        config[field] = value.into();
    }
    config["tie_word_embeddings"] = true.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let vocabulary = config["vocab_size"].as_u64().unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
    ];
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((format!("model.layers.0.{norm}.weight"), vec![WIDTH]));
    }
    for part in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"] {
        tensors.push((format!("model.layers.0.{part}_proj.weight"), vec![WIDTH; 2]));
    }
    for part in ["mlp.gate", "mlp.up", "mlp.down"] {
        tensors.push((format!("model.layers.0.{part}_proj.weight"), vec![WIDTH; 2]));
    }
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        for index in 0..shape.iter().product::<u64>() {
            // Any numbers do, if they are of both signs and no two rows are alike.
            let value = if shape.len() == 1 { 1.0 } else { ((start as u64 + index) as f32).sin() };
            data.extend(value.to_le_bytes());
        }
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// A run with these ranks and `[runtime]` settings; what it says.
fn run(config: &str, backbone: &Path, run_dir: &Path, ranks: &str, settings: &[&str]) -> String {
    let backbone = format!("backbone.path={}", backbone.display());
    let settings = TINY.iter().chain(settings).copied().chain([&*backbone]);
    let args = ["run", config, "--run-dir", run_dir.to_str().unwrap(), "--nproc-per-node", ranks];
    let mut command = launch(&args);
    command.timeout(Duration::from_secs(600)).env("GPU_SIM_DEVICES", ranks);
    let assert = command.args(settings.flat_map(|set| ["--set", set])).assert().success();
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

fn read_json(run_dir: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(run_dir.join(name)).unwrap()).unwrap()
}

/// Numbers of two runs, as near as rounding leaves them.
fn assert_near(gpu: &[f64], cpu: &[f64], tolerance: f64, what: &str) {
    assert_eq!(gpu.len(), cpu.len(), "{what}");
    for (gpu, cpu) in gpu.iter().zip(cpu) {
        assert!((gpu - cpu).abs() <= tolerance * cpu.abs().max(1.0), "{what}: {gpu}, CPU {cpu}");
    }
}

/// P(like) of each test sample by both adapters.
fn probabilities(run_dir: &Path) -> Vec<f64> {
    let file = File::open(run_dir.join("predictions/test.parquet")).unwrap();
    let rows = SerializedFileReader::new(file).unwrap().into_iter().map(Result::unwrap);
    rows.flat_map(|row| [5, 6].map(|column| f64::from(row.get_float(column).unwrap()))).collect()
}

/// The losses of every step: of training with the gates' dropout, which draws the same on both.
fn losses(run_dir: &Path) -> Vec<f64> {
    let of = |name| {
        let history = read_json(run_dir, name);
        let steps = history["steps"].as_array().unwrap().iter();
        steps.map(|step| step["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    [of("adapter/history.json"), of("adapter/plain_lora/history.json")].concat()
}

#[test]
fn e2e_a_run_on_a_gpu_is_that_on_the_cpu_to_rounding() {
    let (dir, config) = small();
    let backbone = dir.path().join("backbone");
    narrow_backbone(&backbone);
    let [gpu, cpu] = ["cuda", "cpu"].map(|device| {
        let run_dir = dir.path().join(device);
        run(&config, &backbone, &run_dir, "1", &[&format!("runtime.device={device}")]);
        run_dir
    });
    assert_near(&losses(&gpu), &losses(&cpu), 1e-4, "training losses");
    let (of_gpu, of_cpu) = (probabilities(&gpu), probabilities(&cpu));
    assert_eq!(of_cpu.len(), 16);
    assert_near(&of_gpu, &of_cpu, 1e-4, "P(like)");
    assert!(of_gpu != of_cpu, "equal to the last bit: was it the GPU?");
    let log_loss = |run_dir: &Path| {
        let models = read_json(run_dir, "predictions/metrics.json")["models"].take();
        ["reclora", "lora"].map(|model| models[model]["metrics"]["log_loss"].as_f64().unwrap())
    };
    assert_near(&log_loss(&gpu), &log_loss(&cpu), 1e-4, "log loss");
}

/// D-1 over NCCL: the bits of the adapters and of the metrics.
#[test]
fn e2e_d1_two_gpus_over_nccl_give_the_bits_of_one() {
    let (dir, config) = small();
    let backbone = dir.path().join("backbone");
    narrow_backbone(&backbone);
    let device = "runtime.device=cuda";
    let [one, two] = [("1", "tcp"), ("2", "nccl")].map(|(ranks, backend)| {
        let run_dir = dir.path().join(backend);
        let backend = format!("runtime.backend={backend}");
        run(&config, &backbone, &run_dir, ranks, &[device, &backend]);
        run_dir
    });
    for file in [
        "adapter/adapter_model.safetensors",
        "adapter/plain_lora/adapter_model.safetensors",
        "predictions/test.parquet",
        "predictions/metrics.json",
    ] {
        let [one, two] = [&one, &two].map(|run| std::fs::read(run.join(file)).unwrap());
        assert!(one == two, "{file} differs");
    }
    let log = two.join("logs/tune/attempt_1/rank_1/stderr.log");
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("rank 1: sums over NCCL 2."), "{log}");
}
