//! Programs that end with the process that started them.
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, getpid, getppid, test_kill_process};

/// Environment variable with the id of the process that a program shall not outlive.
const VARIABLE: &str = "ENDS_WITH_PROCESS";

/// Put into the environment of a child whose main calls [`end_with_parent`], this ties it to the present process. Start
/// it from a thread that lives as long as it does: the system means the thread when it says parent.
pub fn tie() -> (&'static str, String) {
    (VARIABLE, getpid().as_raw_nonzero().to_string())
}

/// A program with `verb`, tied to the present process, that knows nothing of its environment and is talked to over its
/// standard input and output.
pub(crate) fn child(exe: &Path, verb: &str) -> Command {
    let mut command = Command::new(exe);
    command.arg(verb).env_clear().envs([tie()]).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Has the system kill this process when the one that started it ends, however that ends, if it was [tied](tie) to
/// it. To be called before anything else.
pub fn end_with_parent() {
    let named = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    let Some(parent) = named.and_then(Pid::from_raw) else { return };
    // A grandchild inherits the variable and is not meant.
    if getppid() == Some(parent) {
        bind();
    }
    // It may have ended before the system was asked.
    if getppid() != Some(parent) && !runs(parent) {
        std::process::exit(1);
    }
}

/// Whether a process has not ended. One that nobody has asked yet how it ended still has its id.
fn runs(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    // The name of the program stands in brackets, and may hold any text.
    let state = stat.ok().and_then(|stat| stat.rsplit_once(") ")?.1.chars().next());
    test_kill_process(process).is_ok() && !matches!(state, Some('Z' | 'X'))
}

#[cfg(target_os = "linux")]
fn bind() {
    // What the system refuses leaves a program that ends by itself, as any other does.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
}

#[cfg(not(target_os = "linux"))]
fn bind() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_that_ended_does_not_run_though_nobody_asked_how() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(runs(pid));
        child.kill().unwrap();
        let begin = Instant::now();
        while runs(pid) {
            assert!(begin.elapsed() < Duration::from_secs(60), "it still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(!runs(pid));
    }
}
