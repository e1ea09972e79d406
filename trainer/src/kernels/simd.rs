//! Run-time choice of the instruction set, and the few primitives kernels are made of.

/// Elements handled side by side: one AVX-512 register, two AVX2 registers.
pub const LANES: usize = 16;

/// `a * b + c`: fused where the instruction set has it (`FMA`), two roundings elsewhere (a fused
/// multiply-add without hardware is a slow library call).
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adding and subtracting this rounds a small `f32` to the nearest integer, and leaves that integer
/// in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;

/// `2^n` for the integer in the low bits of `n + ROUND`; exactly 0 for `n = -127`.
#[inline(always)]
fn power_of_two(rounded: f32) -> f32 {
    f32::from_bits(rounded.to_bits().wrapping_shl(23).wrapping_add(127 << 23))
}

/// `2^x` for `x <= 0` to about 2 ulp; exactly 0 for `x <= -127` (so masked entries vanish), where
/// the true value would be subnormal. NaN stays NaN.
#[inline(always)]
pub fn exp2_nonpositive<const FMA: bool>(x: f32) -> f32 {
    let x = if x < -127.0 { -127.0 } else { x };
    let rounded = x + ROUND;
    let f = x - (rounded - ROUND);
    let mut p = 1.535_336_2e-4;
    p = fma::<FMA>(p, f, 1.339_887_4e-3);
    p = fma::<FMA>(p, f, 9.618_437e-3);
    p = fma::<FMA>(p, f, 5.550_332_4e-2);
    p = fma::<FMA>(p, f, 2.402_264_8e-1);
    p = fma::<FMA>(p, f, std::f32::consts::LN_2);
    p = fma::<FMA>(p, f, 1.0);
    p * power_of_two(rounded)
}

/// `e^x` to about 2 ulp, clamped to the normal range of `f32` (x in -87..88). NaN stays NaN.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    // Written so that NaN passes both comparisons unchanged.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let rounded = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    // ln 2 in two parts (the first exact in few bits), so that x - n ln 2 loses nothing.
    let f = fma::<FMA>(n, -0.693_359_4, x);
    let f = fma::<FMA>(n, 2.121_944_4e-4, f);
    let mut p = 1.987_569_1e-4;
    p = fma::<FMA>(p, f, 1.398_199_9e-3);
    p = fma::<FMA>(p, f, 8.333_452e-3);
    p = fma::<FMA>(p, f, 4.166_579_6e-2);
    p = fma::<FMA>(p, f, 1.666_666_5e-1);
    p = fma::<FMA>(p, f, 0.5);
    let e = fma::<FMA>(p, f * f, f + 1.0);
    e * power_of_two(rounded)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Defines a public kernel from a generic body `fn body<const FMA: bool>(...)`, compiled for each
/// instruction set and chosen at run time. The choice is the same in every process on a machine.
macro_rules! kernel {
    ($(#[$meta:meta])* pub fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "kernels take plain slices and sizes")]
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: this machine has AVX-512F, the only requirement of `avx512`.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: this machine has AVX2 and FMA, the only requirements of `avx2`.
                    return unsafe { avx2($($arg),*) };
                }
            }
            // Elsewhere (64-bit ARM) fused multiply-add is part of the baseline.
            $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use kernel;

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(a: f32, exact: f64) -> f64 {
        let e = exact as f32;
        let ulp = f64::from(f32::from_bits(e.to_bits() + 1)) - f64::from(e);
        (f64::from(a) - exact).abs() / ulp
    }

    #[test]
    fn exponentials_are_accurate() {
        let (mut worst2, mut worst) = (0.0f64, 0.0f64);
        for i in 0..400_000 {
            let x = -126.0 * (i as f32) / 400_000.0;
            for y in [exp2_nonpositive::<true>(x), exp2_nonpositive::<false>(x)] {
                worst2 = worst2.max(ulps(y, f64::from(x).exp2()));
            }
            let x = -87.0 + 175.0 * (i as f32) / 400_000.0;
            for y in [exp::<true>(x), exp::<false>(x)] {
                worst = worst.max(ulps(y, f64::from(x).exp()));
            }
        }
        assert!(worst2 <= 2.5 && worst <= 2.5, "exp2: {worst2} ulp, exp: {worst} ulp");
    }

    #[test]
    fn exponentials_at_the_edges() {
        assert_eq!(exp2_nonpositive::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2_nonpositive::<true>(-127.0), 0.0);
        assert_eq!(exp2_nonpositive::<false>(0.0), 1.0);
        assert_eq!(exp::<false>(0.0), 1.0);
        assert!(exp::<true>(f32::NAN).is_nan());
        assert_eq!(sigmoid::<true>(0.0), 0.5);
        assert!(sigmoid::<true>(-1e9) >= 0.0 && sigmoid::<true>(1e9) == 1.0);
    }
}
