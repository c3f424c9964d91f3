//! The engine by its public face: one program for all of it, as each would link all of tract.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod batch;
mod classifiers;
mod explain;
mod features;
mod hostile;
mod import;
mod models;
mod operators;
mod rows;
mod support;
mod targets;
