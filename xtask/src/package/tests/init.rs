//! What starts the agent where systemd does not, in a root file system that is only in memory.
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;
use crate::command::until;
use crate::package::root::Root;

/// How long a change may take; the agent is started again five seconds after its end.
const LIMIT: Duration = Duration::from_secs(30);
const SCRIPT: &str = "/etc/init.d/dunlin-agent";
const WANTED: &str = "run/dunlin-agent.wanted";
const KEEPER: &str = "run/dunlin-agent.keeper";
const PID: &str = "run/dunlin/agent.pid";

/// The agent by the word that the script gives it, a file of that name for the shell that stands in its place: it tells of its
/// start and its number, and ends as it is told to.
const RUN: &str = "echo started >>/run/dunlin/starts\necho $$ >/run/dunlin/agent.pid\n\
    while [ ! -e /run/dunlin/ends ]; do sleep 0.1; done\nexit \"$(cat /run/dunlin/ends)\"\n";

/// A root in `folder` with an archive installed for an init system, and a shell as the agent.
fn installed(folder: &Path, init: &str) -> Root {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut package = Package::new(&triple, Path::new("/bin/dash"), "1.2.3", EPOCH).unwrap();
    package.preset = 0;
    let (name, bytes) = tarball::pack(&package).unwrap();
    let root = Root::new(folder).unwrap();
    std::fs::write(root.path("packages").join(&name), bytes).unwrap();
    std::fs::write(root.path("packages/run"), RUN).unwrap();
    root.ok(&["tar", "-C", "/packages", "-xf", &format!("/packages/{name}")]).unwrap();
    root.ok(&["/packages/dunlin-agent-1.2.3/install.sh", "--init", init]).unwrap();
    root
}

/// The script of sysvinit, which is told to stop in the end, whatever comes of the test: what it keeps running outlives it.
struct Service(Root);

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.0.run(&[SCRIPT, "stop"]));
    }
}

impl Service {
    /// The exit status of the script. A program that it starts begins in the folder with its file.
    fn call(&self, verb: &str) -> i32 {
        let call = format!("cd /packages && exec {SCRIPT} {verb}");
        self.0.command(&["sh", "-c", &call]).unwrap().status().unwrap().code().unwrap()
    }

    /// Leaves a file whole, as it is read as soon as it is there.
    fn write(&self, path: &str, text: &str) {
        let path = self.0.path(path);
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, path).unwrap();
    }

    /// Waits for what has to come.
    fn comes_to(&self, what: &str, is: impl Fn() -> bool) {
        until(what, LIMIT, || Ok(is().then_some(()))).unwrap();
    }

    /// Starts it and waits until it runs; returns its number.
    fn starts(&self) -> String {
        assert_eq!(self.call("start"), 0);
        self.comes_to("it runs", || self.call("status") == 0);
        self.pid()
    }

    fn pid(&self) -> String {
        std::fs::read_to_string(self.0.path(PID)).unwrap().trim().to_owned()
    }
}

#[test]
fn sysvinit_s_script_starts_the_agent_again_until_it_is_stopped_or_another_start_would_end_the_same_way() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service(installed(folder.path(), "sysv"));
    let (not_running, not_configured) = (3, 6);
    // Images that were made without the installer have no folder for the enrolment.
    service.0.ok(&["rm", "-r", "/var/lib/dunlin"]).unwrap();
    assert_eq!(service.call("start"), not_configured, "what is not enrolled is started");
    let made = service.0.ok(&["stat", "--format=%U:%G %a", "/var/lib/dunlin"]).unwrap();
    assert_eq!(made.trim(), "dunlin:dunlin 700");
    assert_eq!(service.call("status"), not_running);

    service.write("var/lib/dunlin/identity", "");
    let first = service.starts();
    assert_eq!(service.call("start"), 0, "it runs already");
    let uid = service.0.ok(&["stat", "--format=%U", &format!("/proc/{first}")]).unwrap();
    assert_eq!(uid.trim(), "dunlin");
    service.0.ok(&["kill", "-KILL", &first]).unwrap();
    service.comes_to("it is started again", || service.pid() != first && service.call("status") == 0);
    assert_eq!(std::fs::read_to_string(service.0.path("run/dunlin/starts")).unwrap().lines().count(), 2);

    // What keeps it running was killed, and the script called again.
    let (kept, keeper) = (service.pid(), std::fs::read_to_string(service.0.path(KEEPER)).unwrap());
    service.0.ok(&["kill", "-KILL", keeper.trim()]).unwrap();
    service.comes_to("it is gone", || !Path::new("/proc").join(keeper.trim()).exists());
    assert_eq!(service.call("start"), 0);
    service.comes_to("another one is kept running", || service.pid() != kept && service.call("status") == 0);

    // An upgrade.
    let before = service.pid();
    service.0.ok(&["cp", "/packages/run", "/packages/dunlin-agent-1.2.3/"]).unwrap();
    service.0.ok(&["/packages/dunlin-agent-1.2.3/install.sh", "--init", "sysv"]).unwrap();
    service.comes_to("the new one runs", || service.pid() != before && service.call("status") == 0);

    assert_eq!(service.call("stop"), 0);
    assert_eq!(service.call("status"), not_running);
    assert!(!service.0.path(WANTED).exists());

    // Stopped before it has written its number, which it would do later if it were forgotten.
    let at_once = format!("cd /packages && {SCRIPT} start && exec {SCRIPT} stop");
    service.0.ok(&["sh", "-c", &at_once]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(service.call("status"), not_running);
    assert!(!service.0.path(WANTED).exists());

    // Wrong settings; not enrolled.
    for status in ["2", "3"] {
        service.starts();
        service.write("run/dunlin/ends", status);
        service.comes_to("it is given up", || !service.0.path(WANTED).exists());
        assert_eq!(service.call("status"), not_running);
        std::fs::remove_file(service.0.path("run/dunlin/ends")).unwrap();
    }
    service.starts();
    service.write("run/dunlin/ends", "1");
    service.comes_to("it has ended", || service.call("status") == not_running);
    assert!(service.0.path(WANTED).exists(), "any other end is for good");
}

/// What stands in for `openrc-run`: it reads the script, says what it was told of the supervisor, and calls what a start calls.
const OPENRC_RUN: &str = "#!/bin/sh\nset -eu\n. \"$1\"\n\
    checkpath() { echo \"folder $*\"; }\neerror() { echo \"error $*\"; }\n\
    echo \"$supervisor $command $command_args $command_user $respawn_delay $respawn_max $retry\"\nstart_pre\n";

#[test]
fn openrc_s_script_names_what_is_supervised_and_starts_nothing_that_is_not_enrolled() {
    let folder = tempfile::tempdir().unwrap();
    let root = installed(folder.path(), "openrc");
    std::fs::write(root.path("packages/openrc-run"), OPENRC_RUN).unwrap();
    std::fs::set_permissions(root.path("packages/openrc-run"), PermissionsExt::from_mode(0o755)).unwrap();
    let start = || root.run(&["/packages/openrc-run", SCRIPT]).unwrap();
    let (went_well, told) = start();
    assert!(!went_well && told.contains("error this device is not enrolled"), "{told}");
    std::fs::write(root.path("var/lib/dunlin/identity"), "").unwrap();
    let (went_well, told) = start();
    assert!(went_well, "{told}");
    let told: Vec<&str> = told.lines().collect();
    assert_eq!(told[0], "supervise-daemon /usr/bin/dunlin-agent run dunlin:dunlin 5 0 TERM/30/KILL/5");
    for (mode, path) in [("0700", "/var/lib/dunlin"), ("0755", "/run/dunlin")] {
        let made = format!("folder --directory --mode {mode} --owner dunlin:dunlin {path}");
        assert!(told.contains(&made.as_str()), "{told:?}");
    }
}
