//! Counters for `/metrics`.

/// The counters.
#[derive(Debug, Default)]
pub struct Metrics;
