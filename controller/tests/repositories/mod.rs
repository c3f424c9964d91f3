//! From ceremony to device, on real files.

mod delegation;
mod export;
mod foreign;
mod publishing;
mod rotation;
mod signing;
mod verbs;
mod withdrawal;
mod world;

pub(crate) use world::enrol;
