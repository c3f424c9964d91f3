//! What is no metadata is refused for what it is.
use dunlin_protocol::{Bytes, ReasonCode, RepoFiles};
use dunlin_trust::{RepoKind, write};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::forge::{Forge, LATER_MS, now, sign, target};
use super::refused;

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
