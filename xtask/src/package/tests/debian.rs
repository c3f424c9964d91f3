//! Debian packages.
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::Value;

use super::*;
use crate::command::run;
use crate::package::lifecycle::Stage;
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

#[test]
fn a_package_is_installed_upgraded_and_purged_and_state_lives_until_the_purge() {
    let [folder, mounted, controller] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let package = development_build("1.0", folder.path());
    let memory_max = memory_max(&package.board.as_ref().unwrap().1.device);
    let places = [mounted.path(), controller.path(), &development_builds()];
    lifecycle::lives(package, places, |stage, root| {
        match stage {
            Stage::Installed => is_installed(root, memory_max),
            Stage::Ran => change(root),
            Stage::Upgraded => changes_stay(root),
            Stage::Removed => {}
        }
        Ok(())
    })
    .unwrap();
}

/// Raspbian's armhf is ARMv6: dpkg takes the package, and the processor not its instructions.
#[test]
fn a_package_whose_program_the_processor_does_not_know_is_refused() {
    let mounted = tempfile::tempdir().unwrap();
    let root = Root::new(mounted.path()).unwrap();
    let mut package = package(&format!("{}-unknown-linux-musl", std::env::consts::ARCH), None);
    package.program = b"#!/bin/sh\nkill -ILL $$\n".to_vec();
    let refusal = root.install(&package).unwrap_err().to_string();
    assert!(refusal.contains("this processor lacks instructions"), "{refusal}");
    // What can not be started at all is for another machine, whose image is being made.
    package.program = vec![0x7f];
    root.install(&package).unwrap();
}

const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/dunlin-agent.service";
const CHANGED: &str = "# Changed by the administrator.\n[telemetry]\nwindow_s = 30\n";

fn is_installed(root: &Root, memory_max: u64) {
    let ok = |words: &[&str]| root.ok(words).unwrap();
    let user = ok(&["getent", "passwd", "dunlin"]);
    let state = root.path("var/lib/dunlin").metadata().unwrap();
    assert_eq!(user.split(':').nth(2).unwrap(), state.uid().to_string());
    assert_eq!(state.permissions().mode() & 0o7777, 0o700);
    assert!(root.path(ENABLED).is_symlink());

    let notice = root.path(&format!("{DOCUMENTS}/{THIRD_PARTIES}"));
    assert_eq!(std::fs::read_to_string(notice).unwrap(), NOTICE);

    // What systemd itself says of the unit, with the board's drop-in, and of what it may do.
    let (_, told) = root.run(&["systemd-analyze", "verify", "--man=no", "dunlin-agent.service"]).unwrap();
    assert!(!told.contains("dunlin"), "{told}");
    let cat = ok(&["systemd-analyze", "cat-config", "systemd/system/dunlin-agent.service"]);
    assert!(cat.contains(&format!("MemoryMax={memory_max}")));
    ok(&["systemd-analyze", "security", "--offline=true", "--threshold=20", "dunlin-agent.service"]);

    // The installed program with the installed settings, as the user it has there.
    let check = [&AS_USER[..], &["/usr/bin/dunlin-agent", "--json", "check"]].concat();
    let settings: Value = serde_json::from_str(&ok(&check)).unwrap();
    assert_eq!(settings["device"]["class"], "x86-64-generic");
}

/// What an administrator does before the upgrade.
fn change(root: &Root) {
    std::fs::write(root.path("etc/dunlin/agent.toml"), CHANGED).unwrap();
    std::fs::write(root.path("etc/dunlin/agent.d/50-site.toml"), "[telemetry]\nreport_s = 60\n").unwrap();
    root.ok(&["systemctl", "disable", "dunlin-agent.service"]).unwrap();
}

fn changes_stay(root: &Root) {
    assert_eq!(std::fs::read_to_string(root.path("etc/dunlin/agent.toml")).unwrap(), CHANGED);
    assert!(!root.path(ENABLED).is_symlink(), "an upgrade enables what the administrator disabled");
}
