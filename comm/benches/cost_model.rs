//! What a tuning step of a 7B backbone would take on up to 1,024 GPUs: a prediction (`cost/`),
//! checked where it can be.
//!
//! ```sh
//! cargo bench -p reclora-comm --bench cost_model
//! ```
//!
//! First sums of several sizes are measured between processes of this machine, α and β fitted, and the
//! model held against sizes that it was not fitted on. Then it is asked about clusters whose figures are
//! assumptions, printed with the table. Arguments: `seconds=1` for each measurement, `samples=1024` (global
//! batch), `tokens=512` (of a sample), `tflops=400` (what a GPU reaches).

#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on says where")]

mod cost;
mod ranks;

use std::time::Duration;

use cost::{Link, Step};
use ranks::{median, number, start, sums, this_rank};
use reclora_comm::Communicator;

/// Sizes that are fitted, and sizes that are predicted, in values.
const FITTED: [usize; 4] = [1_000, 50_000, 1_000_000, 16_000_000];
const PREDICTED: [usize; 3] = [10_000, 300_000, 4_000_000];

/// Trained parameters for LLaMA-7B with 16 experts of rank 8 on q and v: 32 blocks, width 4096, and gates
/// that read a representation of 256.
const PARAMETERS: f64 = 68_190_976.0;
/// Weights of the frozen backbone.
const BACKBONE: f64 = 6.74e9;

fn main() {
    if let Some(mut comm) = this_rank() {
        let time = Duration::from_secs(number("seconds", "1") as u64);
        let seconds = median(&sums(&mut comm, number("length", "1"), time));
        if comm.rank() == 0 {
            println!("{seconds}");
        }
        return;
    }
    println!("Measured between processes of this machine, over loopback TCP:\n");
    println!("| ranks | bytes | measured | predicted | error |\n|-|-|-|-|-|");
    let links = [2, 4].map(|ranks| (ranks, check(ranks)));
    println!();
    for (ranks, Link { latency, per_byte }) in links {
        let (latency, rate) = (1e6 * latency, 1e-9 / per_byte);
        println!("With {ranks} ranks α = {latency:.1} µs, 1 / β = {rate:.2} GB/s.\n");
    }
    for (name, link, most) in [
        ("GPUs of one machine, NVLink (assumed: 5 µs, 150 GB/s each way)", link(5e-6, 150e9), 8),
        ("A 400 Gb/s network card for each GPU (assumed: 10 µs, 45 GB/s)", link(1e-5, 45e9), 1024),
        ("100 Gb/s for each GPU over TCP (assumed: 30 µs, 10 GB/s)", link(3e-5, 10e9), 1024),
    ] {
        predict(name, link, most);
    }
}

fn link(latency: f64, bytes_per_second: f64) -> Link {
    Link { latency, per_byte: 1.0 / bytes_per_second }
}

fn measure(ranks: usize, length: usize) -> (f64, f64) {
    let seconds = number("seconds", "1");
    let said = start(ranks, &[format!("length={length}"), format!("seconds={seconds}")]);
    ((length * size_of::<f32>()) as f64, said.trim().parse().unwrap())
}

/// Fits the link of `ranks` processes, and says how far it is off elsewhere.
fn check(ranks: usize) -> Link {
    let fitted = FITTED.map(|length| measure(ranks, length));
    let link = Link::fit(ranks, &fitted).unwrap();
    for length in PREDICTED {
        let (bytes, seconds) = measure(ranks, length);
        let predicted = link.all_reduce(ranks, bytes);
        let (error, ms) = (100.0 * (predicted / seconds - 1.0), 1e3);
        println!(
            "| {ranks} | {bytes:.0} | {:.3} ms | {:.3} ms | {error:+.0} % |",
            seconds * ms,
            predicted * ms
        );
    }
    link
}

/// The table of one kind of network, for up to `most` ranks, each with the buckets that suit it.
fn predict(name: &str, link: Link, most: usize) {
    let (samples, tokens) = (number("samples", "1024") as f64, number("tokens", "512") as f64);
    let rate = 1e12 * number("tflops", "400") as f64;
    // Forward, and backward to the inputs alone: no gradient of a frozen weight; blocks are computed again.
    let of_sample = 6.0 * BACKBONE * tokens / rate;
    let step = Step {
        compute: samples * of_sample,
        // One sample at a time: two thirds of its time are recomputing and backward.
        last_backward: of_sample * 2.0 / 3.0,
        gradient: PARAMETERS * size_of::<f32>() as f64,
        bucket: 0.0,
    };
    println!(
        "{name}; {samples:.0} samples of {tokens:.0} tokens a step, {:.0} TFLOP/s:\n",
        rate / 1e12
    );
    println!("| ranks | bucket_mib | compute | communication | exposed | step | efficiency |");
    println!("|-|-|-|-|-|-|-|");
    for world_size in (0..=10).map(|power| 1 << power).filter(|ranks| *ranks <= most) {
        let sizes = (0..=9).map(|power| 1_u32 << power);
        let with = |mib: u32| Step { bucket: f64::from(mib << 20), ..step }.on(world_size, link);
        let best = sizes.min_by(|a, b| with(*a).seconds().total_cmp(&with(*b).seconds()));
        let mib = best.unwrap_or(1);
        let on = with(mib);
        let ms = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
        println!(
            "| {world_size} | {mib} | {} | {} | {} | {} | {:.1} % |",
            ms(on.compute),
            ms(on.communication),
            ms(on.exposed),
            ms(on.seconds()),
            100.0 * on.efficiency(step, world_size)
        );
    }
    println!();
}
