//! Placeholder of `evidence`.
