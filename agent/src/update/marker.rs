use std::io;
use std::path::{Path, PathBuf};

use dunlin_update::Stop;

use super::twin::write_durably;

/// Where Linux tells one boot of the board from the next.
const KERNEL_BOOT: &str = "/proc/sys/kernel/random/boot_id";
const NAME: &str = "running";

/// A file that is there while the agent runs, so that the next start knows how this one ended.
#[derive(Debug)]
pub(super) struct Marker {
    path: PathBuf,
}

impl Marker {
    /// Reads how the process before ended and marks this one as running.
    pub(super) fn set(dir: &Path) -> io::Result<(Self, Stop)> {
        let boot = std::fs::read_to_string(KERNEL_BOOT).unwrap_or_default();
        let path = dir.join(NAME);
        let stop = match std::fs::read_to_string(&path) {
            Ok(before) if before == boot => Stop::Crashed,
            Ok(_) => Stop::PowerLost,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Stop::Orderly,
            Err(e) => return Err(e),
        };
        write_durably(dir, NAME, boot.as_bytes())?;
        Ok((Self { path }, stop))
    }

    /// The end is orderly.
    pub(super) fn clear(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_a_power_cut_and_an_orderly_end_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Marker::set(dir.path()).unwrap().1, Stop::Orderly);
        let (marker, stop) = Marker::set(dir.path()).unwrap();
        assert_eq!(stop, Stop::Crashed);
        std::fs::write(dir.path().join(NAME), "another boot\n").unwrap();
        assert_eq!(Marker::set(dir.path()).unwrap().1, Stop::PowerLost);
        marker.clear().unwrap();
        assert_eq!(Marker::set(dir.path()).unwrap().1, Stop::Orderly);
    }
}
