//! `dunlin-agent`: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use dunlin_agent::cli::{self, Cli};
use dunlin_agent::update;

pub(crate) fn main() -> ExitCode {
    dunlin_engine::end_with_parent();
    // The prover's child must be this binary and nothing but a prover: it sets its limits before anything else.
    let verb = std::env::args_os().nth(1);
    if verb.as_ref().is_some_and(|verb| verb == cli::ENGINE_CHILD) {
        return dunlin_engine::prove::child_main();
    }
    if verb.is_some_and(|verb| verb == cli::WATCH) {
        return update::watch();
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    cli::main(Cli::parse_from(update::words()))
}
