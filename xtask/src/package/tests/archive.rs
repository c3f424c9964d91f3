//! Archives with an installer.
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::*;
use crate::command::run;
use crate::package::root::left;

#[test]
fn the_installer_of_an_archive_knows_three_ways_to_start_the_agent_and_takes_all_back() {
    let folder = tempfile::tempdir().unwrap();
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
}
