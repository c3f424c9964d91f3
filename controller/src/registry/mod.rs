//! Models and their blobs.

/// The registry.
#[derive(Debug, Default)]
pub struct Registry;
