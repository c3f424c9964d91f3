//! Key types that others sign with: public keys and signatures made by OpenSSL over `canonical bytes`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use dunlin_trust::Key;
use serde_json::json;

const MESSAGE: &[u8] = b"canonical bytes";

#[track_caller]
fn check(keytype: &str, scheme: &str, public: &str, signature: &str) {
    let key = |scheme: &str| {
        Key::from_value(json!({ "keytype": keytype, "scheme": scheme, "keyval": { "public": public } }))
            .unwrap()
    };
    let signature = data_encoding::HEXLOWER.decode(signature.trim().as_bytes()).unwrap();
    assert!(key(scheme).verifies(MESSAGE, &signature));
    assert!(!key(scheme).verifies(b"other bytes", &signature));
    assert!(!key(scheme).verifies(MESSAGE, &signature[..signature.len() - 1]));
    assert!(!key("a-scheme-of-the-future").verifies(MESSAGE, &signature));
}

#[test]
fn rsa_pss_signatures_verify() {
    check("rsa", "rsassa-pss-sha256", include_str!("keys/rsa.pub.pem"), include_str!("keys/rsa.sig.hex"));
}

#[test]
fn ecdsa_p256_signatures_verify_under_both_names_of_the_type() {
    let (public, signature) = (include_str!("keys/p256.pub.pem"), include_str!("keys/p256.sig.hex"));
    check("ecdsa", "ecdsa-sha2-nistp256", public, signature);
    check("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256", public, signature);
}

/// RFC 8032 §7.1, test 3.
#[test]
fn ed25519_verifies_the_vector_of_its_rfc() {
    let public = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025";
    let signature = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a";
    let key =
        Key::from_value(json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": public } }));
    let signature = data_encoding::HEXLOWER.decode(signature.as_bytes()).unwrap();
    assert!(key.unwrap().verifies(&[0xaf, 0x82], &signature));
}

#[test]
fn the_id_of_a_key_is_the_digest_of_its_canonical_form() {
    let key = Key::ed25519(&[0; 32]);
    let text = format!(
        "{{\"keytype\":\"ed25519\",\"keyval\":{{\"public\":\"{}\"}},\"scheme\":\"ed25519\"}}",
        "00".repeat(32)
    );
    assert_eq!(key.id(), dunlin_trust::sha256(text.as_bytes()).to_string());
}

#[test]
fn broken_material_verifies_nothing() {
    for (keytype, scheme) in
        [("rsa", "rsassa-pss-sha256"), ("ecdsa", "ecdsa-sha2-nistp256"), ("ed25519", "ed25519")]
    {
        for public in ["", "zz", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"] {
            let key = json!({ "keytype": keytype, "scheme": scheme, "keyval": { "public": public } });
            assert!(!Key::from_value(key).unwrap().verifies(MESSAGE, b"signature"));
        }
    }
    assert!(Key::from_value(json!({ "keytype": "ed25519" })).is_err());
}
