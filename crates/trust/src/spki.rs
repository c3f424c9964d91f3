//! Just enough DER (X.690) to take a public key out of a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7) and to
//! wrap a P-256 point into one.
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::TrustError;

/// `SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING (66 bytes) }` up to the point (RFC 5480).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// `SEQUENCE { rsaEncryption, NULL }` (RFC 3279 §2.3.1).
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// Bytes of an uncompressed point on P-256.
const P256_POINT_BYTES: usize = 65;

/// The uncompressed point of a P-256 SubjectPublicKeyInfo.
pub(crate) fn p256_point(spki: &[u8]) -> Result<&[u8], TrustError> {
    let point = spki.strip_prefix(&P256_PREFIX).ok_or(TrustError::Key("not a P-256 SubjectPublicKeyInfo"))?;
    if point.len() == P256_POINT_BYTES && point[0] == 4 {
        Ok(point)
    } else {
        Err(TrustError::Key("not an uncompressed P-256 point"))
    }
}

/// The SubjectPublicKeyInfo of an uncompressed P-256 point.
pub(crate) fn p256_wrap(point: &[u8]) -> Vec<u8> {
    [&P256_PREFIX[..], point].concat()
}

/// The RSAPublicKey (RFC 8017 A.1.1) inside an RSA SubjectPublicKeyInfo.
pub(crate) fn rsa_public_key(spki: &[u8]) -> Result<&[u8], TrustError> {
    let bad = TrustError::Key("not an RSA SubjectPublicKeyInfo");
    let inner = |der| -> Option<&[u8]> {
        let (body, rest) = element(0x30, der)?;
        let bits = body.strip_prefix(&RSA_ALGORITHM)?;
        let (bits, after) = element(0x03, bits)?;
        (rest.is_empty() && after.is_empty()).then_some(bits.strip_prefix(&[0])?)
    };
    inner(spki).ok_or(bad)
}

/// Splits the first element off, if it has this tag.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..0x80 => (usize::from(length), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        0x80 | 0x83.. => return None,
    };
    (first == tag).then_some(rest.split_at_checked(length)?)
}

/// The bytes of the first PEM block (RFC 7468) with this label.
pub(crate) fn pem(label: &str, text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let base64: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(base64).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_point_survives_wrapping() {
        let point = [4u8; 65];
        assert_eq!(p256_point(&p256_wrap(&point)).unwrap(), point);
        assert!(p256_point(&p256_wrap(&point[..64])).is_err());
        assert!(p256_point(&p256_wrap(&[2; 65])).is_err());
    }

    proptest! {
        #[test]
        fn hostile_der_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(p256_point(&bytes).is_err());
            prop_assert!(rsa_public_key(&bytes).is_err());
            prop_assert!(rsa_public_key(&[&[0x30, 0x82][..], &bytes].concat()).is_err());
        }
    }
}
