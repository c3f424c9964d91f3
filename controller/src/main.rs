//! `dunlin`: command line and daemon of the control plane.
use std::process::ExitCode;

use clap::Parser;
use dunlin_controller::cli::Cli;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("the process installs its TLS provider once, here");
    Cli::parse().execute()
}
