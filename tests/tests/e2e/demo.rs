//! The demonstration is ended in the middle of an act, and nothing that it started is left.
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dunlin_tests::process::{program, wait_for};

const LIMIT: Duration = Duration::from_secs(120);

/// A process, told from a later one with the same id by when it began.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    pid: u32,
    began: String,
    command: String,
}

/// Every process with its parent's id; those that have ended and wait for their parent are none.
fn processes() -> BTreeMap<u32, (u32, Seen)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end between any two of these lines.
        let (Ok(stat), Ok(command)) =
            (std::fs::read_to_string(entry.path().join("stat")), std::fs::read(entry.path().join("cmdline")))
        else {
            continue;
        };
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = fields.split(' ').collect();
        let (Some(parent), Some(began)) = (fields[1].parse().ok(), fields.get(19)) else { continue };
        if fields[0] != "Z" && !command.is_empty() {
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            all.insert(pid, (parent, Seen { pid, began: (*began).to_owned(), command }));
        }
    }
    all
}

/// What a process started, and what those started.
fn started_by(root: u32) -> BTreeSet<Seen> {
    let all = processes();
    let below = |mut pid: u32| {
        while let Some((parent, _)) = all.get(&pid) {
            if *parent == root {
                return true;
            }
            pid = *parent;
        }
        false
    };
    all.values().filter(|(_, seen)| below(seen.pid)).map(|(_, seen)| seen.clone()).collect()
}

/// Those of `before` that still run, and whatever else names the folder.
fn left(before: &BTreeSet<Seen>, folder: &Path) -> Vec<Seen> {
    let folder = folder.to_str().unwrap();
    let all = processes().into_values().map(|(_, seen)| seen);
    all.filter(|seen| before.contains(seen) || seen.command.contains(folder)).collect()
}

/// A demonstration whose controller serves, whose trainer trains and whose first agents run.
async fn in_mid_act(folder: &Path) -> (Child, BTreeSet<Seen>) {
    let log = folder.join("log");
    let out = File::create(&log).unwrap();
    let mut demo = Command::new(program("dunlin-demo").unwrap())
        .args(["--devices", "12", "--out"])
        .arg(folder.join("demo"))
        .envs([dunlin_engine::tie()])
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap();
    let seen = wait_for("a controller, a trainer and agents", LIMIT, async || {
        if let Some(status) = demo.try_wait()? {
            anyhow::bail!("it ended with {status}: {}", std::fs::read_to_string(&log)?);
        }
        let seen = started_by(demo.id());
        let runs = |verb: &str| seen.iter().any(|seen| seen.command.contains(verb));
        Ok((runs(" serve ") && runs(" train-worker ") && runs("agent.toml run")).then_some(seen))
    })
    .await
    .unwrap();
    (demo, seen)
}

/// Waits until nothing of it is left.
async fn gone(before: &BTreeSet<Seen>, folder: &Path) {
    let mut last = Vec::new();
    let done = wait_for("everything to end", LIMIT, async || {
        last = left(before, folder);
        Ok(last.is_empty().then_some(()))
    })
    .await;
    assert!(done.is_ok(), "still there: {last:#?}");
}

#[tokio::test]
async fn an_interrupted_demonstration_leaves_no_process_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (mut demo, seen) = in_mid_act(folder.path()).await;
    let sent = Command::new("kill").args(["-s", "INT", &demo.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let status = tokio::task::spawn_blocking(move || demo.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(130));
    gone(&seen, folder.path()).await;
}

#[tokio::test]
async fn a_killed_demonstration_takes_along_whatever_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let (mut demo, seen) = in_mid_act(folder.path()).await;
    demo.kill().unwrap();
    demo.wait().unwrap();
    gone(&seen, folder.path()).await;
}
