//! What a client asks for, in which order, and what it keeps (§5, and the contract of the conformance suite).
use std::fs;

use dunlin_trust::{RepoKind, sha256, write};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Client, Places};
use super::forge::{Forge, LATER_MS, key, now, sign, target};
use super::server::Server;

pub(crate) struct World {
    pub(crate) forge: Forge,
    pub(crate) server: Server,
    pub(crate) folder: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self::without_root(Forge::new(RepoKind::Image));
        fs::write(world.folder.path().join("metadata/root.json"), &world.forge.roots[0]).unwrap();
        world
    }

    /// A client that has not been initialised, and the server.
    pub(crate) fn without_root(mut forge: Forge) -> Self {
        forge.listed.insert("dir/model.bin".to_owned(), target(b"model", Value::Null));
        forge.retrained_listed.insert("auto.x".to_owned(), target(b"retrained", Value::Null));
        let world = Self { forge, server: Server::start(), folder: tempfile::tempdir().unwrap() };
        for name in ["metadata", "targets"] {
            fs::create_dir(world.folder.path().join(name)).unwrap();
        }
        world.server.put(&format!("t/dir/{}.model.bin", sha256(b"model")), b"model".to_vec());
        world.server.put(&format!("t/{}.auto.x", sha256(b"retrained")), b"retrained".to_vec());
        world.publish();
        world
    }

    pub(crate) fn publish(&self) {
        let [_, _, snapshot, targets, retrained] = self.forge.versions;
        for (i, root) in self.forge.roots.iter().enumerate() {
            self.server.put(&format!("m/{}.root.json", i + 1), root.clone());
        }
        self.server.put("m/timestamp.json", self.forge.timestamp_file());
        self.server.put(&format!("m/{snapshot}.snapshot.json"), self.forge.snapshot_file());
        self.server.put(&format!("m/{targets}.targets.json"), self.forge.targets_file());
        self.server.put(&format!("m/{retrained}.retrained.json"), self.forge.retrained_file());
    }

    fn client(&self) -> Client {
        let places = Places {
            metadata_dir: self.folder.path().join("metadata"),
            metadata_url: self.server.url("m"),
            target_base_url: self.server.url("t"),
            target_dir: self.folder.path().join("targets"),
        };
        Client::open(places, now()).unwrap()
    }

    #[track_caller]
    pub(crate) fn asks(&self, expected: &[&str]) {
        assert_eq!(self.server.asked(), expected);
    }

    pub(crate) fn kept(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join("metadata").join(name)).unwrap()
    }
}

#[test]
fn a_refresh_asks_in_order_and_keeps_what_was_served_byte_for_byte() {
    let mut world = World::new();
    world.client().refresh().unwrap();
    world.asks(&["m/2.root.json", "m/timestamp.json", "m/1.snapshot.json", "m/1.targets.json"]);
    assert_eq!(world.kept("timestamp.json"), world.forge.timestamp_file());
    assert_eq!(world.kept("snapshot.json"), world.forge.snapshot_file());
    assert_eq!(world.kept("targets.json"), world.forge.targets_file());
    // Nothing changed: nothing but the next root and the timestamp is asked for.
    world.client().refresh().unwrap();
    world.asks(&["m/2.root.json", "m/timestamp.json"]);
    world.forge.versions[0..4].copy_from_slice(&[1, 2, 2, 1]);
    world.forge.rotate(&[]);
    world.publish();
    world.client().refresh().unwrap();
    world.asks(&["m/2.root.json", "m/3.root.json", "m/timestamp.json", "m/2.snapshot.json"]);
    assert_eq!(world.kept("root.json"), world.forge.roots[1]);
}

#[test]
fn targets_are_fetched_once_by_digest_and_delegations_only_when_asked_for() {
    let world = World::new();
    let mut client = world.client();
    client.refresh().unwrap();
    world.server.asked();
    client.download("dir/model.bin").unwrap();
    world.asks(&[&format!("t/dir/{}.model.bin", sha256(b"model"))]);
    client.download("auto.x").unwrap();
    world.asks(&["m/1.retrained.json", &format!("t/{}.auto.x", sha256(b"retrained"))]);
    assert_eq!(fs::read(world.folder.path().join("targets/dir%2Fmodel.bin")).unwrap(), b"model");
    // What is there is not fetched again; what was bent there is.
    client.download("dir/model.bin").unwrap();
    world.asks(&[]);
    fs::write(world.folder.path().join("targets/auto.x"), b"bent").unwrap();
    let mut later = world.client();
    later.refresh().unwrap();
    world.server.asked();
    later.download("auto.x").unwrap();
    world.asks(&[&format!("t/{}.auto.x", sha256(b"retrained"))]);
    assert!(later.download("absent").is_err());
    world.asks(&[]);
}

#[test]
fn a_refused_file_is_not_kept_and_a_target_of_other_length_or_content_neither() {
    let mut world = World::new();
    world.client().refresh().unwrap();
    let held = world.kept("timestamp.json");
    world.forge.timestamp = key();
    world.forge.versions[1] = 2;
    world.publish();
    assert!(world.client().refresh().is_err());
    assert_eq!(world.kept("timestamp.json"), held);

    let world = World::new();
    let mut client = world.client();
    client.refresh().unwrap();
    for wrong in [&b"mode"[..], b"modem", b"model and more", &[0; 200_000]] {
        world.server.put(&format!("t/dir/{}.model.bin", sha256(b"model")), wrong);
        assert!(client.download("dir/model.bin").is_err());
        assert!(!world.folder.path().join("targets/dir%2Fmodel.bin").exists());
    }
}

/// An endless file is cut at the cap of its role, whatever it holds.
#[test]
fn an_endless_timestamp_is_refused() {
    let world = World::new();
    let endless = [world.forge.timestamp_file(), vec![b' '; 17 * 1024]].concat();
    world.server.put("m/timestamp.json", endless);
    let error = world.client().refresh().unwrap_err();
    assert!(error.to_string().contains("over 16384 bytes"), "{error}");
}

/// Without consistent snapshots names carry neither version nor digest (§6.2).
#[test]
fn an_inconsistent_repository_is_read_by_plain_names() {
    let mut world = World::new();
    let mut value = write::root(1, LATER_MS, &world.forge.root_spec()).unwrap();
    value["consistent_snapshot"] = json!(false);
    world.forge.roots[0] = sign(&value, &world.forge.root.iter().collect::<Vec<_>>());
    fs::write(world.folder.path().join("metadata/root.json"), &world.forge.roots[0]).unwrap();
    world.server.put("m/snapshot.json", world.forge.snapshot_file());
    world.server.put("m/targets.json", world.forge.targets_file());
    world.server.put("t/dir/model.bin", b"model".to_vec());
    let mut client = world.client();
    client.refresh().unwrap();
    client.download("dir/model.bin").unwrap();
    world.asks(&[
        "m/2.root.json",
        "m/timestamp.json",
        "m/snapshot.json",
        "m/targets.json",
        "t/dir/model.bin",
    ]);
}

#[test]
fn names_are_quoted_for_urls_and_files() {
    for (name, quoted) in [("a b?", "a%20b%3F"), ("../up", "..%2Fup"), ("é", "%C3%A9"), ("a~._-", "a~._-")] {
        assert_eq!(super::http::quote(name), quoted);
        assert_eq!(super::http::unquote(quoted).unwrap(), name);
    }
    assert!(super::http::unquote("%4").is_err() && super::http::unquote("%zz").is_err());
}
