//! What is installed beside the program and is a script.
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Instant;

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

    // One that does not answer: its time is that of the clock, not the number of questions.
    let begin = Instant::now();
    let slow = "#!/bin/sh\necho asked >>\"$0.asked\"\nsleep 2\nexit 5\n";
    std::fs::write(&agent, slow).unwrap();
    let mut hook = Command::new(source().join("rootfs/usr/lib/dunlin/os-healthy"));
    assert!(!hook.arg("4").env("AGENT_PROGRAM", &agent).stderr(Stdio::null()).status().unwrap().success());
    let asked = std::fs::read_to_string(agent.with_extension("asked")).unwrap().lines().count();
    assert!(asked <= 3, "asked {asked} times in {:?}", begin.elapsed());
}

/// Where the state has a partition of its own, nothing is known of a device on which it is not mounted.
#[test]
fn an_image_is_not_kept_while_the_state_is_not_mounted() {
    let mounted = tempfile::tempdir().unwrap();
    let root = Root::new(mounted.path()).unwrap();
    std::fs::copy(source().join("rootfs/usr/lib/dunlin/os-healthy"), root.path("packages/hook")).unwrap();
    let healthy = |load_state: &str| {
        for (name, text) in [("agent", "exit 3".to_owned()), ("systemctl", format!("echo {load_state}"))] {
            let path = root.path("packages").join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let hook = "AGENT_PROGRAM=/packages/agent PATH=/packages:$PATH exec /packages/hook 0";
        root.run(&["sh", "-c", hook]).unwrap()
    };
    assert!(healthy("not-found").0, "there is no such mount");
    let (kept, told) = healthy("loaded");
    assert!(!kept && told.contains("/var/lib/dunlin is not mounted"), "{told}");
    root.ok(&["sh", "-ec", "mkdir -p /var/lib/dunlin && mount -t tmpfs tmpfs /var/lib/dunlin"]).unwrap();
    assert!(healthy("loaded").0, "the state is mounted");
}

fn part(path: &str) -> String {
    std::fs::read_to_string(source().join("ab").join(path)).unwrap()
}

#[test]
fn whatever_keeps_an_image_needs_the_mount_of_the_state() {
    for path in ["rauc/rauc-mark-good.service.d/dunlin.conf", "swupdate/dunlin-confirm.service"] {
        let text = part(path);
        assert!(text.contains("\nRequiresMountsFor=/var/lib/dunlin\n"), "{text}");
        assert!(text.contains("\nExecStartPre=/usr/lib/dunlin/os-healthy\n"), "{text}");
    }
}

#[test]
fn swupdate_is_told_that_an_image_is_good_only_after_one_was_installed() {
    let unit = part("swupdate/dunlin-confirm.service");
    let values = |key: &str| -> Vec<&str> {
        unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    // As systemd reads it: a dollar sign is written twice.
    let condition = values("ExecCondition")[0].replace("$$", "$");
    let script = condition.strip_prefix("/bin/sh -c '").unwrap().strip_suffix('\'').unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tool = folder.path().join("fw_printenv");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let confirmed = |state: &str| {
        std::fs::write(&tool, format!("#!/bin/sh\n[ \"$*\" = '-n ustate' ] && {state}\n")).unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        Command::new("sh").args(["-c", script]).env("PATH", &path).status().unwrap().success()
    };
    assert_eq!(["echo 0", "echo 1", "echo 3", "exit 1"].map(confirmed), [false, true, false, false]);
    assert_eq!(values("ExecStart"), ["/usr/bin/fw_setenv -s -"]);
    assert_eq!(values("StandardInputText"), ["ustate=0", "bootcount=0", "upgrade_available=0"]);
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
