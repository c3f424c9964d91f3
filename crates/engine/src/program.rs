use std::io;
use std::path::{Path, PathBuf};

/// Where Linux shows a process the file it runs, also when that was replaced or removed since.
const SELF: &str = "/proc/self/exe";

/// The program that runs, to start it again as a child. On Linux it is the very file this process was started
/// from, also after an upgrade has put another one in its place; elsewhere, what stands at its path now.
///
/// # Errors
/// The system does not say which program runs.
pub fn this_program() -> io::Result<PathBuf> {
    let own = Path::new(SELF);
    if own.exists() { Ok(own.to_owned()) } else { std::env::current_exe() }
}
