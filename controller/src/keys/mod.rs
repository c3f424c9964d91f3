//! Placeholder of `keys`.
