//! Dunlin pipeline.
