//! Signing: values of the five kinds of metadata, and the exact bytes of their files.
//!
//! Files are compact JSON with sorted members, so that a timestamp, which every check carries twice, is as
//! small as it can be.
use std::collections::BTreeMap;

use dunlin_protocol::Digest;
use serde_json::{Map, Value, json};

use crate::canonical::canonical;
use crate::metadata::format_time;
use crate::{Key, Signer, TrustError};

/// The specification that the files follow.
const SPEC_VERSION: &str = "1.0.34";

/// Keys and threshold of one role.
#[derive(Debug, Clone)]
pub struct RoleSpec {
    /// The keys.
    pub keys: Vec<Key>,
    /// How many of them must sign.
    pub threshold: u32,
}

/// The roles of a root.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub struct RootSpec {
    pub root: RoleSpec,
    pub timestamp: RoleSpec,
    pub snapshot: RoleSpec,
    pub targets: RoleSpec,
}

/// A target to list.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetSpec {
    /// Length in bytes.
    pub length: u64,
    /// SHA-256 of the content.
    pub sha256: Digest,
    /// What is said about it; `Null` for nothing.
    pub custom: Value,
}

/// One delegation.
#[derive(Debug, Clone)]
pub struct DelegationSpec {
    /// Name of the role.
    pub name: String,
    /// Who signs it.
    pub role: RoleSpec,
    /// Patterns of target names it may list.
    pub paths: Vec<String>,
    /// Whether the search ends there for these names.
    pub terminating: bool,
}

fn head(kind: &str, version: u64, expires_ms: u64) -> Result<Map<String, Value>, TrustError> {
    let expires = format_time(expires_ms).ok_or_else(|| TrustError::Unsignable {
        role: kind.to_owned(),
        what: "its expiry is beyond the calendar",
    })?;
    let mut signed = Map::new();
    signed.insert("_type".to_owned(), kind.into());
    signed.insert("expires".to_owned(), expires.into());
    signed.insert("spec_version".to_owned(), SPEC_VERSION.into());
    signed.insert("version".to_owned(), version.into());
    Ok(signed)
}

fn role(spec: &RoleSpec) -> Value {
    let ids: Vec<String> = spec.keys.iter().map(Key::id).collect();
    json!({ "keyids": ids, "threshold": spec.threshold })
}

fn keys<'a>(specs: impl IntoIterator<Item = &'a RoleSpec>) -> Value {
    let keys = specs.into_iter().flat_map(|spec| &spec.keys);
    keys.map(|key| (key.id(), key.declared().clone())).collect::<Map<_, _>>().into()
}

/// The value of a root.
///
/// # Errors
/// The expiry lies beyond the year 9999; so in all functions below.
pub fn root(version: u64, expires_ms: u64, spec: &RootSpec) -> Result<Value, TrustError> {
    let mut signed = head("root", version, expires_ms)?;
    signed.insert("consistent_snapshot".to_owned(), true.into());
    signed.insert("keys".to_owned(), keys([&spec.root, &spec.timestamp, &spec.snapshot, &spec.targets]));
    let roles = json!({
        "root": role(&spec.root),
        "timestamp": role(&spec.timestamp),
        "snapshot": role(&spec.snapshot),
        "targets": role(&spec.targets),
    });
    signed.insert("roles".to_owned(), roles);
    Ok(Value::Object(signed))
}

/// The value of a timestamp. It names the snapshot by version alone: the snapshot carries its own signature,
/// and a digest would make every "nothing changed" a quarter longer.
///
/// # Errors
/// See [`root`].
pub fn timestamp(version: u64, expires_ms: u64, snapshot_version: u64) -> Result<Value, TrustError> {
    let mut signed = head("timestamp", version, expires_ms)?;
    signed.insert("meta".to_owned(), json!({ "snapshot.json": { "version": snapshot_version } }));
    Ok(Value::Object(signed))
}

/// The value of a snapshot over the named roles (`targets`, `retrained`, ...).
///
/// # Errors
/// See [`root`].
pub fn snapshot(version: u64, expires_ms: u64, roles: &BTreeMap<String, u64>) -> Result<Value, TrustError> {
    let mut signed = head("snapshot", version, expires_ms)?;
    let meta: Map<_, _> =
        roles.iter().map(|(name, version)| (format!("{name}.json"), json!({ "version": version }))).collect();
    signed.insert("meta".to_owned(), meta.into());
    Ok(Value::Object(signed))
}

/// Pins the length of a file that a timestamp or snapshot names, so that a client takes in no other before it parses it.
pub fn pin_length(signed: &mut Value, role: &str, bytes: &[u8]) {
    if let Some(entry) = signed["meta"].get_mut(format!("{role}.json")) {
        entry["length"] = bytes.len().into();
    }
}

/// The value of a targets role, top-level or delegated.
///
/// # Errors
/// See [`root`].
pub fn targets(
    version: u64,
    expires_ms: u64,
    targets: &BTreeMap<String, TargetSpec>,
    delegations: &[DelegationSpec],
    custom: Value,
) -> Result<Value, TrustError> {
    let mut signed = head("targets", version, expires_ms)?;
    let listed: Map<_, _> = targets.iter().map(|(name, spec)| (name.clone(), target(spec))).collect();
    signed.insert("targets".to_owned(), listed.into());
    if !delegations.is_empty() {
        let roles: Vec<Value> = delegations.iter().map(delegation).collect();
        let delegations = json!({ "keys": keys(delegations.iter().map(|spec| &spec.role)), "roles": roles });
        signed.insert("delegations".to_owned(), delegations);
    }
    if !custom.is_null() {
        signed.insert("custom".to_owned(), custom);
    }
    Ok(Value::Object(signed))
}

/// One entry of a targets role.
pub fn target(spec: &TargetSpec) -> Value {
    let mut entry = json!({ "length": spec.length, "hashes": { "sha256": spec.sha256 } });
    if !spec.custom.is_null() {
        entry["custom"] = spec.custom.clone();
    }
    entry
}

fn delegation(spec: &DelegationSpec) -> Value {
    let mut entry = role(&spec.role);
    entry["name"] = spec.name.clone().into();
    entry["paths"] = spec.paths.clone().into();
    entry["terminating"] = spec.terminating.into();
    entry
}

/// Gives an existing `signed` value another version and expiry; all else, unknown members included, stays.
///
/// # Errors
/// The value is no object, or as in [`root`].
pub fn renew(signed: &Value, version: u64, expires_ms: u64) -> Result<Value, TrustError> {
    let kind = signed.get("_type").and_then(Value::as_str).unwrap_or_default();
    let expires = head(kind, version, expires_ms)?.remove("expires").unwrap_or_default();
    let mut next =
        signed.as_object().cloned().ok_or_else(|| TrustError::malformed(kind, "it is no object"))?;
    next.insert("version".to_owned(), version.into());
    next.insert("expires".to_owned(), expires);
    Ok(Value::Object(next))
}

/// The `signed` value of a file, not verified.
///
/// # Errors
/// The file is no signed JSON file.
pub fn signed_value(file: &[u8]) -> Result<Value, TrustError> {
    let malformed =
        |source| TrustError::Malformed { role: "this".to_owned(), what: "it is no JSON file", source };
    let mut file: Value = serde_json::from_slice(file).map_err(|source| malformed(Some(source)))?;
    match file.get_mut("signed") {
        Some(signed) => Ok(signed.take()),
        None => Err(malformed(None)),
    }
}

/// Signs a value: the exact bytes of its file.
///
/// # Errors
/// The value holds a float, or a key refused.
pub fn sign(signed: &Value, signers: &[&dyn Signer]) -> Result<Vec<u8>, TrustError> {
    let kind = signed.get("_type").and_then(Value::as_str).unwrap_or_default();
    let message = canonical(signed)
        .map_err(|_| TrustError::Unsignable { role: kind.to_owned(), what: "it holds a float" })?;
    let mut signatures = BTreeMap::new();
    for signer in signers {
        signatures.insert(signer.key_id(), base16ct::lower::encode_string(&signer.sign(&message)?));
    }
    let signatures: Vec<Value> =
        signatures.into_iter().map(|(keyid, sig)| json!({ "keyid": keyid, "sig": sig })).collect();
    let file = json!({ "signatures": signatures, "signed": signed });
    Ok(serde_json::to_vec(&file).expect("a JSON value with text keys always encodes"))
}

/// Adds signatures to a file that was signed elsewhere, so that the keys of a threshold never need to be in
/// one place. A signature of a key that signed before is replaced.
///
/// # Errors
/// The file is no signed JSON file, or as in [`sign`].
pub fn add_signatures(file: &[u8], signers: &[&dyn Signer]) -> Result<Vec<u8>, TrustError> {
    let malformed =
        |source| TrustError::Malformed { role: "this".to_owned(), what: "it is no signed JSON file", source };
    let mut whole: Value = serde_json::from_slice(file).map_err(|source| malformed(Some(source)))?;
    let fresh = sign(&signed_value(file)?, signers)?;
    let fresh: Value = serde_json::from_slice(&fresh).map_err(|source| malformed(Some(source)))?;
    let fresh = fresh["signatures"].as_array().cloned().unwrap_or_default();
    let signatures =
        whole.get_mut("signatures").and_then(Value::as_array_mut).ok_or_else(|| malformed(None))?;
    signatures.retain(|old| fresh.iter().all(|new| new["keyid"] != old["keyid"]));
    signatures.extend(fresh);
    Ok(serde_json::to_vec(&whole).expect("a JSON value with text keys always encodes"))
}
