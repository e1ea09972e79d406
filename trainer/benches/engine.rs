//! Speed and memory of one tuning step: forward and backward of a batch, 2 threads.
//!
//!     cargo bench -p reclora-trainer --bench engine -- [KEY=VALUE]...
//!
//! `shape=S|M`, `adapter=reclora|plain`, `seconds=5`, `model=DIR` (a directory of random weights, made
//! when missing and kept; without it a temporary one). Prints one JSON object: tokens per second (the
//! median batch), the peak resident memory, and the share of the matrix products' peak, measured in
//! the same process just before.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use reclora_trainer::adapter::Adapter;
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::AdapterConfig;
use reclora_trainer::kernels::{Mat, matmul};
use reclora_trainer::model::{AdaptedModel, Prompt, Target, Workspace};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

const THREADS: usize = 2;
const REPRESENTATION: usize = 256;

struct Shape {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    mlp: usize,
    vocab: usize,
    sequence: usize,
    batch: usize,
}

impl Shape {
    fn named(name: &str) -> AnyResult<Self> {
        let [hidden, layers, heads, kv_heads, mlp, vocab, sequence, batch] = match name {
            "S" => [256, 4, 4, 4, 688, 2000, 256, 8],
            "M" => [576, 12, 9, 3, 1536, 4096, 512, 4],
            other => return Err(format!("shape={other}: S or M").into()),
        };
        Ok(Self { hidden, layers, heads, kv_heads, mlp, vocab, sequence, batch })
    }

    fn kv(&self) -> usize {
        self.hidden / self.heads * self.kv_heads
    }

    /// FLOP a token needs: two products with each frozen matrix (forward, and backward to its input),
    /// less what the last block computes at the answer alone and the lowest block does not need.
    fn flop_per_token(&self) -> f64 {
        let (h, kv, mlp) = (self.hidden as f64, self.kv() as f64, self.mlp as f64);
        let qkv = h * (h + 2.0 * kv);
        let rest = h * h + 3.0 * h * mlp;
        let keys_of_last = 2.0 * h * kv;
        let inner = (self.layers - 1) as f64;
        // Forward of all but the last block; backward likewise, but no input gradient below the lowest.
        let forward = inner * (qkv + rest) + keys_of_last;
        let backward = inner * (qkv + rest) - qkv + keys_of_last;
        // Attention: scores and weighted sum forward (2), five products backward, over half the square.
        let attention = 7.0 * inner * h * self.sequence as f64 / 2.0;
        2.0 * (forward + backward + attention)
    }
}

fn write_model(dir: &Path, shape: &Shape) -> AnyResult<()> {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    });
    let (h, kv, mlp) = (shape.hidden, shape.kv(), shape.mlp);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![shape.vocab, h]),
        ("model.norm.weight".to_owned(), vec![h]),
    ];
    for layer in 0..shape.layers {
        let parts = [
            ("self_attn.q_proj", vec![h, h]),
            ("self_attn.k_proj", vec![kv, h]),
            ("self_attn.v_proj", vec![kv, h]),
            ("self_attn.o_proj", vec![h, h]),
            ("mlp.gate_proj", vec![mlp, h]),
            ("mlp.up_proj", vec![mlp, h]),
            ("mlp.down_proj", vec![h, mlp]),
            ("input_layernorm", vec![h]),
            ("post_attention_layernorm", vec![h]),
        ];
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        shapes.extend(parts.map(|(part, shape)| (name(part), shape)));
    }
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut data = BTreeMap::new();
    for (name, shape) in shapes {
        let length: usize = shape.iter().product();
        let value = |random: &mut ChaCha8Rng| match shape.len() {
            1 => 1.0f32,
            _ => random.random_range(-0.035..0.035),
        };
        let bytes: Vec<u8> = (0..length).flat_map(|_| value(&mut random).to_le_bytes()).collect();
        data.insert(name, (shape, bytes));
    }
    let views = data
        .iter()
        .map(|(name, (shape, bytes))| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?))
        })
        .collect::<AnyResult<Vec<_>>>()?;
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None)?)?;
    Ok(std::fs::write(dir.join("config.json"), config.to_string())?)
}

/// GFLOP/s of large products, both threads: the best of several, so that it is a limit.
fn gemm_peak() -> f64 {
    let (m, n, k) = (512, 1536, 576);
    let once = |_| {
        let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; n * k]);
        let mut c = vec![0.0f32; m * n];
        let start = Instant::now();
        for _ in 0..4 {
            matmul(&mut c, n, Mat::new(&a, m, k), Mat::new(&b, k, n), 1.0, false);
        }
        std::hint::black_box(&c);
        4.0 * 2.0 * (m * n * k) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    let runs = (0..12).map(|_| (0..THREADS).into_par_iter().map(once).sum::<f64>());
    runs.fold(0.0, f64::max)
}

fn peak_resident_mib() -> AnyResult<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    let kib = line.split_whitespace().nth(1).ok_or("no number in VmHWM")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

fn main() -> AnyResult<()> {
    let mut options = BTreeMap::new();
    // cargo bench adds --bench.
    for argument in std::env::args().skip(1).filter(|a| a != "--bench") {
        let (key, value) = argument.split_once('=').ok_or(format!("{argument}: KEY=VALUE"))?;
        options.insert(key.to_owned(), value.to_owned());
    }
    let mut option = |key: &str, default: &str| options.remove(key).unwrap_or(default.to_owned());
    let shape_name = option("shape", "S");
    let adapter_name = option("adapter", "reclora");
    let seconds: f64 = option("seconds", "5").parse()?;
    let model = option("model", "");
    if let Some(key) = options.keys().next() {
        return Err(format!("unknown option {key}; see the top of the source").into());
    }
    let shape = Shape::named(&shape_name)?;
    rayon::ThreadPoolBuilder::new().num_threads(THREADS).build_global()?;
    let temporary = tempfile::tempdir()?;
    let dir = if model.is_empty() { temporary.path() } else { Path::new(&model) };
    if !dir.join("config.json").exists() {
        write_model(dir, &shape)?;
    }
    let peak = gemm_peak();
    let backbone = Backbone::load(dir)?;
    let experts = if adapter_name == "plain" { 1 } else { 8 };
    let config = AdapterConfig { experts, rank: 8, ..AdapterConfig::default() };
    let adapter = Adapter::new(backbone.config(), &config, REPRESENTATION, 1)?;
    let model = AdaptedModel::new(&backbone, &adapter);
    let samples: Vec<(Vec<u32>, Vec<f32>)> = (0..shape.batch)
        .map(|sample| {
            let mut random = ChaCha8Rng::seed_from_u64(sample as u64);
            let token = |_| random.random_range(0..shape.vocab as u32);
            let tokens = (0..shape.sequence).map(token).collect();
            (tokens, (0..REPRESENTATION).map(|_| random.random_range(-1.0..1.0)).collect())
        })
        .collect();
    let targets = [Target { position: shape.sequence - 1, token: 5 }];
    let mut workers: Vec<(Workspace, Vec<f32>)> =
        (0..THREADS).map(|_| (Workspace::new(), vec![0.0; adapter.num_parameters()])).collect();
    let mut step = || {
        let share = shape.batch / THREADS;
        let losses = workers.par_iter_mut().zip(samples.par_chunks(share)).map(
            |((workspace, gradient), samples)| {
                gradient.fill(0.0);
                let mut loss = 0.0;
                for (tokens, representation) in samples {
                    let prompt = Prompt { tokens, representation };
                    let weight = 1.0 / shape.batch as f32;
                    loss += model
                        .loss_and_gradient(workspace, &prompt, &targets, None, weight, gradient)?;
                }
                Ok(loss)
            },
        );
        losses.sum::<reclora_trainer::error::Result<f32>>()
    };
    let loss = step()? / shape.batch as f32;
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds || times.len() < 3 {
        let start = Instant::now();
        step()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let speed = |time: f64| (shape.batch * shape.sequence) as f64 / time;
    let needed = shape.flop_per_token();
    let result = serde_json::json!({
        "shape": shape_name,
        "adapter": adapter_name,
        "loss": loss,
        "batches": times.len(),
        "tokens_per_second": speed(times[times.len() / 2]).round(),
        "tokens_per_second_best": speed(times[0]).round(),
        "peak_rss_mib": peak_resident_mib()?.round(),
        "gemm_peak_gflops": peak.round(),
        "mflop_per_token": (needed / 1e4).round() / 100.0,
        "share_of_gemm_peak": (speed(times[times.len() / 2]) * needed / peak / 1e7).round() / 100.0,
    });
    println!("{result}");
    Ok(())
}
