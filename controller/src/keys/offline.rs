//! Signing where the offline keys are, on files that are carried there and back.
use std::collections::BTreeMap;

use dunlin_protocol::{Digest, ModelName, ReleaseId};
use dunlin_trust::metadata::Targets;
use dunlin_trust::write::{self, TargetSpec};
use dunlin_trust::{Key, RETRAINED, Signed, Signer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::ceremony::{IMAGE_TARGETS, refs, sign};
use super::delegate::drop_unused_delegation_keys;
use super::{KeyError, Keyring, TARGETS_LIFE_MS};

/// A target to be listed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Addition {
    /// Name of the target.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// SHA-256 of the content.
    #[schema(value_type = String)]
    pub sha256: Digest,
    /// What is said about it: of a manifest, task and hard constraints.
    #[serde(default)]
    #[schema(value_type = Option<crate::api::shape::Custom>)]
    pub custom: Value,
}

impl Addition {
    pub(crate) fn spec(&self) -> TargetSpec {
        TargetSpec { length: self.length, sha256: self.sha256, custom: self.custom.clone() }
    }
}

/// What the holders of the targets keys are asked to sign.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// Targets to list; one that is listed with other content is refused.
    pub add: Vec<Addition>,
    /// Names to take off the list.
    pub remove: Vec<String>,
    /// Release floors to raise.
    pub floors: BTreeMap<ModelName, u32>,
    /// Another key for the `retrained` role, as `online.json` declares it: after a break-in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrained_key: Option<Value>,
}

/// The next top-level targets of the image repository: `current` with the request carried out, signed by every
/// `image-targets*.pem` in `keys`. An empty request renews the expiry. Nothing is verified here: the file has to
/// come from a place that the signers trust, and the controller verifies what it is given.
///
/// # Errors
/// The request does not fit the file, no key is there, or signing failed.
pub fn sign_targets<'a>(
    current: &[u8],
    request: &Request,
    keys: impl Into<Keyring<'a>>,
    now_ms: u64,
) -> Result<Vec<u8>, KeyError> {
    let signers = keys.into().signers(IMAGE_TARGETS)?;
    sign_targets_with(current, request, &refs(&signers), now_ms)
}

/// The same with keys wherever they live: in files, or in a token that never gives them away.
///
/// # Errors
/// The request does not fit the file, or signing failed.
pub fn sign_targets_with(
    current: &[u8],
    request: &Request,
    signers: &[&dyn Signer],
    now_ms: u64,
) -> Result<Vec<u8>, KeyError> {
    let failed = KeyError::trust("read the targets file");
    let version = Signed::<Targets>::parse("targets", current).map_err(&failed)?.head().version;
    let signed = write::signed_value(current).map_err(&failed)?;
    let mut next =
        write::renew(&signed, version + 1, now_ms.saturating_add(TARGETS_LIFE_MS)).map_err(&failed)?;
    for name in &request.remove {
        let listed = next["targets"].as_object_mut().and_then(|targets| targets.remove(name));
        listed.ok_or_else(|| KeyError::Request(format!("{name} is not listed, so it can not be removed")))?;
    }
    for addition in &request.add {
        add(&mut next, addition)?;
    }
    raise_floors(&mut next, &request.floors)?;
    if let Some(declared) = &request.retrained_key {
        let key = Key::from_value(declared.clone())
            .map_err(KeyError::trust("read the key of the retrained role"))?;
        let role = next["delegations"]["roles"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .find(|role| role["name"] == RETRAINED);
        let role = role.ok_or_else(|| {
            KeyError::Request("the file does not delegate to the retrained role".to_owned())
        })?;
        role["keyids"] = json!([key.id()]);
        next["delegations"]["keys"][key.id()] = key.declared().clone();
        drop_unused_delegation_keys(&mut next);
    }
    sign(&next, signers)
}

/// A release, of a model or a program, is immutable: a name is never listed with other content than before. A policy may change.
fn add(next: &mut Value, addition: &Addition) -> Result<(), KeyError> {
    let entry = write::target(&addition.spec());
    let old = &next["targets"][&addition.name];
    let release = ReleaseId::from_target_name(&addition.name)
        .or_else(|| ReleaseId::from_program_name(&addition.name))
        .is_some();
    if release && !old.is_null() && old["hashes"] != entry["hashes"] {
        return Err(KeyError::Request(format!(
            "{} is listed with other content; make a new release of it",
            addition.name
        )));
    }
    next["targets"][&addition.name] = entry;
    Ok(())
}

fn raise_floors(next: &mut Value, floors: &BTreeMap<ModelName, u32>) -> Result<(), KeyError> {
    if !next["custom"].is_object() {
        next["custom"] = json!({});
    }
    if !next["custom"]["floors"].is_object() {
        next["custom"]["floors"] = json!({});
    }
    for (model, floor) in floors {
        let kept = next["custom"]["floors"][model.as_str()].as_u64().unwrap_or(0);
        if u64::from(*floor) < kept {
            let text = format!(
                "the release floor of {model} is {kept} and can not be lowered to {floor}: devices keep the highest"
            );
            return Err(KeyError::Request(text));
        }
        next["custom"]["floors"][model.as_str()] = (*floor).into();
    }
    Ok(())
}

/// Adds the signatures of the keys in a folder to a file that others signed before: `prefix` of the key files
/// chooses the role (`image-targets`, `image-root`, `director-root`, or [`super::task_prefix`]).
///
/// # Errors
/// No key is there, or the file is no metadata.
pub fn cosign<'a>(
    signed_file: &[u8],
    prefix: &str,
    keys: impl Into<Keyring<'a>>,
) -> Result<Vec<u8>, KeyError> {
    let signers = keys.into().signers(prefix)?;
    cosign_with(signed_file, &refs(&signers))
}

/// The same with keys wherever they live.
///
/// # Errors
/// The file is no metadata, or signing failed.
pub fn cosign_with(signed_file: &[u8], signers: &[&dyn Signer]) -> Result<Vec<u8>, KeyError> {
    write::add_signatures(signed_file, signers).map_err(KeyError::trust("add signatures"))
}
