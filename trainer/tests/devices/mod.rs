//! The devices that everything is checked on: candle's CPU device, and CUDA device 0 (without a GPU:
//! under `scripts/gpu-sim/run.sh`, which simulates one).

use std::sync::LazyLock;

use candle_core::Device;

pub fn devices() -> [(&'static str, Device); 2] {
    static CUDA: LazyLock<Device> = LazyLock::new(|| Device::new_cuda_with_stream(0).unwrap());
    [("CPU", Device::Cpu), ("CUDA", CUDA.clone())]
}

/// Equal up to `relative` of the largest expected value.
pub fn assert_near(got: &[f32], expected: &[f32], relative: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    assert!(largest > 1e-6, "{what}: nothing to compare: {largest}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= relative * largest, "{what}, {index}: {got} for {expected} of {largest}");
    }
}
