//! The client workflow of the specification against attacks and odd repositories: each must be refused for its own
//! reason and change nothing.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests, some of which serve files"
)]

// The example is a client of static files; here it runs against a server that writes down what it is asked for.
#[path = "../../examples/tuf-client/client.rs"]
mod client;
mod client_requests;
mod delegation_graphs;
mod delegations;
mod expiry;
#[path = "../forge/mod.rs"]
mod forge;
mod form;
#[path = "../../examples/tuf-client/http.rs"]
mod http;
mod key_types;
mod program;
mod roots;
mod server;
mod signatures;
mod versions;

use dunlin_protocol::{ReasonCode, RepoFiles};
use dunlin_trust::{TrustError, TrustedRepo};

/// The update is refused for this reason, and nothing changed.
#[track_caller]
fn refused(repo: &mut TrustedRepo, files: &RepoFiles, reason: ReasonCode) -> TrustError {
    let before = (repo.stored(), repo.versions(), repo.floors());
    let error = repo.update(files, forge::now()).unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
    assert_eq!((repo.stored(), repo.versions(), repo.floors()), before, "a refused update changed something");
    error
}
