use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use dunlin_protocol::IntoTree;
use serde::Deserialize;
use serde_json::Value;

use crate::canonical::canonical;
use crate::key::Material;
use crate::metadata::{Head, HeadError, Kind, RoleKeys};
use crate::{Key, TrustError};

/// Something whose signatures were checked. Only this crate makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, without the proof that it was verified.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A metadata file with its exact bytes.
#[derive(Debug, Clone)]
pub struct Document<T> {
    /// The file, byte for byte.
    pub bytes: Vec<u8>,
    /// Version and expiry.
    pub head: Head,
    /// What it says.
    pub body: T,
}

/// A metadata file that parsed; nothing it says is believed yet.
#[derive(Debug, Clone)]
pub struct Signed<T> {
    document: Document<T>,
    role: String,
    message: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone)]
struct Signature {
    keyid: String,
    sig: Vec<u8>,
}

/// Who may sign a file: the keys that another file, or an older release of the same, names for its role.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Authority<'a> {
    pub(crate) name: &'a str,
    pub(crate) keys: &'a BTreeMap<String, Key>,
    pub(crate) role: &'a RoleKeys,
}

/// Signatures that are read at most; more than any threshold in use needs.
const SIGNATURES_MAX: usize = 256;

/// Bytes that a value of a file takes up at least, on average. Those of real files take twenty; a file of nothing but
/// brackets and commas would cost tens of times its length once it is parsed, before a signature is looked at.
const BYTES_PER_VALUE_MIN: usize = 8;
/// Values that any file may have: a small one can not cost much.
const VALUES_FREE: usize = 1024;

#[derive(Deserialize)]
struct RawFile {
    signed: Value,
    signatures: Vec<RawSignature>,
}

#[derive(Deserialize)]
struct RawSignature {
    keyid: String,
    sig: String,
}

impl<T: Kind> Signed<T> {
    /// Reads a file of a role.
    ///
    /// # Errors
    /// The file is too large, or not of the form the specification gives.
    pub fn parse(role: &str, bytes: &[u8]) -> Result<Self, TrustError> {
        if bytes.len() > T::BYTES_MAX {
            return Err(TrustError::TooLarge { role: role.to_owned(), len: bytes.len(), max: T::BYTES_MAX });
        }
        check_density(bytes).map_err(|what| TrustError::malformed(role, what))?;
        let json =
            |what| move |source| TrustError::Malformed { role: role.to_owned(), what, source: Some(source) };
        let raw: RawFile = serde_json::from_slice(bytes).map_err(json("it is no signed JSON file"))?;
        let message = canonical(&raw.signed).map_err(|_| TrustError::malformed(role, "it holds a float"))?;
        let head = Head::read(&raw.signed, T::TYPE).map_err(|error| match error {
            HeadError::Json(source) => json("a member that every role has is missing")(source),
            HeadError::Form(what) => TrustError::malformed(role, what),
        })?;
        let body: T = serde_json::from_value(raw.signed).map_err(json("a member of its role is missing"))?;
        body.check().map_err(|what| TrustError::malformed(role, what))?;
        let signatures = read_signatures(raw.signatures).map_err(|what| TrustError::malformed(role, what))?;
        Ok(Self {
            document: Document { bytes: bytes.to_vec(), head, body },
            role: role.to_owned(),
            message,
            signatures,
        })
    }

    /// Version and expiry, not believed.
    pub fn head(&self) -> &Head {
        &self.document.head
    }

    /// What the file claims, not believed.
    pub fn unverified(&self) -> &T {
        &self.document.body
    }

    pub(crate) fn signed_by(&self, authority: Authority<'_>) -> Result<(), TrustError> {
        let have = distinct_signers(authority, &self.signatures, &self.message);
        let need = authority.role.threshold;
        if have < need as usize || need == 0 {
            let (role, authority) = (self.role.clone(), authority.name.to_owned());
            return Err(TrustError::Threshold { role, authority, have, need });
        }
        Ok(())
    }

    /// The document, if enough keys of the authority signed it.
    pub(crate) fn verify(self, authority: Authority<'_>) -> Result<Verified<Document<T>>, TrustError> {
        self.signed_by(authority)?;
        Ok(Verified::new(self.document))
    }
}

/// Counts the values of a file without parsing it: each begins with a bracket or follows a comma.
fn check_density(bytes: &[u8]) -> Result<(), &'static str> {
    let (mut values, mut text, mut escaped) = (0, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = text,
            b'"' => text = !text,
            b'{' | b'[' | b',' if !text => values += 1,
            _ => {}
        }
    }
    if values > VALUES_FREE + bytes.len() / BYTES_PER_VALUE_MIN {
        return Err("it has more values than a file of its length has");
    }
    Ok(())
}

/// A signature that is not hex counts as an empty one: it must not spoil the good ones beside it.
fn read_signatures(raw: Vec<RawSignature>) -> Result<Vec<Signature>, &'static str> {
    if raw.len() > SIGNATURES_MAX {
        return Err("it carries too many signatures");
    }
    let mut seen = BTreeSet::new();
    if !raw.iter().all(|signature| seen.insert(signature.keyid.as_str())) {
        return Err("a key id signs twice");
    }
    let read = |raw: RawSignature| {
        let sig = base16ct::mixed::decode_vec(&raw.sig).unwrap_or_default();
        Signature { keyid: raw.keyid, sig }
    };
    Ok(raw.into_iter().map(read).collect())
}

/// The one threshold function: how many distinct keys of the authority made a good signature. Keys are told
/// apart by what they are made of, so one key under several ids counts once.
fn distinct_signers(authority: Authority<'_>, signatures: &[Signature], message: &[u8]) -> usize {
    let named: BTreeSet<&str> = authority.role.keyids.iter().map(String::as_str).into_tree();
    let mut good: BTreeSet<&Material> = BTreeSet::new();
    for signature in signatures {
        let Some(key) = authority.keys.get(&signature.keyid) else { continue };
        let counts = named.contains(signature.keyid.as_str()) && !good.contains(key.material());
        if counts && key.verifies(message, &signature.sig) {
            good.insert(key.material());
        }
    }
    good.len()
}
