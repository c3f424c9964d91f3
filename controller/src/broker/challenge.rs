//! MQTT 5 enhanced authentication of the embedded broker: method `DUNLIN-P256`.
//!
//! CONNECT names the method without data; the broker's AUTH carries a challenge: 16 bytes, the expiry (Unix
//! milliseconds, 8 bytes, big-endian), and an HMAC-SHA256 of both with the client id. The client's AUTH
//! carries a signature over [`dunlin_protocol::auth::signing_bytes`].
//!
//! Nothing is remembered about who asked for a challenge, so that asking costs no memory and can not push
//! others out: the 16 bytes follow from a secret, the client id, the time slot and the number of times the
//! client has answered. An answer moves that number on, and so is good for once.
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use dunlin_protocol::auth::CONTEXT;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

/// Bytes of a challenge.
pub const CHALLENGE_BYTES: usize = 56;
/// Challenges of one client change at least this often, milliseconds.
const SLOT_MS: u64 = 10_000;
/// Slots for which a challenge can be answered: 20 to 30 s in all. A slow link may need seconds.
const SLOTS: u64 = 3;
/// DER of everything before the point in a P-256 SubjectPublicKeyInfo (RFC 5480).
const P256_SPKI_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Whether the key (SubjectPublicKeyInfo, DER) made this signature (fixed form) over this message.
pub fn verifies(spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Some(point) = spki.strip_prefix(P256_SPKI_PREFIX) else { return false };
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
}

/// Makes challenges and accepts each once.
#[derive(Debug)]
pub struct Challenges {
    key: hmac::Key,
    /// Answers accepted, by client: one entry per device that ever connected.
    answered: Mutex<BTreeMap<String, u64>>,
}

impl Challenges {
    /// With a key of its own: challenges do not survive the process, which nothing needs them to.
    pub fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .expect("the system gives randomness");
        Self { key, answered: Mutex::default() }
    }

    fn count(&self, client: &str) -> u64 {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).get(client).copied().unwrap_or(0)
    }

    fn of(&self, client: &str, slot: u64, count: u64) -> [u8; CHALLENGE_BYTES] {
        let seed = [b"seed\0", client.as_bytes(), b"\0", &slot.to_be_bytes(), &count.to_be_bytes()].concat();
        let expiry = ((slot + SLOTS) * SLOT_MS).to_be_bytes();
        let mut out = [0; CHALLENGE_BYTES];
        out[..16].copy_from_slice(&hmac::sign(&self.key, &seed).as_ref()[..16]);
        out[16..24].copy_from_slice(&expiry);
        let covered = [CONTEXT, client.as_bytes(), b"\0", &out[..24]].concat();
        out[24..].copy_from_slice(hmac::sign(&self.key, &covered).as_ref());
        out
    }

    /// A challenge for a client.
    pub fn make(&self, client: &str, now_ms: u64) -> [u8; CHALLENGE_BYTES] {
        self.of(client, now_ms / SLOT_MS, self.count(client))
    }

    /// Accepts an answer: `verifies` says whether it is one to a given challenge. True at most once for each
    /// challenge.
    pub fn accept(&self, client: &str, now_ms: u64, verifies: impl Fn(&[u8]) -> bool) -> bool {
        let (slot, count) = (now_ms / SLOT_MS, self.count(client));
        let mut slots = slot.saturating_sub(SLOTS - 1)..=slot;
        if !slots.any(|slot| verifies(&self.of(client, slot, count))) {
            return false;
        }
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let now = answered.entry(client.to_owned()).or_default();
        // Somebody else answered in the meantime.
        let first = *now == count;
        *now += u64::from(first);
        first
    }
}

impl Default for Challenges {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(challenge: [u8; CHALLENGE_BYTES]) -> impl Fn(&[u8]) -> bool {
        move |other| other == challenge
    }

    #[test]
    fn a_challenge_is_answered_once_by_its_client_in_time() {
        let challenges = Challenges::new();
        let t = 1_000_000;
        let challenge = challenges.make("a", t);
        assert!(!challenges.accept("b", t, is(challenge)), "another client");
        assert!(!challenges.accept("a", t + SLOT_MS * SLOTS, is(challenge)), "too late");
        assert!(!Challenges::new().accept("a", t, is(challenge)), "another broker");
        assert!(challenges.accept("a", t + SLOT_MS, is(challenge)));
        assert!(!challenges.accept("a", t + SLOT_MS, is(challenge)), "replayed");
        assert!(
            challenges.accept("a", t + SLOT_MS, is(challenges.make("a", t + SLOT_MS))),
            "a fresh one at once"
        );
    }

    #[test]
    fn asking_for_challenges_leaves_no_trace() {
        let challenges = Challenges::new();
        for n in 0..1000 {
            challenges.make(&format!("x{n}"), n);
        }
        assert!(challenges.answered.lock().unwrap().is_empty());
    }

    #[test]
    fn the_expiry_is_in_the_challenge() {
        let challenge = Challenges::new().make("a", 1_000_001);
        let expiry = u64::from_be_bytes(challenge[16..24].try_into().unwrap());
        assert!((1_000_001 + 20_000..=1_000_001 + 30_000).contains(&expiry));
    }
}
