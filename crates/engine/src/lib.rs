//! Dunlin engine.
