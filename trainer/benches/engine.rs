//! Speed and memory of one tuning step: forward and backward of a batch.
//!
//!     cargo bench -p reclora-trainer --bench engine -- [KEY=VALUE]...
//!
//! `shape=S|M` (`layers=N` and `sequence=N` change it), `adapter=reclora|plain`, `weights=f32|bf16|q8_0`,
//! `recompute=true` (keep few activations), `seconds=5`, `threads=2`, `model=DIR` (a directory of
//! random weights, made when missing and kept; without it a temporary one, whose making counts in the
//! memory), `dump=FILE` (the tokens and their target are written there as JSON, so that another program
//! can be given the same). Prints one JSON object: tokens per second (the median batch), the peak
//! resident memory, and the share of the matrix products' peak, measured in the same process just
//! before.

#![allow(clippy::unwrap_used, reason = "the random models are those of the tests")]

#[path = "../tests/tiny/mod.rs"]
mod tiny;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use reclora_trainer::adapter::Adapter;
use reclora_trainer::backbone::{Backbone, WeightType};
use reclora_trainer::config::AdapterConfig;
use reclora_trainer::engine::{AdaptedModel, Prompt, Target, TrainingSample, Workspace};
use reclora_trainer::kernels::q8_0::quantize_row;
use reclora_trainer::kernels::{FrozenBuffers, FrozenMat, FrozenValues, Mat, project};
use reclora_trainer::losses::TokenCrossEntropy;
use tiny::Sizes;

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

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

    fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden,
            intermediate: self.mlp,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.hidden / self.heads,
            vocab: self.vocab,
            tied: true,
        }
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

/// Random weights of this shape, in a directory that lacks them. A directory of another shape is an
/// error: its speed would be reported under the wrong name.
fn load_model(dir: &Path, shape: &Shape, weights: WeightType) -> AnyResult<Backbone> {
    let sizes = shape.sizes();
    let mut config = tiny::config(&sizes);
    config["max_position_embeddings"] = 2048.into();
    let path = dir.join("config.json");
    if !path.exists() {
        std::fs::create_dir_all(dir)?;
        tiny::save(&dir.join(tiny::WEIGHTS), &tiny::tensors(&sizes, 1));
        std::fs::write(&path, config.to_string())?;
    }
    let found: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    if found != config {
        return Err(
            format!("{} is not of this shape: name another model=DIR", path.display()).into()
        );
    }
    Ok(Backbone::load_as(dir, weights)?)
}

/// GFLOP/s of large products with a frozen weight, all threads: the best of several, so that it is a
/// limit.
fn gemm_peak(threads: usize, weights: WeightType) -> f64 {
    let (m, n, k) = (512, 1536, 576);
    let w = vec![0.25f32; n * k];
    let narrowed: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
    let blocks = quantize_row(&w).unwrap();
    let values = match weights {
        WeightType::F32 => FrozenValues::F32(&w),
        WeightType::Bf16 => FrozenValues::Bf16(&narrowed),
        WeightType::Q8_0 => FrozenValues::Q8_0(&blocks),
    };
    let once = |_| {
        let x = vec![0.5f32; m * k];
        let mut y = vec![0.0f32; m * n];
        let mut buffers = FrozenBuffers::default();
        let start = Instant::now();
        for _ in 0..4 {
            let w = FrozenMat::new(values, n, k);
            project(&mut y, n, Mat::new(&x, m, k), w, false, &mut buffers);
        }
        std::hint::black_box(&y);
        4.0 * 2.0 * (m * n * k) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    let runs = (0..12).map(|_| (0..threads).into_par_iter().map(once).sum::<f64>());
    runs.fold(0.0, f64::max)
}

fn peak_resident_mib() -> AnyResult<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    let kib = line.split_whitespace().nth(1).ok_or("no number in VmHWM")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

struct Options {
    shape_name: String,
    shape: Shape,
    adapter: AdapterConfig,
    adapter_name: String,
    seconds: f64,
    threads: usize,
    model: String,
    dump: String,
    weights: WeightType,
    /// Recompute blocks in the backward.
    recompute: bool,
}

fn options() -> AnyResult<Options> {
    let mut options = BTreeMap::new();
    // cargo bench adds --bench.
    for argument in std::env::args().skip(1).filter(|a| a != "--bench") {
        let (key, value) = argument.split_once('=').ok_or(format!("{argument}: KEY=VALUE"))?;
        options.insert(key.to_owned(), value.to_owned());
    }
    let mut option = |key: &str, default: &str| options.remove(key).unwrap_or(default.to_owned());
    let (shape_name, adapter_name) = (option("shape", "S"), option("adapter", "reclora"));
    let (seconds, model) = (option("seconds", "5").parse()?, option("model", ""));
    let (threads, dump) = (option("threads", "2").parse()?, option("dump", ""));
    let weights = serde_json::from_value(option("weights", "f32").into())?;
    let recompute = option("recompute", "false").parse()?;
    let (layers, sequence) = (option("layers", ""), option("sequence", ""));
    if let Some(key) = options.keys().next() {
        let known = "shape, layers, sequence, adapter, weights, recompute, seconds, threads, model \
                     and dump";
        return Err(format!("{key}: {known} are the options").into());
    }
    let experts = match adapter_name.as_str() {
        "reclora" => 8,
        "plain" => 1,
        other => return Err(format!("adapter={other}: reclora or plain").into()),
    };
    let adapter = AdapterConfig { experts, rank: 8, ..AdapterConfig::default() };
    let mut shape = Shape::named(&shape_name)?;
    if !layers.is_empty() {
        shape.layers = layers.parse()?;
    }
    if !sequence.is_empty() {
        shape.sequence = sequence.parse()?;
    }
    if !(1..=shape.batch).contains(&threads) {
        return Err(
            format!("threads={threads}: 1 to {}, the samples of a batch", shape.batch).into()
        );
    }
    Ok(Options {
        shape_name,
        shape,
        adapter,
        adapter_name,
        seconds,
        threads,
        model,
        dump,
        weights,
        recompute,
    })
}

/// Tokens and representation.
type Sample = (Vec<u32>, Vec<f32>);

fn sample(shape: &Shape, seed: u64) -> Sample {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let vocab = shape.vocab as u32;
    let tokens = (0..shape.sequence).map(|_| random.random_range(0..vocab)).collect();
    (tokens, tiny::uniform(REPRESENTATION, 1.0, &mut random))
}

fn samples(shape: &Shape) -> Vec<Sample> {
    (0..shape.batch).map(|seed| sample(shape, seed as u64)).collect()
}

fn target(shape: &Shape) -> Target {
    Target { position: shape.sequence - 1, token: 5 }
}

/// What the batch asks of the backbone, for another program.
fn dump(path: &str, shape: &Shape) -> AnyResult<()> {
    let tokens: Vec<_> = samples(shape).into_iter().map(|(tokens, _)| tokens).collect();
    let Target { position, token } = target(shape);
    let dump = serde_json::json!({ "tokens": tokens, "position": position, "target": token });
    Ok(std::fs::write(path, dump.to_string())?)
}

/// Mean loss, and the sorted seconds of batches run for at least `seconds`.
fn measure(
    model: &AdaptedModel<'_>,
    parameters: usize,
    options: &Options,
) -> AnyResult<(f32, Vec<f64>)> {
    let shape = &options.shape;
    let samples = samples(shape);
    let targets = [target(shape)];
    let worker = |_| {
        let mut workspace = Workspace::new();
        if options.recompute {
            workspace.set_activation_budget(0);
        }
        (workspace, vec![0.0; parameters])
    };
    let mut workers: Vec<(Workspace, Vec<f32>)> = (0..options.threads).map(worker).collect();
    let weight = 1.0 / shape.batch as f32;
    let mut batch = || {
        let parts =
            workers.par_iter_mut().zip(samples.par_chunks(shape.batch.div_ceil(options.threads)));
        let losses = parts.map(|((workspace, gradient), samples)| {
            gradient.fill(0.0);
            let mut loss = 0.0;
            for (tokens, representation) in samples {
                let prompt = Prompt { tokens, representation };
                let sample = TrainingSample::new(prompt, &targets);
                let losses = model.train(
                    workspace,
                    &[sample],
                    &TokenCrossEntropy,
                    weight,
                    &mut *gradient,
                )?;
                loss += losses.training;
            }
            Ok(loss)
        });
        losses.sum::<reclora_trainer::error::Result<f32>>()
    };
    let loss = batch()? * weight;
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < options.seconds || times.len() < 3 {
        let start = Instant::now();
        batch()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok((loss, times))
}

fn main() -> AnyResult<()> {
    let options = options()?;
    let shape = &options.shape;
    if !options.dump.is_empty() {
        dump(&options.dump, shape)?;
    }
    rayon::ThreadPoolBuilder::new().num_threads(options.threads).build_global()?;
    let temporary = tempfile::tempdir()?;
    let given = Path::new(&options.model);
    let dir = if options.model.is_empty() { temporary.path() } else { given };
    let backbone = load_model(dir, shape, options.weights)?;
    let peak = gemm_peak(options.threads, options.weights);
    let adapter = Adapter::new(backbone.config(), &options.adapter, REPRESENTATION, 1)?;
    let model = AdaptedModel::new(&backbone, &adapter);
    let (loss, times) = measure(&model, adapter.num_parameters(), &options)?;
    let speed = |time: f64| (shape.batch * shape.sequence) as f64 / time;
    let median = speed(times[times.len() / 2]);
    let needed = shape.flop_per_token();
    let result = serde_json::json!({
        "shape": options.shape_name,
        "layers": shape.layers,
        "sequence": shape.sequence,
        "adapter": options.adapter_name,
        "weights": options.weights,
        "recompute": options.recompute,
        "loss": loss,
        "threads": options.threads,
        "batches": times.len(),
        "tokens_per_second": median.round(),
        "tokens_per_second_best": speed(times[0]).round(),
        "peak_rss_mib": peak_resident_mib()?.round(),
        "gemm_peak_gflops": peak.round(),
        "mflop_per_token": (needed / 1e4).round() / 100.0,
        "share_of_gemm_peak": (median * needed / peak / 1e7).round() / 100.0,
    });
    println!("{result}");
    Ok(())
}
