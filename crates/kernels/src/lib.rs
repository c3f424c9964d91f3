//! What this program computes for itself instead of through tract's kernels.
//!
//! A crate of its own, as it is compiled for speed where the rest of a device's program is compiled for size. Nothing here
//! is generic to the outside, or it would be compiled where it is used.
#![forbid(unsafe_code)]

pub mod forest;
mod steps;

pub use steps::Steps;
