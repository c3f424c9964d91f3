//! Dunlin rollout.
