//! Dunlin tests.
