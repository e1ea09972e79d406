use super::*;
use crate::monitor::gpu::{MEMORY_TOTAL, MEMORY_USED, TENSOR_ACTIVE, UTILIZATION};
use crate::monitor::sample::{Gpu, Process, Reading};

/// Ten seconds of ranks with these shares of the time per phase.
fn seconds(shares: &[[f64; 5]]) -> Window {
    let sample = |time: u32| {
        let rank = |(rank, shares): (usize, &[f64; 5])| Rank {
            rank,
            pid: rank as u32 + 1,
            task: "tune".into(),
            done: time.into(),
            measures: reclora_trainer::telemetry::measure::Measures {
                seconds: shares.map(|share| share * f64::from(time)),
                ..Default::default()
            },
            process: Some(Process { state: 'R', cpu: f64::from(time), ..Process::default() }),
            ..Rank::default()
        };
        Sample {
            time: 1000.0 + f64::from(time),
            cores: 4,
            busy: f64::from(time) * shares.len() as f64,
            memory: (1, 100),
            ranks: shares.iter().enumerate().map(rank).collect(),
            ..Sample::default()
        }
    };
    Window::new("node_0", (0..=10).map(sample).collect())
}

fn kinds(window: Window) -> Vec<(Kind, Option<usize>)> {
    let now = window.last().map_or(0.0, |sample| sample.time + 1.0);
    diagnose(&[window], now).into_iter().map(|verdict| (verdict.kind, verdict.rank)).collect()
}

#[test]
fn the_pace_of_ranks() {
    let even = |share: [f64; 5]| seconds(&[share, share]);
    let cases = [
        (even([0.0, 0.3, 0.5, 0.1, 0.0]), vec![(Kind::ComputeBound, None)]),
        (even([0.0, 0.2, 0.2, 0.5, 0.0]), vec![(Kind::CommunicationBound, None)]),
        (even([0.8, 0.1, 0.0, 0.0, 0.0]), vec![(Kind::DataBound, None)]),
        // Prepared ahead, while computing goes on.
        (even([0.8, 0.4, 0.5, 0.0, 0.0]), vec![(Kind::ComputeBound, None)]),
        (even([0.1, 0.2, 0.2, 0.1, 0.1]), vec![]),
        (
            seconds(&[[0.0, 0.2, 0.2, 0.6, 0.0], [0.0, 0.2, 0.7, 0.05, 0.0]]),
            vec![(Kind::Straggler, Some(1))],
        ),
        (seconds(&[]), vec![]),
    ];
    for (window, expected) in cases {
        assert_eq!(kinds(window.clone()), expected, "{:?}", window.last());
    }
    let window = seconds(&[[0.0, 0.2, 0.2, 0.6, 0.0], [0.6, 0.2, 0.2, 0.0, 0.0]]);
    assert!(diagnose(&[window], 1011.0)[0].figures.contains("more of the time in data"));
}

#[test]
fn too_short_to_judge() {
    let mut window = seconds(&[[0.0, 0.2, 0.2, 0.6, 0.0]; 2]);
    window.samples.drain(..5);
    assert_eq!(kinds(window), []);
    // A new task.
    let mut window = seconds(&[[0.0, 0.2, 0.2, 0.6, 0.0]; 2]);
    for rank in &mut window.samples.last_mut().unwrap().ranks {
        rank.task = "other".into();
    }
    assert_eq!(kinds(window), []);
}

#[test]
fn a_stopped_rank_explains_that_the_others_wait() {
    let mut window = seconds(&[[0.0, 0.0, 0.0, 1.0, 0.0], [0.0; 5]]);
    let rank = &mut window.samples.last_mut().unwrap().ranks[1];
    rank.silent = 6.0;
    rank.process.as_mut().unwrap().state = 'T';
    assert_eq!(kinds(window.clone()), [(Kind::Stalled, Some(1))]);
    // Long over: nothing is said of what was.
    assert_eq!(diagnose(&[window], 2000.0), []);
}

#[test]
fn a_node_of_which_nothing_comes() {
    let (mut quiet, other) = (seconds(&[[0.0; 5]]), seconds(&[[0.0; 5]]));
    quiet.samples.iter_mut().for_each(|sample| sample.time -= 12.0);
    let verdicts = diagnose(&[quiet, other], 1011.0);
    assert_eq!((verdicts.len(), verdicts[0].kind), (1, Kind::Stalled));
    assert!(verdicts[0].figures.contains("12 s"), "{}", verdicts[0].figures);
    // Its launcher ended in peace, or long ago.
    let (mut ended, other) = (seconds(&[[0.0; 5]]), seconds(&[[0.0; 5]]));
    ended.samples.iter_mut().for_each(|sample| sample.time -= 200.0);
    assert_eq!(diagnose(&[ended.clone(), other.clone()], 1011.0), []);
    ended.samples.iter_mut().for_each(|sample| sample.time += 188.0);
    ended.samples.last_mut().unwrap().ranks.clear();
    assert_eq!(diagnose(&[ended, other], 1011.0), []);
}

#[test]
fn ranks_that_have_ended_do_not_count() {
    let mut window = seconds(&[[0.0, 0.2, 0.2, 0.6, 0.0], [0.0; 5]]);
    assert_eq!(kinds(window.clone()), [(Kind::Straggler, Some(1))]);
    window.samples.last_mut().unwrap().ranks[1].process = None;
    assert_eq!(kinds(window), [(Kind::CommunicationBound, None)]);
}

#[test]
fn cores_that_others_use() {
    let mut window = seconds(&[[0.0, 0.4, 0.5, 0.1, 0.0]]);
    for (time, sample) in window.samples.iter_mut().enumerate() {
        sample.busy = 4.0 * time as f64;
        let process = sample.ranks[0].process.as_mut().unwrap();
        (process.cpu, process.queued) = (0.5 * time as f64, 0.5 * time as f64);
    }
    assert_eq!(kinds(window.clone()), [(Kind::Throttled, None)]);
    // Its own threads wait for each other: nobody else is to blame.
    window
        .samples
        .iter_mut()
        .enumerate()
        .for_each(|(time, sample)| sample.busy = 0.6 * time as f64);
    assert_eq!(kinds(window), [(Kind::ComputeBound, None)]);
}

#[test]
fn gpus() {
    let gpu = |used: f64, utilization: f64| Gpu {
        counters: [(MEMORY_USED, used), (MEMORY_TOTAL, 100.0), (UTILIZATION, utilization)]
            .map(|(name, value)| (name.to_owned(), Reading::Value(value)))
            .into(),
        ..Gpu::default()
    };
    let kinds_of = |gpu: Gpu| {
        let mut window = seconds(&[]);
        window.samples.iter_mut().for_each(|sample| sample.gpus = vec![gpu.clone()]);
        kinds(window)
    };
    let hot = vec!["temperature".to_owned()];
    assert_eq!(kinds_of(gpu(50.0, 90.0)), []);
    assert_eq!(kinds_of(gpu(96.0, 90.0)), [(Kind::MemoryNearLimit, None)]);
    let throttled = Gpu { throttled_by: hot.clone(), ..gpu(50.0, 90.0) };
    assert_eq!(kinds_of(throttled), [(Kind::Throttled, None)]);
    assert_eq!(kinds_of(Gpu { throttled_by: hot, ..gpu(50.0, 0.0) }), [], "nothing to do");
    let lost = Gpu { lost: Some("GPU is lost".into()), ..Gpu::default() };
    assert_eq!(kinds_of(lost), [(Kind::GpuLost, None)]);
}

#[test]
fn a_busy_gpu_without_a_step_hangs() {
    let window = |done: fn(u32) -> u64, tensor: Option<f64>| {
        let sample = |time: u32| {
            let mut gpu = Gpu { processes: vec![(7, 1)], ..Gpu::default() };
            gpu.counters.insert(UTILIZATION.into(), Reading::Value(100.0));
            let tensor = tensor.map_or(Reading::Missing("not supported".into()), Reading::Value);
            gpu.counters.insert(TENSOR_ACTIVE.into(), tensor);
            let process = Some(Process { state: 'S', ..Process::default() });
            let rank = Rank { rank: 3, pid: 7, done: done(time), process, ..Rank::default() };
            Sample {
                time: 1000.0 + f64::from(time),
                memory: (1, 100),
                gpus: vec![gpu],
                ranks: vec![rank],
                ..Sample::default()
            }
        };
        Window::new("node_0", (0..=14).map(sample).collect())
    };
    assert_eq!(kinds(window(|_| 5, Some(0.0))), [(Kind::Stalled, Some(3))]);
    // Works; is busy with something else; can't be known.
    assert_eq!(kinds(window(|time| time.into(), Some(0.0))), []);
    assert_eq!(kinds(window(|_| 5, Some(40.0))), []);
    assert_eq!(kinds(window(|_| 5, None)), []);
}
