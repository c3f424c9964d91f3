//! What the service manager is told, as sd_notify(3) describes it: that the agent serves, that it still turns, that it stops.
//!
//! Nothing depends on it: without a manager that asked for it, every call does nothing.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The doors are open.
pub const READY: &str = "READY=1";
/// The main loop has come round.
pub const WATCHDOG: &str = "WATCHDOG=1";
/// The agent was told to end.
pub const STOPPING: &str = "STOPPING=1";

/// The service manager that started this process, if there is one that listens.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    pulse: Option<Duration>,
}

impl Supervisor {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_env() -> Self {
        let text = |name| env::var(name).ok();
        Self::new(env::var_os("NOTIFY_SOCKET").as_deref(), text("WATCHDOG_USEC"), text("WATCHDOG_PID"))
    }

    /// The same from arguments: the socket, microseconds of the watchdog, and the process that the watchdog is meant for.
    fn new(socket: Option<&OsStr>, usec: Option<String>, pid: Option<String>) -> Self {
        let Some(path) = socket else { return Self::default() };
        let opened = address(path).and_then(|address| Ok((UnixDatagram::unbound()?, address)));
        let socket = match opened {
            Ok((socket, address)) => {
                // A manager that is slow to read must not hold up the main loop.
                if let Err(error) = socket.set_nonblocking(true) {
                    tracing::warn!(%error, "the service manager may hold this agent up");
                }
                Some((socket, address))
            }
            Err(error) => {
                tracing::warn!(%error, socket = %path.display(), "NOTIFY_SOCKET can not be used; the service manager is told nothing");
                None
            }
        };
        let ours = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let usec = usec.and_then(|usec| usec.parse().ok()).filter(|usec| *usec > 0 && ours);
        // Twice within the manager's patience, as sd_watchdog_enabled(3) recommends.
        let pulse = usec.map(|usec| Duration::from_micros(usec) / 2).filter(|_| socket.is_some());
        Self { socket, pulse }
    }

    /// Time between two [`WATCHDOG`] messages, if the manager waits for them.
    pub fn pulse(&self) -> Option<Duration> {
        self.pulse
    }

    /// Tells the manager.
    pub fn tell(&self, state: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::warn!(%error, state, "the service manager could not be told");
        }
    }
}

/// A path, or after an `@` a name in the abstract namespace.
fn address(path: &OsStr) -> std::io::Result<SocketAddr> {
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_manager_hears_in_order_what_it_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let supervisor = Supervisor::new(Some(path.as_os_str()), None, None);
        assert_eq!(supervisor.pulse(), None);
        [READY, WATCHDOG, STOPPING].iter().for_each(|state| supervisor.tell(state));
        assert_eq!([(); 3].map(|()| heard(&manager)), ["READY=1", "WATCHDOG=1", "STOPPING=1"]);
    }

    #[test]
    fn a_manager_may_listen_on_an_abstract_name() {
        let name = format!("dunlin-supervisor-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Supervisor::new(Some(OsStr::new(&format!("@{name}"))), None, None).tell(READY);
        assert_eq!(heard(&manager), "READY=1");
    }

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time_by_the_process_it_is_meant_for() {
        let pulse = |socket: Option<&str>, usec: &str, pid: Option<u32>| {
            let pid = pid.map(|pid| pid.to_string());
            Supervisor::new(socket.map(OsStr::new), Some(usec.to_owned()), pid).pulse()
        };
        let (socket, me) = (Some("@nobody"), std::process::id());
        assert_eq!(pulse(socket, "30000000", Some(me)), Some(Duration::from_secs(15)));
        assert_eq!(pulse(socket, "30000000", None), Some(Duration::from_secs(15)));
        assert_eq!(pulse(socket, "30000000", Some(me + 1)), None);
        assert_eq!(pulse(socket, "0", None), None);
        assert_eq!(pulse(socket, "soon", None), None);
        assert_eq!(pulse(None, "30000000", None), None);
    }

    #[test]
    fn without_a_manager_or_with_one_that_is_gone_nothing_happens() {
        Supervisor::default().tell(READY);
        Supervisor::new(Some(OsStr::new("/nowhere/notify")), None, None).tell(READY);
        let too_long = "x".repeat(200);
        Supervisor::new(Some(OsStr::new(&too_long)), None, None).tell(READY);
    }
}
