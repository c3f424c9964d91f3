//! Thresholds count distinct keys over exactly what is signed.
use std::collections::BTreeMap;

use dunlin_protocol::{Bytes, ReasonCode, RepoFiles};
use dunlin_trust::{RepoKind, write};
use serde_json::{Value, json};

use super::forge::{Forge, LATER_MS, key, now, sign};
use super::refused;

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
fn signatures_can_be_gathered_one_by_one() {
    let forge = Forge::new(RepoKind::Image);
    let one = sign(&forge.targets_value(), &[&forge.targets[0]]);
    let two = write::add_signatures(&one, &[&forge.targets[1]]).unwrap();
    let files = RepoFiles { targets: Some(Bytes(two)), ..forge.files() };
    forge.pinned().update(&files, now()).unwrap();
}
