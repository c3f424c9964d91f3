//! The client workflow against a table of attacks: each must be refused for its own reason and change nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod forge;

use std::collections::BTreeMap;

use dunlin_protocol::{Bytes, Now, ReasonCode, RepoFiles, RepoVersions};
use dunlin_trust::write;
use dunlin_trust::{Lookup, RepoKind, TrustError, TrustedRepo};
use forge::{Forge, LATER_MS, NOW_MS, key, now, sign, target};
use proptest::prelude::*;
use serde_json::{Value, json};

#[track_caller]
fn refused(repo: &mut TrustedRepo, files: &RepoFiles, reason: ReasonCode) -> TrustError {
    let before = (repo.stored(), repo.versions(), repo.floors());
    let error = repo.update(files, now()).unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
    assert_eq!((repo.stored(), repo.versions(), repo.floors()), before, "a refused update changed something");
    error
}

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
fn a_root_below_its_floor_has_to_be_led_back_up() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.rotate(&[]);
    let repo = forge.trusted();
    let mut stored = repo.stored();
    stored.root = Bytes(forge.roots[0].clone());
    let mut restored = TrustedRepo::restore(RepoKind::Image, &stored, &repo.floors()).unwrap();
    refused(&mut restored, &RepoFiles { roots: vec![], ..forge.files() }, ReasonCode::MetadataRollback);
    restored.update(&forge.files(), now()).unwrap();
    assert_eq!(restored.versions().root, 2);
}

#[test]
fn without_a_clock_nothing_is_accepted() {
    let forge = Forge::new(RepoKind::Image);
    let mut repo = forge.pinned();
    let error = repo.update(&forge.files(), Now { mono_ms: 1, wall_ms: None }).unwrap_err();
    assert_eq!(error.reason(), ReasonCode::ClockUnknown);
    assert_eq!(repo.versions().timestamp, 0);
}

#[test]
fn every_expired_role_is_refused() {
    for role in ["root", "timestamp", "snapshot", "targets", "retrained"] {
        let mut forge = Forge::new(RepoKind::Image);
        forge.expires.insert(role, NOW_MS);
        forge.roots[0] = forge.root_file();
        let error = refused(&mut forge.pinned(), &forge.files(), ReasonCode::MetadataExpired);
        assert!(matches!(error, TrustError::Expired { role: named, .. } if named == role));
    }
}

/// A frozen repository is noticed even if each file was good when it came.
#[test]
fn held_files_expire_too() {
    for role in ["timestamp", "snapshot", "targets", "retrained"] {
        let mut forge = Forge::new(RepoKind::Image);
        forge.expires.insert(role, NOW_MS + 10_000);
        let mut repo = forge.trusted();
        let only_timestamp = RepoFiles { timestamp: Bytes(forge.timestamp_file()), ..RepoFiles::default() };
        let later = Now { mono_ms: 0, wall_ms: Some(NOW_MS + 10_000) };
        assert_eq!(
            repo.update(&only_timestamp, later).unwrap_err().reason(),
            ReasonCode::MetadataExpired,
            "{role}"
        );
    }
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
fn pinned_length_and_digest_are_checked_when_they_are_given() {
    let forge = Forge::new(RepoKind::Image);
    let snapshot = forge.snapshot_file();
    let good = json!({ "version": 1, "length": snapshot.len(), "hashes": { "sha256": dunlin_trust::sha256(&snapshot) } });
    let with = |meta: Value| {
        let mut value = write::timestamp(1, LATER_MS, 1).unwrap();
        value["meta"]["snapshot.json"] = meta;
        RepoFiles { timestamp: Bytes(sign(&value, &[&forge.timestamp])), ..forge.files() }
    };
    forge.pinned().update(&with(good.clone()), now()).unwrap();
    for (member, bad) in [
        ("length", json!(snapshot.len() + 1)),
        ("hashes", json!({ "sha256": "00" })),
        ("hashes", json!({ "md5": "00" })),
        ("hashes", json!({ "sha256": dunlin_trust::sha256(&snapshot), "sha512": "00" })),
    ] {
        let mut meta = good.clone();
        meta[member] = bad;
        refused(&mut forge.pinned(), &with(meta), ReasonCode::MetadataMismatch);
    }
}

#[test]
fn too_few_signatures_are_refused_for_every_role() {
    let forge = Forge::new(RepoKind::Image);
    let one_key = sign(&forge.targets_value(), &[&forge.targets[0]]);
    let stranger = key();
    let wrong_key = |file: Vec<u8>| sign(&write::signed_value(&file).unwrap(), &[&stranger]);
    let good = forge.files();
    let cases = [
        RepoFiles { targets: Some(Bytes(one_key)), ..good.clone() },
        RepoFiles { timestamp: Bytes(wrong_key(forge.timestamp_file())), ..good.clone() },
        RepoFiles { snapshot: Some(Bytes(wrong_key(forge.snapshot_file()))), ..good.clone() },
        RepoFiles { targets: Some(Bytes(wrong_key(forge.targets_file()))), ..good.clone() },
        RepoFiles {
            delegated: BTreeMap::from([("retrained".to_owned(), Bytes(wrong_key(forge.retrained_file())))]),
            ..good.clone()
        },
        // The keys of one role are no keys of another.
        RepoFiles {
            timestamp: Bytes(sign(
                &write::timestamp(1, LATER_MS, 1).unwrap(),
                &[&forge.targets[0], &forge.snapshot],
            )),
            ..good.clone()
        },
    ];
    for files in &cases {
        refused(&mut forge.pinned(), files, ReasonCode::SignatureThreshold);
    }
}

#[test]
fn a_key_under_several_ids_counts_once() {
    let mut forge = Forge::new(RepoKind::Image);
    let mut value = write::root(1, LATER_MS, &forge.root_spec()).unwrap();
    let id = forge.targets[0].key().id();
    value["keys"]["alias"] = value["keys"][&id].clone();
    value["roles"]["targets"] = json!({ "keyids": [id, "alias"], "threshold": 2 });
    forge.roots[0] = sign(&value, &forge.root.iter().collect::<Vec<_>>());

    let mut targets: Value =
        serde_json::from_slice(&sign(&forge.targets_value(), &[&forge.targets[0]])).unwrap();
    let mut alias = targets["signatures"][0].clone();
    alias["keyid"] = "alias".into();
    targets["signatures"].as_array_mut().unwrap().push(alias);
    let files = RepoFiles { targets: Some(Bytes(targets.to_string().into())), ..forge.files() };
    refused(&mut forge.pinned(), &files, ReasonCode::SignatureThreshold);
}

#[test]
fn a_key_id_may_sign_once_only() {
    let forge = Forge::new(RepoKind::Image);
    let mut twice: Value =
        serde_json::from_slice(&sign(&forge.targets_value(), &[&forge.targets[0]])).unwrap();
    let again = twice["signatures"][0].clone();
    twice["signatures"].as_array_mut().unwrap().push(again);
    let files = RepoFiles { targets: Some(Bytes(twice.to_string().into())), ..forge.files() };
    refused(&mut forge.pinned(), &files, ReasonCode::MetadataMalformed);
}

#[test]
fn a_bad_signature_does_not_spoil_the_good_ones() {
    let forge = Forge::new(RepoKind::Image);
    let mut file: Value = serde_json::from_slice(&forge.targets_file()).unwrap();
    let more =
        [json!({ "keyid": "stranger", "sig": "no hex" }), json!({ "keyid": key().key().id(), "sig": "" })];
    file["signatures"].as_array_mut().unwrap().extend(more);
    let files = RepoFiles { targets: Some(Bytes(file.to_string().into())), ..forge.files() };
    forge.pinned().update(&files, now()).unwrap();
}

#[test]
fn unknown_members_stay_under_the_signature() {
    let forge = Forge::new(RepoKind::Image);
    let mut value = forge.targets_value();
    value["x-notes"] = json!({ "by": ["a person"], "n": 3 });
    let all: Vec<_> = forge.targets.iter().collect();
    let file = sign(&value, &all);
    let files = |file: Vec<u8>| RepoFiles { targets: Some(Bytes(file)), ..forge.files() };
    forge.pinned().update(&files(file.clone()), now()).unwrap();
    let bent = String::from_utf8(file).unwrap().replace("a person", "b person").into_bytes();
    refused(&mut forge.pinned(), &files(bent), ReasonCode::SignatureThreshold);
}

#[test]
fn what_is_no_metadata_is_refused() {
    let forge = Forge::new(RepoKind::Image);
    let all: Vec<_> = forge.targets.iter().collect();
    let bend = |path: &str, bad: Value| {
        let mut value = forge.targets_value();
        *value.pointer_mut(path).unwrap() = bad;
        // A float can not even be signed, so it is put in afterwards.
        let file = write::sign(&value, &[]).map(|_| sign(&value, &all));
        file.unwrap_or_else(|_| json!({ "signatures": [], "signed": value }).to_string().into_bytes())
    };
    let cases = [
        bend("/version", json!(0)),
        bend("/version", json!(1.5)),
        bend("/version", json!("1")),
        bend("/_type", json!("snapshot")),
        bend("/spec_version", json!("2.0.0")),
        bend("/expires", json!("soon")),
        bend("/targets", json!([])),
        bend("/delegations/roles/0/threshold", json!(0)),
        bend("/delegations/roles/0/name", json!("root")),
        bend("/delegations/roles/0/paths", Value::Null),
        b"".to_vec(),
        b"[]".to_vec(),
        b"{\"signatures\":[],\"signed\":".to_vec(),
        [b"{\"signatures\":[],\"signed\":", &[b'['; 500][..]].concat(),
    ];
    for file in cases {
        let shown = String::from_utf8_lossy(&file).into_owned();
        let mut repo = forge.pinned();
        let error =
            repo.update(&RepoFiles { targets: Some(Bytes(file)), ..forge.files() }, now()).unwrap_err();
        assert_eq!(error.reason(), ReasonCode::MetadataMalformed, "{shown}: {error}");
    }
}

#[test]
fn files_over_their_limit_are_refused_unread() {
    let forge = Forge::new(RepoKind::Image);
    let huge = |max: usize| Bytes(vec![b' '; max + 1]);
    let cases = [
        RepoFiles { roots: vec![huge(512 * 1024)], ..forge.files() },
        RepoFiles { timestamp: huge(16 * 1024), ..forge.files() },
        RepoFiles { snapshot: Some(huge(2 * 1024 * 1024)), ..forge.files() },
        RepoFiles { targets: Some(huge(5 * 1024 * 1024)), ..forge.files() },
    ];
    for files in &cases {
        refused(&mut forge.pinned(), files, ReasonCode::MetadataTooLarge);
    }
    let many = RepoFiles { roots: vec![Bytes(forge.roots[0].clone()); 257], ..forge.files() };
    refused(&mut forge.pinned(), &many, ReasonCode::RootChain);
}

#[test]
fn a_director_must_not_delegate() {
    let mut forge = Forge::new(RepoKind::Director);
    forge.delegate = true;
    refused(&mut forge.pinned(), &forge.files(), ReasonCode::MetadataMalformed);
    forge.delegate = false;
    forge.pinned().update(&forge.files(), now()).unwrap();
}

#[test]
fn roots_rotate_through_several_versions() {
    let mut forge = Forge::new(RepoKind::Image);
    let repo = forge.trusted();
    for _ in 0..4 {
        let mut old = vec![key(), key()];
        std::mem::swap(&mut old, &mut forge.root);
        forge.rotate(&old.iter().collect::<Vec<_>>());
    }
    forge.targets = vec![key(), key()];
    forge.rotate(&[]);
    forge.bump();
    let files = forge.files();
    let mut followed = repo.clone();
    followed.update(&files, now()).unwrap();
    assert_eq!(followed.versions().root, 6);
    // A client in the middle is answered with what it holds already, too.
    followed.update(&files, now()).unwrap();
    // A gap, another order, or a link that one side did not sign breaks the chain.
    let mut gap = files.clone();
    gap.roots.remove(2);
    refused(&mut repo.clone(), &gap, ReasonCode::SignatureThreshold);
    let mut swapped = files.clone();
    swapped.roots.swap(0, 1);
    assert!(repo.clone().update(&swapped, now()).is_err());
}

#[test]
fn a_next_root_needs_the_old_threshold_and_its_own() {
    let mut forge = Forge::new(RepoKind::Image);
    let repo = forge.trusted();
    let old = std::mem::replace(&mut forge.root, vec![key(), key()]);
    forge.versions[0] = 2;
    let value = write::root(2, LATER_MS, &forge.root_spec()).unwrap();
    let with = |signers: &[&dunlin_trust::Ed25519Signer]| RepoFiles {
        roots: vec![Bytes(sign(&value, signers))],
        ..forge.files()
    };
    let (a, b, c, d) = (&old[0], &old[1], &forge.root[0], &forge.root[1]);
    for signers in [&[c, d][..], &[a, b], &[a, c, d], &[a, b, c]] {
        refused(&mut repo.clone(), &with(signers), ReasonCode::SignatureThreshold);
    }
    repo.clone().update(&with(&[a, b, c, d]), now()).unwrap();
    // The right keys on a version that is not the next one.
    let value = write::root(3, LATER_MS, &forge.root_spec()).unwrap();
    let files = RepoFiles { roots: vec![Bytes(sign(&value, &[a, b, c, d]))], ..forge.files() };
    refused(&mut repo.clone(), &files, ReasonCode::RootChain);
}

#[test]
fn an_expired_root_on_the_way_is_no_hindrance() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.expires.insert("root", 1);
    forge.roots[0] = forge.root_file();
    forge.rotate(&[]);
    forge.expires.clear();
    forge.rotate(&[]);
    assert_eq!(forge.trusted().versions().root, 3);
}

#[test]
fn rotating_the_stolen_key_recovers_from_a_fast_forward() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.versions = [1, 1 << 60, 1 << 60, 7, 7];
    let repo = forge.trusted();
    forge.versions = [1, 2, 2, 7, 7];
    refused(&mut repo.clone(), &forge.files(), ReasonCode::MetadataRollback);
    forge.timestamp = key();
    forge.rotate(&[]);
    let mut recovered = repo.clone();
    recovered.update(&forge.files(), now()).unwrap();
    assert_eq!(
        recovered.versions(),
        RepoVersions { root: 2, timestamp: 2, snapshot: 2, targets: 7, retrained: 7 }
    );
    assert_eq!(recovered.floors(), recovered.versions());
    // The timestamp's key says nothing about the targets: their floor stays until the snapshot's key goes.
    forge.versions = [2, 3, 3, 6, 6];
    refused(&mut recovered.clone(), &forge.files(), ReasonCode::MetadataRollback);
    forge.snapshot = key();
    forge.rotate(&[]);
    recovered.update(&forge.files(), now()).unwrap();
    assert_eq!(recovered.versions().targets, 6);
}

/// A device whose cached root is torn walks the chain again from its pinned root. The rotations on the way were
/// seen before, so they must not take the floors down a second time.
#[test]
fn an_old_rotation_recovers_nothing_twice() {
    let mut forge = Forge::new(RepoKind::Image);
    (forge.timestamp, forge.snapshot) = (key(), key());
    forge.rotate(&[]);
    let old = forge.files();
    forge.versions = [2, 9, 9, 9, 9];
    let repo = forge.trusted();
    let stored = dunlin_trust::StoredFiles { root: Bytes(forge.roots[0].clone()), ..Default::default() };
    let mut again = TrustedRepo::restore(RepoKind::Image, &stored, &repo.floors()).unwrap();
    refused(&mut again, &old, ReasonCode::MetadataRollback);
    again.update(&forge.files(), now()).unwrap();
    assert_eq!(again.floors(), repo.floors());
}

#[test]
fn adding_a_key_recovers_nothing() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.versions = [1, 9, 9, 1, 1];
    let mut repo = forge.trusted();
    let mut spec = forge.root_spec();
    spec.timestamp.keys.push(key().key().clone());
    let value = write::root(2, LATER_MS, &spec).unwrap();
    forge.roots.push(sign(&value, &forge.root.iter().collect::<Vec<_>>()));
    forge.versions = [2, 2, 2, 1, 1];
    refused(&mut repo, &forge.files(), ReasonCode::MetadataRollback);
}

#[test]
fn a_delegation_is_confined_to_its_paths() {
    let mut forge = Forge::new(RepoKind::Image);
    for name in ["meter.2.json", "policy.meter.json", "auto.meter.gbdt.1.json"] {
        forge.retrained_listed.insert(name.to_owned(), target(b"x", Value::Null));
    }
    let repo = forge.trusted();
    assert!(repo.target("auto.meter.gbdt.1.json").is_some());
    assert!(repo.target("meter.2.json").is_none());
    assert!(repo.target("policy.meter.json").is_none());
    assert_eq!(repo.target_names().len(), 1);
}

#[test]
fn the_top_level_role_ranks_before_its_delegations() {
    let mut forge = Forge::new(RepoKind::Image);
    let name = "auto.meter.gbdt.1.json";
    forge.listed.insert(name.to_owned(), target(b"offline", Value::Null));
    forge.retrained_listed.insert(name.to_owned(), target(b"online", Value::Null));
    let found = forge.trusted().target(name).unwrap();
    assert_eq!((found.role.as_str(), found.sha256), ("targets", dunlin_trust::sha256(b"offline")));
}

#[test]
fn a_replaced_delegation_takes_the_old_roles_word_away() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.retrained_listed.insert("auto.meter.gbdt.1.json".to_owned(), target(b"x", Value::Null));
    let mut repo = forge.trusted();
    // The offline keys name another key; the online role keeps its version and its file.
    let old = forge.retrained_file();
    forge.retrained = key();
    forge.versions = [1, 2, 2, 2, 1];
    let files =
        RepoFiles { delegated: BTreeMap::from([("retrained".to_owned(), Bytes(old))]), ..forge.files() };
    refused(&mut repo, &files, ReasonCode::SignatureThreshold);
    forge.versions = [1, 2, 2, 2, 2];
    repo.update(&forge.files(), now()).unwrap();
}

/// Step by step, as a client that fetches file by file does it: the search asks for what it needs.
#[test]
fn the_search_is_lazy_and_in_order() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.retrained_listed.insert("auto.a.b.1.json".to_owned(), target(b"x", Value::Null));
    let mut repo = forge.pinned();
    repo.step_timestamp(&forge.timestamp_file(), now()).unwrap();
    assert_eq!(repo.snapshot_wanted(), Some(1));
    repo.step_snapshot(&forge.snapshot_file(), now()).unwrap();
    assert_eq!(repo.targets_wanted(), Some(1));
    repo.step_targets(&forge.targets_file(), now()).unwrap();
    assert!(matches!(repo.lookup("meter.1.json"), Lookup::Absent));
    let Lookup::Needs { delegator, role, version } = repo.lookup("auto.a.b.1.json") else {
        panic!("not asked for")
    };
    assert_eq!((delegator, role, version), ("targets", "retrained", 1));
    repo.step_delegated("targets", "retrained", &forge.retrained_file(), now()).unwrap();
    assert!(matches!(repo.lookup("auto.a.b.1.json"), Lookup::Found { role: "retrained", .. }));
}

/// Delegations that go in a circle, and a terminating one before another that also covers the name.
#[test]
fn the_search_ends() {
    let forge = Forge::new(RepoKind::Image);
    let edge = |name: &str, terminating: bool| write::DelegationSpec {
        name: name.to_owned(),
        role: forge::role(&[&forge.retrained], 1),
        paths: vec!["*".to_owned()],
        terminating,
    };
    let none = BTreeMap::new();
    let named = BTreeMap::from([("x".to_owned(), target(b"x", Value::Null))]);
    let make = |listed, edges: &[_]| write::targets(1, LATER_MS, listed, edges, Value::Null).unwrap();
    let all: Vec<_> = forge.targets.iter().collect();
    let build = |first_terminates: bool| {
        let roles = ["targets", "a", "b"].map(|role| (role.to_owned(), 1)).into();
        RepoFiles {
            snapshot: Some(Bytes(sign(&write::snapshot(1, LATER_MS, &roles).unwrap(), &[&forge.snapshot]))),
            targets: Some(Bytes(sign(&make(&none, &[edge("a", first_terminates), edge("b", false)]), &all))),
            delegated: BTreeMap::from([
                ("a".to_owned(), Bytes(sign(&make(&none, &[edge("a", false)]), &[&forge.retrained]))),
                ("b".to_owned(), Bytes(sign(&make(&named, &[edge("a", false)]), &[&forge.retrained]))),
            ]),
            ..forge.files()
        }
    };
    let mut open = forge.pinned();
    open.update(&build(false), now()).unwrap();
    assert_eq!(open.target("x").unwrap().role, "b");
    let mut closed = forge.pinned();
    closed.update(&build(true), now()).unwrap();
    assert!(closed.target("x").is_none());
}

#[test]
fn two_timestamps_leave_room_in_a_kibibyte() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.versions = [1, 9_999_999, 9_999_999, 1, 1];
    let files = RepoFiles { timestamp: Bytes(forge.timestamp_file()), ..RepoFiles::default() };
    let check = dunlin_protocol::Check { image: files.clone(), director: files };
    assert!(dunlin_protocol::cbor::encode(&check).len() < 820);
}

#[test]
fn signatures_can_be_gathered_one_by_one() {
    let forge = Forge::new(RepoKind::Image);
    let one = sign(&forge.targets_value(), &[&forge.targets[0]]);
    let two = write::add_signatures(&one, &[&forge.targets[1]]).unwrap();
    let files = RepoFiles { targets: Some(Bytes(two)), ..forge.files() };
    forge.pinned().update(&files, now()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), which in 0..5usize) {
        let forge = Forge::new(RepoKind::Image);
        let mut files = forge.files();
        match which {
            0 => files.roots.push(Bytes(bytes)),
            1 => files.timestamp = Bytes(bytes),
            2 => files.snapshot = Some(Bytes(bytes)),
            3 => files.targets = Some(Bytes(bytes)),
            _ => drop(files.delegated.insert("retrained".to_owned(), Bytes(bytes))),
        }
        prop_assert!(forge.pinned().update(&files, now()).is_err());
    }

    /// One changed byte anywhere in a file either breaks it or does not touch what is signed.
    #[test]
    fn a_changed_byte_never_changes_what_is_trusted(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut forge = Forge::new(RepoKind::Image);
        forge.listed.insert("meter.1.json".to_owned(), target(b"one", Value::Null));
        let mut files = forge.files();
        let file = files.targets.as_mut().unwrap();
        let at = at.index(file.0.len());
        file.0[at] = to;
        let mut repo = forge.pinned();
        if repo.update(&files, now()).is_ok() {
            prop_assert_eq!(repo.target("meter.1.json"), forge.trusted().target("meter.1.json"));
        }
    }
}
