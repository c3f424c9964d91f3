//! Debian packages.
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::*;
use crate::board::Fleet;
use crate::command::run;
use crate::package::root::{AS_USER, Root};

/// What is packed by what its instructions mean comes out whole: such programs are branches from end to end.
#[test]
fn debian_unpacks_the_program_that_was_packed() {
    let branches: [fn(u32) -> Vec<u8>; 3] = [
        |n| [&[0xe8][..], &n.to_le_bytes()].concat(),
        |n| (0x9400_0000 | n).to_le_bytes().to_vec(),
        |n| (0xeb00_0000 | n).to_le_bytes().to_vec(),
    ];
    for (triple, branch) in TRIPLES.into_iter().zip(branches) {
        let mut package = package(triple, None);
        package.program.extend((0..20_000).flat_map(|n| branch(n * 977 % 0x2_0000)));
        let folder = tempfile::tempdir().unwrap();
        let (name, bytes) = deb::pack(&package).unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        run(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(folder.path())).unwrap();
        assert!(std::fs::read(folder.path().join(PROGRAM)).unwrap() == package.program, "{triple}");
    }
}

/// Where the programs of the development build lie.
fn development_builds() -> PathBuf {
    target_dir().join("debug")
}

/// The agent of the development build, without the symbols that are most of it.
fn development_build(version: &str, folder: &Path) -> Package {
    let built = development_builds().join("dunlin-agent");
    let program = folder.join("dunlin-agent");
    assert!(built.is_file(), "{} is not there; `cargo build --workspace` makes it", built.display());
    run(Command::new("strip").arg("-o").args([&program, &built])).unwrap();
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut package = Package::new(&triple, &program, version, EPOCH).unwrap();
    package.notice = NOTICE.to_owned();
    package.board = Some(("x86-64-generic".to_owned(), boards::named("x86-64-generic").unwrap()));
    package.preset = 0;
    package
}

/// How long the installed agent may take until it serves, has a session, or has ended.
const LIMIT: Duration = Duration::from_secs(60);

/// An agent that is ended with the test, whatever comes of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.0.kill().and_then(|()| self.0.wait()).expect("the agent is ours to end");
        }
    }
}

/// The installed agent, as the user that it has there, comes to serve and to a session with its controller, and ends when it is
/// asked to. Returns which device it is.
fn runs(root: &Root) -> String {
    let status = || {
        let (_, told) =
            root.run(&[&AS_USER[..], &["/usr/bin/dunlin-agent", "--json", "status"]].concat()).unwrap();
        serde_json::from_str::<Value>(&told).unwrap_or_default()
    };
    let words = [&AS_USER[..], &["/usr/bin/dunlin-agent", "run"]].concat();
    // Another one may run on this machine.
    let agent = root.command(&words).unwrap().env("DUNLIN_API__LISTEN", "127.0.0.1:0").spawn().unwrap();
    let mut agent = Running(agent);
    root.ok(&["/usr/lib/dunlin/os-healthy", &LIMIT.as_secs().to_string()]).unwrap();
    let begin = Instant::now();
    let mut told = status();
    while told["link"]["up"] != true {
        assert!(begin.elapsed() < LIMIT, "no session: {told}");
        std::thread::sleep(Duration::from_millis(100));
        told = status();
    }
    kill_process(Pid::from_child(&agent.0), Signal::TERM).unwrap();
    let begin = Instant::now();
    while agent.0.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < LIMIT, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(agent.0.wait().unwrap().success());
    told["device"].as_str().unwrap_or_else(|| panic!("no device in {told}")).to_owned()
}

#[test]
fn a_package_is_installed_upgraded_and_purged_and_state_lives_until_the_purge() {
    let [folder, mounted, controller] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let mut package = development_build("1.0", folder.path());
    let root = Root::new(mounted.path()).unwrap();
    root.install(&package).unwrap();
    let ok = |words: &[&str]| root.ok(words).unwrap();

    let user = ok(&["getent", "passwd", "dunlin"]);
    let state = root.path("var/lib/dunlin").metadata().unwrap();
    assert_eq!(user.split(':').nth(2).unwrap(), state.uid().to_string());
    assert_eq!(state.permissions().mode() & 0o7777, 0o700);
    let enabled = root.path("etc/systemd/system/multi-user.target.wants/dunlin-agent.service");
    assert!(enabled.is_symlink());

    let notice = root.path(&format!("{DOCUMENTS}/{THIRD_PARTIES}"));
    assert_eq!(std::fs::read_to_string(notice).unwrap(), NOTICE);

    // What systemd itself says of the unit, with the board's drop-in, and of what it may do.
    let (_, told) = root.run(&["systemd-analyze", "verify", "--man=no", "dunlin-agent.service"]).unwrap();
    assert!(!told.contains("dunlin"), "{told}");
    let cat = ok(&["systemd-analyze", "cat-config", "systemd/system/dunlin-agent.service"]);
    assert!(cat.contains(&format!("MemoryMax={}", memory_max(&package.board.as_ref().unwrap().1.device))));
    ok(&["systemd-analyze", "security", "--offline=true", "--threshold=20", "dunlin-agent.service"]);

    // The installed program with the installed settings, as the user it has there.
    let as_user = [&AS_USER[..], &["/usr/bin/dunlin-agent"]].concat();
    let settings = ok(&[&as_user[..], &["--json", "check"]].concat());
    let settings: Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(
        (&settings["device"]["class"], &settings["warnings"]),
        (&"x86-64-generic".into(), &Value::Array(Vec::new()))
    );
    let (went_well, told) = root.run(&[&as_user[..], &["run"]].concat()).unwrap();
    assert!(!went_well && told.contains("is not enrolled"), "{told}");
    ok(&["/usr/lib/dunlin/os-healthy", "0"]);

    let fleet = Fleet::start(controller.path(), &development_builds()).unwrap();
    ok(&[&as_user[..], &["enrol", &fleet.claim().unwrap()]].concat());
    let device = runs(&root);
    let changed = "# Changed by the administrator.\n[telemetry]\nwindow_s = 30\n";
    std::fs::write(root.path("etc/dunlin/agent.toml"), changed).unwrap();
    std::fs::write(root.path("etc/dunlin/agent.d/50-site.toml"), "[telemetry]\nreport_s = 60\n").unwrap();
    ok(&["systemctl", "disable", "dunlin-agent.service"]);

    package.version = "1.1".to_owned();
    root.install(&package).unwrap();
    let version =
        ok(&["dpkg-query", "--show", "--showformat=${Version} ${db:Status-Status}", "dunlin-agent"]);
    assert_eq!(version, "1.1 installed");
    assert_eq!(std::fs::read_to_string(root.path("etc/dunlin/agent.toml")).unwrap(), changed);
    assert!(!enabled.is_symlink(), "an upgrade enables what the administrator disabled");
    assert_eq!(runs(&root), device);

    ok(&["dpkg", "--remove", "dunlin-agent"]);
    assert!(!root.path(PROGRAM).exists());
    assert!(root.path("var/lib/dunlin").read_dir().unwrap().next().is_some(), "its state is gone");
    ok(&["dpkg", "--purge", "dunlin-agent"]);
    std::fs::remove_dir_all(root.path("packages")).unwrap();
    assert_eq!(left(&root.written()), Vec::<PathBuf>::new());
    assert_eq!(left(&root.path("run")), Vec::<PathBuf>::new());
}
