//! From ceremony to device, on real files.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod delegation;
mod export;
mod foreign;
mod publishing;
mod rotation;
mod signing;
mod verbs;
mod withdrawal;
mod world;
