//! Who may say what exists: delegations, their order and their bounds.
use std::collections::BTreeMap;

use dunlin_protocol::{Bytes, ReasonCode, RepoFiles};
use dunlin_trust::write::{self, DelegationSpec};
use dunlin_trust::{Lookup, RepoKind};
use serde_json::Value;

use super::forge::{Forge, LATER_MS, key, now, role, sign, target};
use super::refused;

#[test]
fn a_director_must_not_delegate() {
    let mut forge = Forge::new(RepoKind::Director);
    forge.delegate = true;
    refused(&mut forge.pinned(), &forge.files(), ReasonCode::MetadataMalformed);
    forge.delegate = false;
    forge.pinned().update(&forge.files(), now()).unwrap();
}

/// With every online key stolen: a role that the confined one names would count as the owner's, free of the signed bounds.
#[test]
fn the_confined_role_must_not_delegate() {
    let forge = Forge::new(RepoKind::Image);
    let thief = key();
    let own = DelegationSpec {
        name: "own".to_owned(),
        role: role(&[&thief], 1),
        paths: vec!["auto.*".to_owned()],
        terminating: false,
    };
    let listed = BTreeMap::from([("auto.meter.gbdt.1.json".to_owned(), target(b"x", Value::Null))]);
    let file = |delegations: &[DelegationSpec], listed, signer| {
        sign(&write::targets(1, LATER_MS, listed, delegations, Value::Null).unwrap(), &[signer])
    };
    let roles = ["targets", "retrained", "own"].map(|role| (role.to_owned(), 1));
    let snapshot = write::snapshot(1, LATER_MS, &BTreeMap::from(roles)).unwrap();
    let delegated = BTreeMap::from([
        ("retrained".to_owned(), Bytes(file(&[own], &BTreeMap::new(), &forge.retrained))),
        ("own".to_owned(), Bytes(file(&[], &listed, &thief))),
    ]);
    let snapshot = Some(Bytes(sign(&snapshot, &[&forge.snapshot])));
    let files = RepoFiles { snapshot, delegated, ..forge.files() };
    refused(&mut forge.pinned(), &files, ReasonCode::MetadataMalformed);
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
