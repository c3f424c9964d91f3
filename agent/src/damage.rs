//! What of a file is lost on its medium, told from what is only out of reach.
use std::io::{self, ErrorKind};

use rustix::io::Errno;

/// Whether a file could not be read because the medium does not give it back: a bad sector, or a checksum of the file system
/// that does not hold. A wrong owner or a full disk is no damage: nothing of the file is lost.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN))
}

/// What a file holds, from the answer of reading it: `None` if there is none. A damaged one holds nothing, as one that was
/// torn at its first byte.
///
/// # Errors
/// It is there, and nothing says that it is damaged.
pub(crate) fn held(answer: io::Result<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    match answer {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if is_damage(&error) => Ok(Some(Vec::new())),
        Err(error) => Err(error),
    }
}

/// Reading as a medium does it that does not give back the files `bad` names: with this error, as a bad sector gives.
#[cfg(test)]
pub(crate) fn reading(
    error: Errno,
    bad: impl Fn(&str) -> bool,
) -> impl Fn(&std::path::Path) -> io::Result<Vec<u8>> {
    move |path| {
        let bytes = std::fs::read(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if bad(&name) { Err(error.into()) } else { Ok(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_sector_is_damage_and_a_wrong_owner_is_not() {
        for damage in [Errno::IO, Errno::BADMSG, Errno::UCLEAN] {
            assert_eq!(held(Err(damage.into())).unwrap(), Some(Vec::new()));
        }
        assert_eq!(held(Err(Errno::NOENT.into())).unwrap(), None);
        for other in [Errno::ACCESS, Errno::PERM, Errno::ISDIR, Errno::NOSPC, Errno::DQUOT, Errno::MFILE] {
            assert!(held(Err(other.into())).is_err(), "{other}");
        }
    }
}
