//! Numeric kernels: plain functions on `f32` slices, row-major unless a stride says otherwise.
//!
//! Every kernel runs on the calling thread and in one fixed order, so its result is a pure function
//! of its inputs on one machine: callers get their parallelism from running different samples on
//! different threads. Loops are written so that the compiler can vectorise them; `simd` compiles
//! each one for AVX-512, AVX2 + FMA and the baseline, and picks at run time.
//!
//! Kernels trust their callers (the model checks every input once): a slice of the wrong length is a
//! bug in this crate and panics.

pub mod attention;
pub mod attention_grad;
pub mod bf16;
#[cfg(target_arch = "x86_64")]
mod bf16_avx512;
pub mod buffer;
#[cfg(target_arch = "x86_64")]
mod f32_avx512;
mod factors;
pub mod frozen;
mod frozen_f32;
pub mod heads;
#[cfg(target_arch = "x86_64")]
mod lanes_avx512;
pub mod matmul;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only the AVX-512 code behind it uses its buffers")
)]
pub mod packed;
#[cfg(target_arch = "x86_64")]
mod packed_avx512;
#[cfg(test)]
mod packed_tests;
pub mod pointwise;
pub mod q8_0;
mod simd;
#[cfg(test)]
#[path = "../../../tests/skip.rs"]
mod skip;
pub mod small_matmul;
#[cfg(target_arch = "x86_64")]
mod small_matmul_avx512;

pub use frozen::{FrozenBuffers, FrozenMat, FrozenValues, project, project_grad};
pub use matmul::{Mat, matmul};
pub use packed::PackedWeight;
