//! The controller on real files, sockets and databases: one program for all of it, as each would link the whole controller.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test that can not go on fails; packets of a foreign crate"
)]

mod control;
mod document;
mod fleet;
mod model_cli;
mod registry;
mod repositories;
mod repository_http;
