//! What a training worker does to itself before it looks at its job: limits, and a view of its own folder alone.
use std::path::Path;
use std::{env, io};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// What is asked of the kernel: files, TCP, and other processes' abstract sockets and signals. A kernel that has less of
/// it gives what it has.
const ASKED: ABI = ABI::V6;

/// Limits of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Processor time, seconds.
    pub cpu_s: u64,
    /// Address space, bytes.
    pub memory_bytes: u64,
}

/// How far the kernel confines a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confined {
    /// To its folder, without a network.
    Wholly,
    /// The kernel knows a part of it.
    Partly,
    /// The kernel knows nothing of it.
    Not,
}

impl Confined {
    /// The same for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Wholly => "confined to the job folder, without network",
            Self::Partly => "confined in part: this kernel or processor does not have all that is asked for",
            Self::Not => {
                "not confined: this kernel or processor has neither Landlock nor filters of system calls"
            }
        }
    }
}

/// Sets the limits of this process.
///
/// # Errors
/// The system refuses.
pub fn limit(limits: WorkerLimits) -> io::Result<()> {
    let exactly = |n: u64| Rlimit { current: Some(n), maximum: Some(n) };
    setrlimit(Resource::Core, exactly(0))?;
    setrlimit(Resource::As, exactly(limits.memory_bytes))?;
    Ok(setrlimit(Resource::Cpu, exactly(limits.cpu_s))?)
}

/// Why a worker could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The folder can not be opened, or the kernel refuses what it knows of Landlock.
    #[error("could not take other files away")]
    Files(#[from] RulesetError),
    /// The kernel refuses the filter of system calls.
    #[error("could not take sockets away")]
    Sockets(#[from] seccompiler::Error),
}

/// Takes from this thread, and from every thread it starts, all files but those below `dir`, the starting of programs,
/// and sockets. To be called before other threads are there.
///
/// # Errors
/// The kernel refuses, or the folder can not be opened.
pub fn confine(dir: &Path) -> Result<Confined, ConfineError> {
    let files = AccessFs::from_all(ASKED);
    let status = Ruleset::default()
        .handle_access(files)?
        .handle_access(AccessNet::from_all(ASKED))?
        .scope(Scope::from_all(ASKED))?
        .create()?
        .add_rules(path_beneath_rules([dir], files & !BitFlags::from(AccessFs::Execute)))?
        .restrict_self()?;
    let socketless = no_sockets()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced if socketless => Confined::Wholly,
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Confined::Partly,
        RulesetStatus::NotEnforced if socketless => Confined::Partly,
        RulesetStatus::NotEnforced => Confined::Not,
    })
}

/// Landlock knows TCP alone. Here no socket is opened at all, nor a ring through which one could be. False on a processor
/// that the filter is not made for, and on a kernel without such filters.
fn no_sockets() -> Result<bool, seccompiler::Error> {
    let Ok(arch) = TargetArch::try_from(env::consts::ARCH) else { return Ok(false) };
    let calls = [libc::SYS_socket, libc::SYS_io_uring_setup].map(|call| (call, Vec::new()));
    let denied = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    let filter = SeccompFilter::new(calls.into(), SeccompAction::Allow, denied, arch)?;
    match seccompiler::apply_filter(&BpfProgram::try_from(filter)?) {
        Ok(()) => Ok(true),
        Err(error) if unknown(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the kernel was built without filters of system calls, or without that system call.
fn unknown(error: &seccompiler::Error) -> bool {
    let seccompiler::Error::Seccomp(error) = error else { return false };
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_kernel_without_filters_of_system_calls_is_told_from_one_that_refuses() {
        let said = |errno| unknown(&seccompiler::Error::Seccomp(io::Error::from_raw_os_error(errno)));
        assert!(said(libc::EINVAL) && said(libc::ENOSYS));
        assert!(!said(libc::EACCES) && !said(libc::ENOMEM));
        assert!(!unknown(&seccompiler::Error::Prctl(io::Error::from_raw_os_error(libc::EINVAL))));
    }

    #[test]
    fn a_confined_thread_reads_its_folder_and_neither_others_nor_sockets() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = other.path().join("dunlin.db");
        std::fs::write(&secret, "rows").unwrap();
        std::fs::write(own.path().join("job.json"), "{}").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // What is taken is taken from one thread, which ends.
        let (confined, probes) = std::thread::scope(|scope| {
            let probe = || {
                let confined = confine(own.path()).unwrap();
                let kind = |result: io::Result<()>| result.err().map(|error| error.kind());
                let probes = [
                    kind(std::fs::read(own.path().join("job.json")).map(drop)),
                    kind(std::fs::write(own.path().join("result.json"), "{}")),
                    kind(std::fs::read(&secret).map(drop)),
                    kind(std::fs::write(other.path().join("planted"), "")),
                    kind(std::process::Command::new("/bin/true").status().map(drop)),
                    kind(TcpStream::connect(address).map(drop)),
                    kind(TcpListener::bind("127.0.0.1:0").map(drop)),
                    kind(UdpSocket::bind("127.0.0.1:0").map(drop)),
                ];
                (confined, probes)
            };
            scope.spawn(probe).join().unwrap()
        });
        assert_eq!(probes[..2], [None, None]);
        match confined {
            Confined::Wholly => assert_eq!(probes[2..], [Some(ErrorKind::PermissionDenied); 6]),
            // Either of the two took away what it knows: files came first, in Linux 5.13.
            Confined::Partly => {
                let taken = |part: &[Option<ErrorKind>]| {
                    part.iter().all(|kind| *kind == Some(ErrorKind::PermissionDenied))
                };
                assert!(taken(&probes[2..4]) || taken(&probes[5..]), "{probes:?}");
            }
            Confined::Not => eprintln!("{}", confined.text()),
        }
        assert_eq!(std::fs::read(&secret).unwrap(), b"rows", "other threads see what they saw");
    }
}
