//! Dunlin select.
