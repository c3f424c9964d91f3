//! From a table of labelled rows to models that a device can run: validation, splitting, a small search over
//! model families, and export to one ONNX file each.
//!
//! The unit of work is a job folder ([`job`]): it goes in with `job.json`, `schema.json` and a CSV file, and
//! comes out with `result.json`, one folder per candidate and a progress stream. [`train_worker`] is all there
//! is to running one.
//!
//! This crate deliberately holds no database, key or socket, and decides nothing about deployment: what it
//! writes is checked again by whoever takes it in.
//!
//! Invariants:
//! - Same seed, same data, same build, same kind of CPU: byte-identical ONNX files. Random numbers come from
//!   [`rng`] alone, sums run in a fixed order, and the budget is counted in trials, never in seconds.
//! - Preprocessing lies inside the graph; there is no label output, classes are read off the scores.
//! - No candidate is reported before the engine gave the native model's answers on every hold-out row.
//! - A job cut at any point and started again keeps its finished trials and ends with the same files.
//!
//! ```
//! use dunlin_learn::rng::Rng;
//! let draw = |seed| Rng::new(seed, "shuffle").below(1_000_000);
//! assert_eq!(draw(7), draw(7));
//! assert_ne!(draw(7), draw(8));
//! ```

mod config;
pub mod data;
mod disk;
mod error;
mod export;
mod family;
pub mod job;
mod lbfgs;
mod onnx;
pub mod result;
pub mod rng;
mod scaling;
mod search;
pub mod split;
mod worker;

pub use config::{Config, Family};
pub use error::LearnError;
pub use family::{Fit, Model, fit};
pub use worker::train_worker;

/// Release of the trainer, recorded in every result.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
