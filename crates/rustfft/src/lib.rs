//! The part of the interface of the crate `rustfft` that tract is compiled against, over a transform that is right and
//! slow.
//!
//! No operator of [`dunlin_engine::supported_ops`](../dunlin_engine/fn.supported_ops.html) transforms, so this code is
//! linked and never called; the real crate brings 1.5 MB of vector kernels into a program for small devices.
//! It deliberately does not do more than the definition: `X[k] = Σ x[n] e^(∓2πi kn/N)`, forward with the minus sign,
//! unscaled both ways, as the real crate does.
//!
//! ```
//! use rustfft::{FftPlanner, num_complex::Complex};
//! let mut x = [Complex::new(1.0_f32, 0.0), Complex::new(0.0, 0.0)];
//! FftPlanner::new().plan_fft_forward(2).process(&mut x);
//! assert_eq!(x, [Complex::new(1.0, 0.0), Complex::new(1.0, 0.0)]);
//! ```

pub use num_complex;
pub use num_traits;

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use num_complex::Complex;
use num_traits::{FromPrimitive, Num, Signed};

/// Numbers that can be transformed.
pub trait FftNum: Copy + FromPrimitive + Num + Signed + Sync + Send + Debug + 'static {}

impl<T: Copy + FromPrimitive + Num + Signed + Sync + Send + Debug + 'static> FftNum for T {}

/// Which way to transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FftDirection {
    /// From time to frequency.
    Forward,
    /// Back, without dividing by the length.
    Inverse,
}

/// Makes transforms.
#[derive(Debug)]
pub struct FftPlanner<T>(PhantomData<T>);

impl<T: FftNum> FftPlanner<T> {
    /// A planner.
    #[allow(clippy::new_without_default, reason = "the interface of another crate")]
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// A transform of `len` values.
    pub fn plan_fft(&mut self, len: usize, direction: FftDirection) -> Arc<Dft<T>> {
        let sign = match direction {
            FftDirection::Forward => -1.0,
            FftDirection::Inverse => 1.0,
        };
        let number = |x: f64| T::from_f64(x).unwrap_or_else(T::zero);
        let angle = |i: usize| sign * std::f64::consts::TAU * i as f64 / len as f64;
        Arc::new(Dft((0..len)
            .map(|i| Complex::new(number(angle(i).cos()), number(angle(i).sin())))
            .collect()))
    }

    /// A forward transform of `len` values.
    pub fn plan_fft_forward(&mut self, len: usize) -> Arc<Dft<T>> {
        self.plan_fft(len, FftDirection::Forward)
    }

    /// An inverse transform of `len` values.
    pub fn plan_fft_inverse(&mut self, len: usize) -> Arc<Dft<T>> {
        self.plan_fft(len, FftDirection::Inverse)
    }
}

/// A transform of one length and direction: the roots of unity.
#[derive(Debug)]
pub struct Dft<T>(Vec<Complex<T>>);

impl<T: FftNum> Dft<T> {
    /// Transforms each run of the transform's length in place; a rest that is shorter stays as it is.
    pub fn process(&self, buffer: &mut [Complex<T>]) {
        let Self(roots) = self;
        for run in buffer.chunks_exact_mut(roots.len().max(1)) {
            let frequency = |k: usize| {
                let parts = run.iter().enumerate().map(|(n, x)| *x * roots[k * n % roots.len()]);
                parts.fold(Complex::new(T::zero(), T::zero()), |sum, part| sum + part)
            };
            let made: Vec<_> = (0..roots.len()).map(frequency).collect();
            run[..made.len()].copy_from_slice(&made);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_is_one_frequency_and_comes_back_times_its_length() {
        let wave: Vec<Complex<f64>> = (0..12)
            .map(|n| Complex::from_polar(1.0, std::f64::consts::TAU * 5.0 * f64::from(n) / 12.0))
            .collect();
        let mut x = wave.clone();
        FftPlanner::new().plan_fft_forward(12).process(&mut x);
        for (k, x) in x.iter().enumerate() {
            assert!((x - Complex::new(if k == 5 { 12.0 } else { 0.0 }, 0.0)).norm() < 1e-9, "{k}: {x}");
        }
        FftPlanner::new().plan_fft_inverse(12).process(&mut x);
        for (x, wave) in x.iter().zip(&wave) {
            assert!((x / 12.0 - wave).norm() < 1e-9);
        }
    }
}
