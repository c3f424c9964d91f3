//! End to end, with real processes on loopback: one program for all of it, as each would link a whole fleet.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod airgap;
mod alone;
mod attacks;
mod bad_controller;
mod bad_input;
mod bad_models;
#[cfg(feature = "weaken")]
mod controls;
mod crashes;
mod cuts;
mod demo;
mod identity;
mod inference;
mod lineups;
mod main_loop;
mod mosquitto;
mod packing;
mod pipeline;
mod program;
mod supervised;
mod task_signers;
mod versions;
