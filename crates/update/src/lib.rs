//! Dunlin update.
