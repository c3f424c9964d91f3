//! Dunlin learn.
