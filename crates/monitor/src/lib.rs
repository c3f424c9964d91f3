//! Dunlin monitor.
