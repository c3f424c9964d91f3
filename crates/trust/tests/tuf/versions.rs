//! Versions only rise, files of different releases do not mix, and what is stored survives.
use std::collections::BTreeMap;

use dunlin_protocol::{Bytes, ReasonCode, RepoFiles, RepoVersions};
use dunlin_trust::{RepoKind, TrustedRepo, write};
use serde_json::Value;

use super::forge::{Forge, LATER_MS, NOW_MS, now, sign, target};
use super::refused;

#[test]
fn an_honest_repository_is_followed() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.listed.insert("meter.1.json".to_owned(), target(b"one", Value::Null));
    forge.retrained_listed.insert("auto.meter.gbdt.1.json".to_owned(), target(b"two", Value::Null));
    let mut repo = forge.trusted();
    assert_eq!(
        repo.versions(),
        RepoVersions { root: 1, timestamp: 1, snapshot: 1, targets: 1, retrained: 1 }
    );
    assert_eq!(repo.target("meter.1.json").unwrap().role, "targets");
    assert_eq!(repo.target("auto.meter.gbdt.1.json").unwrap().role, "retrained");
    assert_eq!(repo.target_names().len(), 2);

    // Nothing changed: a fresh timestamp alone is enough.
    forge.versions[1] += 1;
    let fresh = RepoFiles { timestamp: Bytes(forge.timestamp_file()), ..RepoFiles::default() };
    repo.update(&fresh, now()).unwrap();
    assert_eq!(repo.versions().timestamp, 2);
    assert_eq!(repo.judged_ms(), NOW_MS);

    // Only the retrained role moves.
    forge.versions = [1, 3, 2, 1, 2];
    forge.retrained_listed.insert("auto.meter.gbdt.2.json".to_owned(), target(b"three", Value::Null));
    let files = RepoFiles { targets: None, ..forge.files() };
    repo.update(&files, now()).unwrap();
    assert!(repo.target("auto.meter.gbdt.2.json").is_some());
    assert_eq!(repo.floors(), repo.versions());
}

#[test]
fn stored_files_are_taken_up_byte_for_byte() {
    let forge = Forge::new(RepoKind::Image);
    let repo = forge.trusted();
    let stored = repo.stored();
    let restored = TrustedRepo::restore(RepoKind::Image, &stored, &repo.floors()).unwrap();
    assert_eq!(restored.stored(), stored);
    assert_eq!(restored.versions(), repo.versions());
    assert_eq!(stored.timestamp.unwrap().0, forge.timestamp_file());
}

/// What four well-known clients get wrong: a torn cache is not "nothing seen yet".
#[test]
fn a_torn_cache_does_not_forget_the_floors() {
    let mut forge = Forge::new(RepoKind::Image);
    let old = forge.files();
    forge.versions = [1, 5, 5, 5, 5];
    let repo = forge.trusted();
    let (stored, floors) = (repo.stored(), repo.floors());
    let whole = stored.timestamp.clone().unwrap().0;
    for keep in [0, whole.len() / 2, whole.len() - 1] {
        let mut torn = stored.clone();
        torn.timestamp = Some(Bytes(whole[..keep].to_vec()));
        torn.snapshot = None;
        torn.targets = Some(Bytes(vec![b'{'; keep]));
        torn.delegated.clear();
        let mut repo = TrustedRepo::restore(RepoKind::Image, &torn, &floors).unwrap();
        assert_eq!(repo.versions(), RepoVersions { root: 1, ..RepoVersions::default() });
        refused(&mut repo, &old, ReasonCode::MetadataRollback);
        repo.update(&forge.files(), now()).unwrap();
        assert_eq!(repo.versions().timestamp, 5);
    }
}

#[test]
fn stored_files_below_their_floor_are_dropped() {
    let forge = Forge::new(RepoKind::Image);
    let repo = forge.trusted();
    let floors = RepoVersions { root: 1, timestamp: 2, snapshot: 2, targets: 2, retrained: 2 };
    let mut restored = TrustedRepo::restore(RepoKind::Image, &repo.stored(), &floors).unwrap();
    assert_eq!(restored.versions(), RepoVersions { root: 1, ..RepoVersions::default() });
    refused(&mut restored, &forge.files(), ReasonCode::MetadataRollback);
}

#[test]
fn each_role_refuses_to_go_back() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.versions = [1, 5, 5, 5, 5];
    let repo = forge.trusted();
    // timestamp, snapshot, targets, retrained: the role in question falls, those above it rise.
    for versions in [[1, 4, 5, 5, 5], [1, 6, 4, 5, 5], [1, 6, 6, 4, 5], [1, 6, 6, 6, 4]] {
        forge.versions = versions;
        refused(&mut repo.clone(), &forge.files(), ReasonCode::MetadataRollback);
    }
    // A role that vanishes from the snapshot goes back to nothing.
    forge.versions = [1, 6, 6, 6, 6];
    let roles = BTreeMap::from([("targets".to_owned(), 6)]);
    let snapshot = sign(&write::snapshot(6, LATER_MS, &roles).unwrap(), &[&forge.snapshot]);
    let files = RepoFiles { snapshot: Some(Bytes(snapshot)), ..forge.files() };
    refused(&mut repo.clone(), &files, ReasonCode::MetadataRollback);
}

#[test]
fn the_same_timestamp_version_keeps_the_file_that_was_trusted() {
    let mut forge = Forge::new(RepoKind::Image);
    let mut repo = forge.trusted();
    forge.expires.insert("timestamp", LATER_MS + 5_000);
    repo.update(&RepoFiles { timestamp: Bytes(forge.timestamp_file()), ..RepoFiles::default() }, now())
        .unwrap();
    forge.expires.clear();
    assert_eq!(repo.stored().timestamp.unwrap().0, forge.timestamp_file());
}

#[test]
fn files_of_different_releases_do_not_mix() {
    let mut forge = Forge::new(RepoKind::Image);
    let old = forge.files();
    forge.bump();
    let new = forge.files();
    let mixes = [
        RepoFiles { snapshot: old.snapshot.clone(), ..new.clone() },
        RepoFiles { targets: old.targets.clone(), ..new.clone() },
        RepoFiles { delegated: old.delegated.clone(), ..new.clone() },
        RepoFiles { snapshot: None, ..new.clone() },
        RepoFiles { targets: None, ..new.clone() },
        RepoFiles { delegated: BTreeMap::new(), ..new.clone() },
    ];
    for mix in &mixes {
        refused(&mut forge.pinned(), mix, ReasonCode::MetadataMismatch);
    }
    forge.pinned().update(&new, now()).unwrap();
}

#[test]
fn two_timestamps_leave_room_in_a_kibibyte() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.versions = [1, 9_999_999, 9_999_999, 1, 1];
    let files = RepoFiles { timestamp: Bytes(forge.timestamp_file()), ..RepoFiles::default() };
    let check = dunlin_protocol::Check { image: files.clone(), director: files };
    assert!(dunlin_protocol::cbor::encode(&check).len() < 820);
}
