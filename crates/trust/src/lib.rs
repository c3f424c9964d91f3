//! Dunlin trust.
