//! What is installed beside the program and is a script.
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::*;
use crate::command::run;

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
