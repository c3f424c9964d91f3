use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};

use crate::key::sha256;
use crate::{Key, TrustError, spki};

/// A private key, wherever it lives: a file, or a chip that never gives it away.
pub trait Signer {
    /// Id of the public half, as it stands beside a signature.
    fn key_id(&self) -> &str;
    /// The public half: 32 bytes of an Ed25519 key, the SubjectPublicKeyInfo (DER) of any other.
    fn public(&self) -> &[u8];
    /// Signs a message.
    ///
    /// # Errors
    /// The key refused, or the source of randomness failed.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError>;
}

/// An Ed25519 key of a TUF role.
pub struct Ed25519Signer {
    pair: Ed25519KeyPair,
    key: Key,
    id: String,
}

impl Ed25519Signer {
    /// Reads a private key (PKCS#8, RFC 8410, with or without the public half).
    ///
    /// # Errors
    /// The bytes are no Ed25519 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, TrustError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map_err(|_| TrustError::Key("not an Ed25519 private key in PKCS#8 form"))?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        let key = Key::ed25519(&public);
        Ok(Self { pair, id: key.id(), key })
    }

    /// A new private key, PKCS#8.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate_pkcs8() -> Result<Vec<u8>, TrustError> {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| TrustError::Key("the system gives no randomness"))?;
        Ok(der.as_ref().to_vec())
    }

    /// The public half as TUF metadata declares it.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl Signer for Ed25519Signer {
    fn key_id(&self) -> &str {
        &self.id
    }

    fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        Ok(self.pair.sign(message).as_ref().to_vec())
    }
}

impl fmt::Debug for Ed25519Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519Signer({})", self.id)
    }
}

/// The ECDSA P-256 key of a device; signatures are of fixed form (64 bytes).
pub struct EcdsaP256Signer {
    pair: EcdsaKeyPair,
    spki: Vec<u8>,
    id: String,
    random: SystemRandom,
}

impl EcdsaP256Signer {
    /// Reads a private key (PKCS#8, RFC 5915 inside, with the public half).
    ///
    /// # Errors
    /// The bytes are no P-256 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, TrustError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random)
            .map_err(|_| TrustError::Key("not a P-256 private key in PKCS#8 form"))?;
        let spki = spki::p256_wrap(pair.public_key().as_ref());
        Ok(Self { pair, id: sha256(&spki).to_string(), spki, random })
    }

    /// A new private key, PKCS#8.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate_pkcs8() -> Result<Vec<u8>, TrustError> {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| TrustError::Key("the system gives no randomness"))?;
        Ok(der.as_ref().to_vec())
    }
}

impl Signer for EcdsaP256Signer {
    fn key_id(&self) -> &str {
        &self.id
    }

    fn public(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        let signature =
            self.pair.sign(&self.random, message).map_err(|_| TrustError::Key("the key refused to sign"))?;
        Ok(signature.as_ref().to_vec())
    }
}

impl fmt::Debug for EcdsaP256Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EcdsaP256Signer({})", self.id)
    }
}
