use std::io;
use std::path::{Path, PathBuf};

use dunlin_update::Stop;

use super::twin::write_or_overwrite;
use crate::damage;

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
        Self::set_with(dir, &|path| std::fs::read(path))
    }

    /// The same, with a way to read files.
    fn set_with(dir: &Path, read: &dyn Fn(&Path) -> io::Result<Vec<u8>>) -> io::Result<(Self, Stop)> {
        let boot = std::fs::read(KERNEL_BOOT).unwrap_or_default();
        let stop = match damage::held(read(&dir.join(NAME)))? {
            None => Stop::Orderly,
            Some(before) if before == ORDERLY.as_bytes() => Stop::Orderly,
            Some(before) if before == boot => Stop::Crashed,
            // Another boot, or what a power cut or a bad sector left of a write.
            Some(_) => Stop::PowerLost,
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
    use rustix::io::Errno;

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

    #[test]
    fn a_bad_sector_reads_as_a_power_cut_and_a_wrong_owner_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        drop(Marker::set(dir.path()).unwrap());
        let wrong_owner = damage::reading(Errno::ACCESS, |_| true);
        assert!(Marker::set_with(dir.path(), &wrong_owner).is_err());
        let bad_sector = damage::reading(Errno::IO, |_| true);
        assert_eq!(Marker::set_with(dir.path(), &bad_sector).unwrap().1, Stop::PowerLost);
        assert_eq!(Marker::set(dir.path()).unwrap().1, Stop::Crashed, "it was written anew");
    }
}
