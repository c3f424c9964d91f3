//! What is installed beside the program and is a script.
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::*;
use crate::command::run;
use crate::package::root::Root;

#[test]
fn every_shell_script_passes_shellcheck() {
    let mut tree = Tree::default();
    tree.take("", &source()).unwrap();
    let scripts = tree.0.iter().filter(|(_, entry)| {
        entry.bytes.as_ref().is_some_and(|bytes| {
            bytes.starts_with(b"#!/bin/sh\n") || bytes.starts_with(b"#!/sbin/openrc-run\n")
        })
    });
    let scripts: Vec<_> = scripts.collect();
    assert!(scripts.len() > 10, "scripts begin with #!/bin/sh or #!/sbin/openrc-run");
    for (path, entry) in &scripts {
        assert_eq!(entry.mode, 0o755, "{path} can not be executed");
    }
    run(Command::new("shellcheck").current_dir(source()).args(scripts.iter().map(|(path, _)| path))).unwrap();
}

/// A device whose image is updated by others: the agent's part, with a program in its place that tells what it is told to.
#[test]
fn an_image_is_kept_when_the_agent_serves_or_has_nothing_to_serve() {
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("agent");
    let healthy = |code: u32| {
        std::fs::write(&agent, format!("#!/bin/sh\nexit {code}\n")).unwrap();
        std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut hook = Command::new(source().join("rootfs/usr/lib/dunlin/os-healthy"));
        let ended = hook.arg("1").env("AGENT_PROGRAM", &agent).stderr(Stdio::null()).status();
        ended.unwrap().success()
    };
    assert_eq!([0, 1, 3, 5].map(healthy), [true, false, true, false]);
}

#[test]
fn models_are_held_back_from_when_an_image_is_written_until_it_is_given_up() {
    let mounted = tempfile::tempdir().unwrap();
    let root = Root::new(mounted.path()).unwrap();
    std::fs::copy(source().join("rootfs/usr/lib/dunlin/os-installed"), root.path("packages/hook")).unwrap();
    // Where the shipped settings look for it.
    let settings = std::fs::read_to_string(source().join("rootfs/etc/dunlin/agent.toml")).unwrap();
    let settings: toml::Table = toml::from_str(&settings).unwrap();
    let inhibit = root.path(settings["update"]["inhibit_file"].as_str().unwrap().trim_start_matches('/'));
    let hook = |words: &[&str]| root.ok(&[&["/packages/hook"], words].concat()).unwrap();
    // What was not written can be given up as well, and each of both be said twice.
    hook(&["undone"]);
    for _ in 0..2 {
        hook(&[]);
        assert!(inhibit.is_file());
    }
    for _ in 0..2 {
        hook(&["undone"]);
        assert!(!inhibit.exists());
    }
}
