//! The example as a program: its words, its exit codes, and what it leaves on the disk and asks of the server, as the
//! conformance suite's `CLIENT-CLI.md` has it.
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use dunlin_trust::{RepoKind, sha256};

use super::client_requests::World;
use super::forge::Forge;

/// A repository that is fresh by the machine's own clock, which the program goes by.
fn world() -> World {
    let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let mut forge = Forge::new(RepoKind::Image);
    for role in ["root", "timestamp", "snapshot", "targets", "retrained"] {
        forge.expires.insert(role, now_ms + 86_400_000);
    }
    forge.roots[0] = forge.root_file();
    let world = World::without_root(forge);
    fs::write(world.folder.path().join("trusted.json"), &world.forge.roots[0]).unwrap();
    world
}

/// The example, which is built beside this test.
fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here.ancestors().nth(2).unwrap().join("examples/tuf-client");
    assert!(
        path.is_file(),
        "{} is not built; run `cargo build --workspace --examples` first",
        path.display()
    );
    path
}

fn run(world: &World, words: &[&str]) -> Output {
    let place = |name: &str| world.folder.path().join(name);
    Command::new(program()).arg("--metadata-dir").arg(place("metadata")).args(words).output().unwrap()
}

fn init(world: &World) -> Output {
    run(world, &["init", world.folder.path().join("trusted.json").to_str().unwrap()])
}

fn refresh(world: &World) -> Output {
    run(world, &["--metadata-url", &world.server.url("m"), "refresh"])
}

fn download(world: &World, names: &[&str]) -> Output {
    let (metadata, targets) = (world.server.url("m"), world.server.url("t/"));
    let folder = world.folder.path().join("targets");
    let mut words = vec!["--metadata-url", &metadata, "--target-base-url", &targets];
    words.extend(["--target-dir", folder.to_str().unwrap()]);
    words.extend(names.iter().flat_map(|name| ["--target-name", name]));
    words.push("download");
    run(world, &words)
}

#[track_caller]
fn ends_with(code: i32, output: &Output) {
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_program_pins_a_root_refreshes_and_downloads() {
    let world = world();
    ends_with(0, &init(&world));
    world.asks(&[]);
    assert_eq!(world.kept("root.json"), world.forge.roots[0]);
    ends_with(0, &refresh(&world));
    world.asks(&["m/2.root.json", "m/timestamp.json", "m/1.snapshot.json", "m/1.targets.json"]);
    assert_eq!(world.kept("timestamp.json"), world.forge.timestamp_file());
    // One updater for both names, in their order.
    ends_with(0, &download(&world, &["dir/model.bin", "auto.x"]));
    let (model, retrained) = (sha256(b"model"), sha256(b"retrained"));
    world.asks(&[
        "m/2.root.json",
        "m/timestamp.json",
        &format!("t/dir/{model}.model.bin"),
        "m/1.retrained.json",
        &format!("t/{retrained}.auto.x"),
    ]);
    assert_eq!(fs::read(world.folder.path().join("targets/auto.x")).unwrap(), b"retrained");
    let mut kept: Vec<_> = fs::read_dir(world.folder.path().join("metadata"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["retrained.json", "root.json", "snapshot.json", "targets.json", "timestamp.json"]);
}

#[test]
fn the_program_fails_with_one_and_stops_at_the_first_failure() {
    let mut world = world();
    ends_with(1, &refresh(&world));
    ends_with(1, &run(&world, &["init", "/nowhere/root.json"]));
    ends_with(0, &init(&world));
    for words in [&[][..], &["forget"], &["refresh", "--metadata-url"], &["init"]] {
        ends_with(1, &run(&world, words));
    }
    ends_with(1, &download(&world, &["absent", "dir/model.bin"]));
    assert!(!world.folder.path().join("targets/dir%2Fmodel.bin").exists());
    // What was fresh and is no more.
    world.forge.expires.insert("timestamp", 1_000);
    world.forge.versions[1] = 2;
    world.publish();
    let late = refresh(&world);
    ends_with(1, &late);
    assert!(String::from_utf8_lossy(&late.stderr).contains("expired"), "{late:?}");
}
