//! `dunlin-mute`: finds itself sound as an agent does, and then is not heard of: what a device must leave again.
//!
//! The variable `MUTE` says how. `hangs` stands still; `waits` stands still until there is a file at `MUTE_GATE`, and then
//! becomes the agent at `MUTE_AGENT`; anything else ends at once.
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use dunlin_agent::update::{SELF_TEST, SOUND};

fn main() -> ExitCode {
    dunlin_engine::end_with_parent();
    if std::env::args().any(|word| word == SELF_TEST) {
        let said = writeln!(std::io::stdout(), "{SOUND}");
        return if said.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    let (how, gate) = (variable("MUTE"), variable("MUTE_GATE"));
    let stands_still = || how == "hangs" || (how == "waits" && !Path::new(&gate).exists());
    while stands_still() {
        std::thread::sleep(Duration::from_millis(50));
    }
    if how != "waits" {
        return ExitCode::SUCCESS;
    }
    let error = Command::new(variable("MUTE_AGENT")).args(std::env::args_os().skip(1)).exec();
    drop(writeln!(std::io::stderr(), "the agent could not be started: {error}"));
    ExitCode::FAILURE
}
