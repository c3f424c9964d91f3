//! Sealing and opening the envelopes that every MQTT payload but `notice` travels in.
use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{Bytes, DeviceId, Envelope, Header, Kind, Now};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use crate::document::Verified;
use crate::key::sha256;
use crate::{Signer, TrustError, TrustedRepo, spki};

/// Longest key id that an error repeats.
const KEY_ID_SHOWN: usize = 64;

/// Which way an envelope travels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

fn direction(kind: Kind) -> Direction {
    match kind {
        Kind::Status | Kind::Window | Kind::Report | Kind::Samples | Kind::Gap | Kind::Reply => Direction::Up,
        Kind::Desired | Kind::Cmd | Kind::Ack => Direction::Down,
    }
}

/// Signs a message of a device with its identity key.
///
/// # Errors
/// The header is of a kind that only travels down, or the key refused.
pub fn seal_up(header: &Header, signer: &dyn Signer) -> Result<Envelope, TrustError> {
    seal(header, signer, Direction::Up)
}

/// Signs a message for a device with a key of the director's timestamp role.
///
/// # Errors
/// The header is of a kind that only travels up, it carries no expiry, or the key refused.
pub fn seal_down(header: &Header, signer: &dyn Signer) -> Result<Envelope, TrustError> {
    if header.exp.is_none() {
        return Err(TrustError::EnvelopeForm("a message for a device carries an expiry"));
    }
    seal(header, signer, Direction::Down)
}

fn seal(header: &Header, signer: &dyn Signer, way: Direction) -> Result<Envelope, TrustError> {
    if direction(header.kind) != way {
        return Err(TrustError::EnvelopeForm("its kind travels the other way"));
    }
    let p = header.encode();
    let s = signer.sign(&Envelope::signing_bytes(&p))?;
    Ok(Envelope { k: signer.key_id().to_owned(), s: Bytes(s), p: Bytes(p) })
}

/// Opens what a device sent; `device_spki` is the public key that it enrolled with (SubjectPublicKeyInfo, DER).
/// Whether the device is the one whose topic the message came on is the caller's to compare.
///
/// # Errors
/// The signature is not the device's, or the header is no up-message of a known schema.
pub fn open_up(envelope: &Envelope, device_spki: &[u8]) -> Result<Verified<Header>, TrustError> {
    let point = spki::p256_point(device_spki)?;
    let message = Envelope::signing_bytes(envelope.p.as_slice());
    let named = envelope.k == sha256(device_spki).to_string();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    if !named || public.verify(&message, envelope.s.as_slice()).is_err() {
        return Err(bad_signature(envelope));
    }
    header(envelope, Direction::Up)
}

/// Opens what a controller sent to `device`; `floor_seq` is the number of the last message that was accepted,
/// and the caller keeps the new one before it acts.
///
/// An `ack` is accepted whatever the time is: it says that records are in a database, which stays true, and its
/// number keeps it from being replayed. It is also what puts a wrong clock right. All else waits for a clock.
///
/// # Errors
/// The key is not one of the director's timestamp role, or the message is for another device, seen before,
/// expired or of an unknown schema.
pub fn open_down(
    envelope: &Envelope,
    director: &TrustedRepo,
    device: &DeviceId,
    floor_seq: u64,
    now: Now,
) -> Result<Verified<Header>, TrustError> {
    let key = director.timestamp_key(&envelope.k).ok_or_else(|| bad_signature(envelope))?;
    if !key.verifies(&Envelope::signing_bytes(envelope.p.as_slice()), envelope.s.as_slice()) {
        return Err(bad_signature(envelope));
    }
    let header = header(envelope, Direction::Down)?;
    if header.device != *device && !weaken::off(Defence::MessageDevice) {
        return Err(TrustError::EnvelopeWrongDevice { device: device.clone(), named: header.device.clone() });
    }
    let expires_ms = header.exp.ok_or(TrustError::EnvelopeForm("it carries no expiry"))?;
    if header.seq <= floor_seq && !weaken::off(Defence::MessageNumber) {
        return Err(TrustError::EnvelopeReplayed { got: header.seq, floor: floor_seq });
    }
    match now.wall_ms {
        _ if header.kind == Kind::Ack => Ok(header),
        Some(now_ms) if now_ms >= expires_ms => Err(TrustError::EnvelopeExpired { expires_ms, now_ms }),
        Some(_) => Ok(header),
        None => Err(TrustError::ClockUnknown),
    }
}

fn header(envelope: &Envelope, way: Direction) -> Result<Verified<Header>, TrustError> {
    let header = envelope.header()?;
    if direction(header.kind) != way {
        return Err(TrustError::EnvelopeForm("its kind travels the other way"));
    }
    Ok(Verified::new(header))
}

fn bad_signature(envelope: &Envelope) -> TrustError {
    TrustError::EnvelopeSignature { key: envelope.k.chars().take(KEY_ID_SHOWN).collect() }
}
