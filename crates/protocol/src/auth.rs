//! Proof of possession towards the embedded broker: MQTT 5 enhanced authentication (§4.12), one method.
//!
//! CONNECT names [`METHOD`] without data, the broker's AUTH carries a challenge, and the client's AUTH a
//! signature over [`signing_bytes`]: ECDSA P-256 with SHA-256 in fixed form, 64 bytes.
use alloc::vec::Vec;

/// Name of the method.
pub const METHOD: &str = "DUNLIN-P256";
/// What is signed begins with these bytes, so that the signature fits nothing else.
pub const CONTEXT: &[u8] = b"dunlin-auth-v1\0";

/// The bytes a client signs: the method, its own id, the broker's name as it dialled it, and the challenge. With
/// the broker's name among them, an answer can not be passed on to another broker.
pub fn signing_bytes(client: &str, broker: &str, challenge: &[u8]) -> Vec<u8> {
    [CONTEXT, METHOD.as_bytes(), b"\0", client.as_bytes(), b"\0", broker.as_bytes(), b"\0", challenge]
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_what_the_protocol_says() {
        let signed = signing_bytes("pole-17", "broker.example", b"challenge");
        assert_eq!(signed, b"dunlin-auth-v1\0DUNLIN-P256\0pole-17\0broker.example\0challenge");
    }
}
