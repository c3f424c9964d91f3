//! `dunlin`: command line and daemon of the control plane.
use std::process::ExitCode;

use clap::Parser;
use dunlin_controller::cli::Cli;

pub(crate) fn main() -> ExitCode {
    dunlin_engine::end_with_parent();
    // A proof comes first: the child sets limits on itself before anything else runs, and needs no TLS.
    if std::env::args().nth(1).as_deref() == Some(dunlin_controller::registry::ENGINE_CHILD) {
        return dunlin_controller::registry::engine_child();
    }
    if std::env::args().nth(1).as_deref() == Some(dunlin_controller::batch::CHILD) {
        return dunlin_engine::batch::child_main();
    }
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("the process installs its TLS provider once, here");
    Cli::parse().execute()
}
