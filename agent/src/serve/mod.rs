//! Resident models and the answers they give.
