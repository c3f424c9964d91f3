//! The children of a proof and of a batch, as a program of their own: what the hidden verbs of the agent and the
//! controller do.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("batch-child") {
        return dunlin_engine::batch::child_main();
    }
    dunlin_engine::prove::intake_main()
}
