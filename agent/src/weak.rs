//! `dunlin-agent-weak`: `dunlin-agent` with switches that turn its defences off, for the tests of the checks.
#[path = "main.rs"]
mod ordinary;

fn main() -> std::process::ExitCode {
    dunlin_protocol::weaken::announce();
    ordinary::main()
}
