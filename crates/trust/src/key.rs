use std::fmt;

use base16ct::{lower, mixed};
use ring::digest;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::canonical::canonical;
use crate::{TrustError, spki};

/// SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> dunlin_protocol::Digest {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    dunlin_protocol::Digest(out)
}

/// SHA-512 of some bytes, lower-case hex.
pub(crate) fn sha512_hex(bytes: &[u8]) -> String {
    lower::encode_string(digest::digest(&digest::SHA512, bytes).as_ref())
}

/// A public key as TUF metadata declares it (specification §4.2). A key of a type or scheme that this build
/// does not know is kept, and verifies nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    declared: Value,
    material: Material,
}

/// What a key is made of; two declarations of the same material are the same key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Material {
    /// The 32 bytes of RFC 8032.
    Ed25519(Vec<u8>),
    /// An uncompressed point; signatures are ASN.1.
    EcdsaP256(Vec<u8>),
    /// An RSAPublicKey; RSASSA-PSS with SHA-256.
    RsaPss(Vec<u8>),
    /// Nothing that verifies.
    Unknown,
}

impl Key {
    /// The declaration of an Ed25519 public key.
    pub fn ed25519(public: &[u8; 32]) -> Self {
        let declared = json!({
            "keytype": "ed25519",
            "scheme": "ed25519",
            "keyval": { "public": lower::encode_string(public) },
        });
        Self { declared, material: Material::Ed25519(public.to_vec()) }
    }

    /// Reads a declaration.
    ///
    /// # Errors
    /// A member that every key has is missing. Unknown types and unusable material are no errors.
    pub fn from_value(declared: Value) -> Result<Self, TrustError> {
        let text = |name: &str| declared.get(name).and_then(Value::as_str);
        let public = declared.pointer("/keyval/public").and_then(Value::as_str);
        let (Some(keytype), Some(scheme), Some(public)) = (text("keytype"), text("scheme"), public) else {
            return Err(TrustError::Key("a key needs keytype, scheme and keyval.public"));
        };
        let der = || spki::pem("PUBLIC KEY", public);
        let material = match (keytype, scheme) {
            ("ed25519", "ed25519") => {
                mixed::decode_vec(public).ok().filter(|key| key.len() == 32).map(Material::Ed25519)
            }
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => der()
                .and_then(|der| spki::p256_point(&der).ok().map(|point| Material::EcdsaP256(point.to_vec()))),
            ("rsa", "rsassa-pss-sha256") => der()
                .and_then(|der| spki::rsa_public_key(&der).ok().map(|key| Material::RsaPss(key.to_vec()))),
            _ => None,
        };
        Ok(Self { material: material.unwrap_or(Material::Unknown), declared })
    }

    /// The declaration, unknown members included.
    pub fn declared(&self) -> &Value {
        &self.declared
    }

    /// The id that we give a key: SHA-256 of its canonical declaration, hex. Ids that metadata declares are
    /// taken as they are and never compared with this.
    pub fn id(&self) -> String {
        let bytes = canonical(&self.declared).expect("a key's declaration holds only strings");
        sha256(&bytes).to_string()
    }

    /// Whether this key made this signature over this message.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let (algorithm, public): (&'static dyn VerificationAlgorithm, _) = match &self.material {
            Material::Ed25519(public) => (&signature::ED25519, public),
            Material::EcdsaP256(point) => (&signature::ECDSA_P256_SHA256_ASN1, point),
            Material::RsaPss(key) => (&signature::RSA_PSS_2048_8192_SHA256, key),
            Material::Unknown => return false,
        };
        UnparsedPublicKey::new(algorithm, public).verify(message, signature).is_ok()
    }

    pub(crate) fn material(&self) -> &Material {
        &self.material
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.declared)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let declared = Value::deserialize(d)?;
        if canonical(&declared).is_err() {
            return Err(serde::de::Error::custom("a key holds a float"));
        }
        Self::from_value(declared).map_err(serde::de::Error::custom)
    }
}
