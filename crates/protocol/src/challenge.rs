//! What the embedded broker and its clients say in MQTT 5 enhanced authentication.
//!
//! The client's CONNECT names [`METHOD`] without data; the broker's AUTH carries a challenge; the client's
//! AUTH answers with [`answer`]. The challenge comes back in the answer, so that the broker has to remember
//! none that was not answered.
use alloc::vec::Vec;

/// Name of the method.
pub const METHOD: &str = "DUNLIN-P256";
/// Bytes of a challenge: 16 random, 8 of expiry (Unix milliseconds, big-endian), 32 of HMAC-SHA256.
pub const CHALLENGE_BYTES: usize = 56;
/// Bytes of an ECDSA P-256 signature in fixed form.
pub const SIGNATURE_BYTES: usize = 64;
/// What both the challenge's HMAC and the signature begin with.
pub const CONTEXT: &[u8] = b"dunlin-auth-v1\0";

/// The bytes a client signs: the method, its own id, the broker's name as it dialled it, and the challenge.
pub fn signing_bytes(client: &str, broker: &str, challenge: &[u8]) -> Vec<u8> {
    [CONTEXT, METHOD.as_bytes(), b"\0", client.as_bytes(), b"\0", broker.as_bytes(), b"\0", challenge].concat()
}

/// The data of the client's AUTH packet.
pub fn answer(challenge: &[u8], signature: &[u8]) -> Vec<u8> {
    [challenge, signature].concat()
}

/// Takes an answer apart into challenge and signature; `None` if its length is wrong.
pub fn split(answer: &[u8]) -> Option<(&[u8; CHALLENGE_BYTES], &[u8])> {
    let (challenge, signature) = answer.split_first_chunk()?;
    (signature.len() == SIGNATURE_BYTES).then_some((challenge, signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_apart_as_it_was_put_together() {
        let (challenge, signature) = ([7; CHALLENGE_BYTES], [9; SIGNATURE_BYTES]);
        let bytes = answer(&challenge, &signature);
        assert_eq!(split(&bytes), Some((&challenge, &signature[..])));
        for cut in [0, 55, 56, bytes.len() - 1] {
            assert_eq!(split(&bytes[..cut]), None);
        }
    }
}
