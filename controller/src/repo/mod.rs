//! TUF repositories on disk.

/// The repositories.
#[derive(Debug, Default)]
pub struct Repos;
