//! Archives with an installer.
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use super::*;
use crate::command::run;
use crate::package::root::left;

#[test]
fn the_installer_of_an_archive_knows_three_ways_to_start_the_agent_and_takes_all_back() {
    let folder = tempfile::Builder::new().prefix("a b").tempdir().unwrap();
    let (name, bytes) = tarball::pack(&package(TRIPLES[1], Some("raspberry-pi-4"))).unwrap();
    let archive = folder.path().join(name);
    std::fs::write(&archive, bytes).unwrap();
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(folder.path())).unwrap();
    let installer = folder.path().join("dunlin-agent-1.2.3/install.sh");
    let ways: [(&str, &[&str], &str); 4] = [
        (
            "usr/lib/systemd",
            &["usr/lib/systemd/systemd"],
            "etc/systemd/system/multi-user.target.wants/dunlin-agent.service",
        ),
        ("sbin", &["sbin/openrc-run"], "etc/runlevels/default/dunlin-agent"),
        ("etc/init.d", &["etc/init.d/rcS"], "etc/init.d/S95dunlin-agent"),
        ("etc/rc5.d", &[], "etc/rc5.d/S95dunlin-agent"),
    ];
    for (number, (there, files, started)) in ways.into_iter().enumerate() {
        let root = folder.path().join(format!("root{number}"));
        for path in ["etc", there] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        for file in files.iter().chain(&["etc/passwd", "etc/group"]) {
            std::fs::write(root.join(file), "").unwrap();
            std::fs::set_permissions(root.join(file), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let install = |args: &[&str]| {
            run(Command::new(&installer).arg("--root").arg(&root).args(args).stdout(Stdio::null())).unwrap();
        };
        install(&[]);
        assert!(root.join(started).is_symlink(), "{started}");
        assert!(root.join(PROGRAM).metadata().unwrap().permissions().mode() & 0o111 != 0);
        let drop_in = root.join("usr/lib/systemd/system/dunlin-agent.service.d/10-board.conf");
        assert_eq!(drop_in.is_file(), started.contains("systemd"), "{started}");
        std::fs::write(root.join("var/lib/dunlin/state"), "kept").unwrap();
        std::fs::write(root.join("etc/dunlin/agent.toml"), "# Changed.\n").unwrap();
        install(&[]);
        assert_eq!(std::fs::read_to_string(root.join("etc/dunlin/agent.toml")).unwrap(), "# Changed.\n");
        assert!(root.join("etc/dunlin/agent.toml.new").is_file());
        install(&["--remove"]);
        assert!(!root.join(PROGRAM).exists() && !root.join(started).is_symlink());
        assert_eq!(std::fs::read_to_string(root.join("var/lib/dunlin/state")).unwrap(), "kept");
        install(&["--purge"]);
        assert_eq!(left(&root).unwrap(), Vec::<PathBuf>::new());
    }
    std::fs::remove_dir_all(installer.with_file_name("rootfs")).unwrap();
    assert!(run(Command::new(&installer).arg("--root").arg(folder.path()).stderr(Stdio::null())).is_err());
}

/// Archives are unpacked by anybody, anywhere; what is installed belongs to root, and everybody reads it.
#[test]
fn what_is_installed_has_root_s_owner_and_its_own_modes_however_it_was_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let package = package(TRIPLES[1], Some("raspberry-pi-4"));
    let (name, bytes) = tarball::pack(&package).unwrap();
    let archive = folder.path().join(name);
    std::fs::write(&archive, bytes).unwrap();
    let [root, tools] = ["root", "tools"].map(|name| folder.path().join(name));
    for path in [&root.join("etc"), &tools] {
        std::fs::create_dir_all(path).unwrap();
    }
    for file in ["etc/passwd", "etc/group"] {
        std::fs::write(root.join(file), "").unwrap();
    }
    // Tells what lies where programs are whenever data go to the disk.
    std::fs::write(tools.join("sync"), "#!/bin/sh\necho $(ls \"$ROOT/usr/bin\") >>\"$ROOT/synced\"\n")
        .unwrap();
    std::fs::set_permissions(tools.join("sync"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = "umask 077; cd \"$1\"; tar --no-same-permissions -xf *.xz; chown -R 4321:4321 dunlin-agent-1.2.3; \
        exec ./dunlin-agent-1.2.3/install.sh --root \"$ROOT\" --init \"$2\"";
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    for init in ["systemd", "openrc", "sysv"] {
        let mut install = Command::new("sh");
        install.args(["-ec", script, "sh"]).arg(folder.path()).arg(init);
        run(install.env("ROOT", &root).env("PATH", &path).stdout(Stdio::null())).unwrap();
        let mut expected = package.installed().unwrap();
        if init != "systemd" {
            expected.0.retain(|path, _| !path.starts_with("usr/lib/s") && !path.starts_with("usr/lib/t"));
            expected.take("", &source().join("init").join(init)).unwrap();
        }
        for (path, entry) in expected.0 {
            let there = root.join(&path).metadata().unwrap();
            let told = (there.uid(), there.gid(), there.mode() & 0o7777);
            assert_eq!(told, (0, 0, entry.mode), "{init}: {path}");
        }
    }
    let synced = std::fs::read_to_string(root.join("synced")).unwrap();
    let synced: Vec<&str> = synced.lines().collect();
    assert_eq!(
        synced[..2],
        ["dunlin-agent.installing", "dunlin-agent"],
        "the program before its rename, and all"
    );
}
