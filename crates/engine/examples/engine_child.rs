//! The child of a proof, as a program of its own: what the hidden verb of the agent and the controller does.

use std::process::ExitCode;

fn main() -> ExitCode {
    dunlin_engine::prove::child_main()
}
