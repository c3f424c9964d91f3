//! Roles signed by keys of another type than ours, and files pinned by either digest.
use dunlin_protocol::{Bytes, ReasonCode, RepoFiles};
use dunlin_trust::write::{DelegationSpec, RoleSpec, RootSpec};
use dunlin_trust::{Key, RepoKind, Signer, TrustError, TrustedRepo, write};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PSS_SHA256, RsaKeyPair};
use serde_json::{Value, json};

use super::forge::{Forge, LATER_MS, now, sign, target};
use super::refused;

/// ECDSA P-256 with ASN.1 signatures, the type that most repositories use.
struct Ecdsa {
    pair: EcdsaKeyPair,
    key: Key,
    id: String,
}

impl Ecdsa {
    fn new() -> Self {
        let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let der = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(kind, der.as_ref(), &random).unwrap();
        // SubjectPublicKeyInfo of an uncompressed point on P-256 (RFC 5480).
        let head =
            data_encoding::HEXLOWER.decode(b"3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
        let spki = data_encoding::BASE64.encode(&[&head, pair.public_key().as_ref()].concat());
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{spki}\n-----END PUBLIC KEY-----\n");
        let key = json!({ "keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": { "public": pem } });
        let key = Key::from_value(key).unwrap();
        Self { pair, id: key.id(), key }
    }
}

impl Signer for Ecdsa {
    fn key_id(&self) -> &str {
        &self.id
    }

    fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        Ok(self.pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec())
    }
}

/// RSASSA-PSS with SHA-256, from a key that is good for nothing else.
struct Rsa {
    pair: RsaKeyPair,
    key: Key,
    id: String,
}

impl Rsa {
    fn new() -> Self {
        let pem = include_str!("../keys/rsa-test-only.key.pem");
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let pair = RsaKeyPair::from_pkcs8(&data_encoding::BASE64.decode(base64.as_bytes()).unwrap()).unwrap();
        let public = include_str!("../keys/rsa-test-only.pub.pem");
        let key = json!({ "keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": { "public": public } });
        let key = Key::from_value(key).unwrap();
        Self { pair, id: key.id(), key }
    }
}

impl Signer for Rsa {
    fn key_id(&self) -> &str {
        &self.id
    }

    fn public(&self) -> &[u8] {
        self.pair.public().as_ref()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
        Ok(signature)
    }
}

/// Every role, the delegated one too, is signed with RSA-PSS, and its root is replaced by the next.
#[test]
fn a_repository_signed_with_rsa_pss_is_followed_from_root_to_delegated_targets() {
    let (rsa, forge) = (Rsa::new(), Forge::new(RepoKind::Image));
    let role = || RoleSpec { keys: vec![rsa.key.clone()], threshold: 1 };
    let spec = RootSpec { root: role(), timestamp: role(), snapshot: role(), targets: role() };
    let delegation = DelegationSpec {
        name: "retrained".to_owned(),
        role: role(),
        paths: vec!["auto.*".to_owned()],
        terminating: true,
    };
    let listed = |name: &str| [(name.to_owned(), target(b"model", Value::Null))].into();
    let versions = [("targets".to_owned(), 1), ("retrained".to_owned(), 1)].into();
    let signed = |value: &Value| Bytes(write::sign(value, &[&rsa as &dyn Signer]).unwrap());
    let targets = write::targets(1, LATER_MS, &listed("meter.1.json"), &[delegation], Value::Null).unwrap();
    let retrained = write::targets(1, LATER_MS, &listed("auto.meter.1.json"), &[], Value::Null).unwrap();
    let files = RepoFiles {
        roots: vec![signed(&write::root(2, LATER_MS, &spec).unwrap())],
        timestamp: signed(&write::timestamp(1, LATER_MS, 1).unwrap()),
        snapshot: Some(signed(&write::snapshot(1, LATER_MS, &versions).unwrap())),
        targets: Some(signed(&targets)),
        delegated: [("retrained".to_owned(), signed(&retrained))].into(),
    };
    let pinned = signed(&write::root(1, LATER_MS, &spec).unwrap());
    let pinned = || TrustedRepo::pinned(RepoKind::Image, pinned.as_slice()).unwrap();
    let mut repo = pinned();
    repo.update(&files, now()).unwrap();
    assert_eq!(repo.versions().root, 2);
    assert!(repo.target("meter.1.json").is_some() && repo.target("auto.meter.1.json").is_some());

    // The same content under a key of somebody else.
    let other = |value: &Value| Bytes(sign(value, &[&forge.timestamp]));
    let bent = [
        RepoFiles { roots: vec![other(&write::root(2, LATER_MS, &spec).unwrap())], ..files.clone() },
        RepoFiles { timestamp: other(&write::timestamp(1, LATER_MS, 1).unwrap()), ..files.clone() },
        RepoFiles { targets: Some(other(&targets)), ..files.clone() },
        RepoFiles { delegated: [("retrained".to_owned(), other(&retrained))].into(), ..files.clone() },
    ];
    for files in bent {
        refused(&mut pinned(), &files, ReasonCode::SignatureThreshold);
    }
}

/// A threshold of two over an Ed25519 and an ECDSA key.
#[test]
fn key_types_mix_within_a_threshold() {
    let (mut forge, ecdsa) = (Forge::new(RepoKind::Image), Ecdsa::new());
    let mut spec = forge.root_spec();
    spec.targets.keys = vec![forge.targets[0].key().clone(), ecdsa.key.clone()];
    let root = write::root(1, LATER_MS, &spec).unwrap();
    forge.roots[0] = sign(&root, &forge.root.iter().collect::<Vec<_>>());
    let with = |signers: &[&dyn Signer]| RepoFiles {
        targets: Some(Bytes(write::sign(&forge.targets_value(), signers).unwrap())),
        ..forge.files()
    };
    forge.pinned().update(&with(&[&forge.targets[0], &ecdsa]), now()).unwrap();
    refused(&mut forge.pinned(), &with(&[&forge.targets[0]]), ReasonCode::SignatureThreshold);
    refused(&mut forge.pinned(), &with(&[&ecdsa]), ReasonCode::SignatureThreshold);
    refused(&mut forge.pinned(), &with(&[&Ecdsa::new(), &forge.targets[0]]), ReasonCode::SignatureThreshold);
}

/// A key's declared id need not be its digest (§4.2), and a type of the future does not spoil the file.
#[test]
fn declared_ids_and_unknown_types_are_taken_as_they_are() {
    let mut forge = Forge::new(RepoKind::Image);
    let mut value = write::root(1, LATER_MS, &forge.root_spec()).unwrap();
    let id = forge.timestamp.key_id().to_owned();
    value["keys"]["clock"] = value["keys"][&id].clone();
    value["keys"]["future"] =
        json!({ "keytype": "lattice", "scheme": "lattice-1", "keyval": { "public": "00" }, "x": [1] });
    value["keys"].as_object_mut().unwrap().remove(&id);
    value["roles"]["timestamp"] = json!({ "keyids": ["future", "clock"], "threshold": 1 });
    forge.roots[0] = sign(&value, &forge.root.iter().collect::<Vec<_>>());
    let mut timestamp: Value = serde_json::from_slice(&forge.timestamp_file()).unwrap();
    timestamp["signatures"][0]["keyid"] = "clock".into();
    let files = RepoFiles { timestamp: Bytes(timestamp.to_string().into()), ..forge.files() };
    forge.pinned().update(&files, now()).unwrap();
    refused(&mut forge.pinned(), &forge.files(), ReasonCode::SignatureThreshold);
}

/// SHA-512 alone pins a file as well as SHA-256 does; one digest of each must both fit.
#[test]
fn targets_are_matched_by_either_digest() {
    let sha512 = |bytes: &[u8]| {
        data_encoding::HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA512, bytes).as_ref())
    };
    let file = |hashes: Value| -> dunlin_trust::metadata::TargetFile {
        serde_json::from_value(json!({ "length": 5, "hashes": hashes })).unwrap()
    };
    assert!(file(json!({ "sha512": sha512(b"model") })).matches(b"model").is_ok());
    assert!(file(json!({ "sha512": sha512(b"model") })).matches(b"modem").is_err());
    assert!(
        file(json!({ "sha256": dunlin_trust::sha256(b"model"), "sha512": sha512(b"x") }))
            .matches(b"model")
            .is_err()
    );
    assert!(
        file(json!({ "sha256": dunlin_trust::sha256(b"model"), "blake9": "00" })).matches(b"model").is_ok()
    );
    assert!(file(json!({ "blake9": "00" })).matches(b"model").is_err());
    assert!(file(json!({ "sha256": dunlin_trust::sha256(b"models") })).matches(b"models").is_err());
}
