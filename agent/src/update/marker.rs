use std::io;
use std::path::{Path, PathBuf};

use dunlin_update::Stop;

use super::twin::write_or_overwrite;

/// Where Linux tells one boot of the board from the next.
pub(crate) const KERNEL_BOOT: &str = "/proc/sys/kernel/random/boot_id";
const NAME: &str = "running";
/// What the file says after an orderly end. The file itself stays, so that a full disk has room for the next mark.
const ORDERLY: &str = "orderly";

/// A file that names the board's boot while the agent runs, so that the next start knows how this one ended.
#[derive(Debug)]
pub(super) struct Marker {
    dir: PathBuf,
}

impl Marker {
    /// Reads how the process before ended and marks this one as running.
    pub(super) fn set(dir: &Path) -> io::Result<(Self, Stop)> {
        let boot = std::fs::read(KERNEL_BOOT).unwrap_or_default();
        let path = dir.join(NAME);
        let stop = match std::fs::read(&path) {
            Ok(before) if before == ORDERLY.as_bytes() => Stop::Orderly,
            Ok(before) if before == boot => Stop::Crashed,
            // Another boot, or what a power cut left of a write.
            Ok(_) => Stop::PowerLost,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Stop::Orderly,
            Err(e) => return Err(e),
        };
        write_or_overwrite(dir, NAME, &boot)?;
        Ok((Self { dir: dir.to_path_buf() }, stop))
    }

    /// The end is orderly.
    pub(super) fn clear(&self) -> io::Result<()> {
        Self::settled(&self.dir)
    }

    /// The last end is as good as orderly: it is laid to somebody's charge already.
    pub(super) fn settled(dir: &Path) -> io::Result<()> {
        write_or_overwrite(dir, NAME, ORDERLY.as_bytes())
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
        for left in [&b"another boot\n"[..], b"", b"\xff\xfe\0"] {
            std::fs::write(dir.path().join(NAME), left).unwrap();
            assert_eq!(Marker::set(dir.path()).unwrap().1, Stop::PowerLost);
        }
        marker.clear().unwrap();
        assert_eq!(Marker::set(dir.path()).unwrap().1, Stop::Orderly);
    }
}
