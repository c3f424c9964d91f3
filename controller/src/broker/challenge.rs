//! Challenges of the embedded broker: made without being remembered, answered once, within seconds.
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use dunlin_protocol::challenge::{CHALLENGE_BYTES, CONTEXT};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

/// A client answers at once; a slow link may need seconds.
const LIFE_MS: u64 = 30_000;
/// Answered challenges that are remembered until they expire. Each took a valid signature, so only enrolled
/// devices fill this, and 65,536 of them within 30 s is beyond what one broker serves.
const ANSWERED_MAX: usize = 65_536;

/// Why an answer counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// Not a challenge of this process for this client.
    #[error("the challenge was not made by this broker for this client")]
    Foreign,
    /// Too late.
    #[error("the challenge is expired")]
    Expired,
    /// Answered before.
    #[error("the challenge was answered before")]
    Replayed,
}

/// Makes challenges and accepts each once.
#[derive(Debug)]
pub struct Challenges {
    key: hmac::Key,
    random: SystemRandom,
    answered: Mutex<BTreeMap<(u64, [u8; 16]), ()>>,
}

impl Challenges {
    /// With a key of its own: challenges do not survive the process, which nothing needs them to.
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random).expect("the system gives randomness");
        Self { key, random, answered: Mutex::default() }
    }

    fn mac_input(client: &str, random: &[u8], expiry: &[u8]) -> Vec<u8> {
        [CONTEXT, client.as_bytes(), b"\0", random, expiry].concat()
    }

    /// A challenge for a client.
    pub fn make(&self, client: &str, now_ms: u64) -> [u8; CHALLENGE_BYTES] {
        let mut out = [0; CHALLENGE_BYTES];
        let (random, rest) = out.split_at_mut(16);
        let (expiry, mac) = rest.split_at_mut(8);
        self.random.fill(random).expect("the system gives randomness");
        expiry.copy_from_slice(&(now_ms + LIFE_MS).to_be_bytes());
        mac.copy_from_slice(hmac::sign(&self.key, &Self::mac_input(client, random, expiry)).as_ref());
        out
    }

    /// Whether a challenge is ours, for this client and fresh. Says nothing about who answered it.
    pub fn check(&self, client: &str, challenge: &[u8; CHALLENGE_BYTES], now_ms: u64) -> Result<(), ChallengeError> {
        let (random, expiry, mac) = parts(challenge);
        hmac::verify(&self.key, &Self::mac_input(client, &random, &expiry.to_be_bytes()), mac).map_err(|_| ChallengeError::Foreign)?;
        if now_ms >= expiry { Err(ChallengeError::Expired) } else { Ok(()) }
    }

    /// Uses up a challenge that was checked and whose signature was verified.
    pub fn answer(&self, challenge: &[u8; CHALLENGE_BYTES], now_ms: u64) -> Result<(), ChallengeError> {
        let (random, expiry, _) = parts(challenge);
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        *answered = answered.split_off(&(now_ms, [0; 16]));
        if answered.len() >= ANSWERED_MAX || answered.insert((expiry, random), ()).is_some() {
            return Err(ChallengeError::Replayed);
        }
        Ok(())
    }
}

impl Default for Challenges {
    fn default() -> Self {
        Self::new()
    }
}

fn parts(challenge: &[u8; CHALLENGE_BYTES]) -> ([u8; 16], u64, &[u8]) {
    let (random, rest) = challenge.split_first_chunk().expect("a challenge begins with 16 random bytes");
    let (expiry, mac) = rest.split_first_chunk().expect("then come 8 bytes of expiry");
    (*random, u64::from_be_bytes(*expiry), mac)
}

/// DER of everything before the point in a P-256 SubjectPublicKeyInfo (RFC 5480).
const P256_SPKI_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03,
    0x42, 0x00,
];

/// Whether the key (SubjectPublicKeyInfo, DER) made this signature (fixed form) over this message.
pub fn verifies(spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Some(point) = spki.strip_prefix(P256_SPKI_PREFIX) else { return false };
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_answered_once_by_its_client_in_time() {
        let challenges = Challenges::new();
        let challenge = challenges.make("a", 1000);
        assert_eq!(challenges.check("a", &challenge, 1001), Ok(()));
        assert_eq!(challenges.check("b", &challenge, 1001), Err(ChallengeError::Foreign));
        assert_eq!(challenges.check("a", &challenge, 1000 + LIFE_MS), Err(ChallengeError::Expired));
        assert_eq!(challenges.answer(&challenge, 1002), Ok(()));
        assert_eq!(challenges.answer(&challenge, 1003), Err(ChallengeError::Replayed));
        assert_eq!(Challenges::new().check("a", &challenge, 1001), Err(ChallengeError::Foreign));
    }

    #[test]
    fn no_bit_of_a_challenge_can_be_changed() {
        let challenges = Challenges::new();
        let challenge = challenges.make("a", 1000);
        for bit in 0..CHALLENGE_BYTES * 8 {
            let mut forged = challenge;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(challenges.check("a", &forged, 1001), Err(ChallengeError::Foreign), "bit {bit}");
        }
    }
}
