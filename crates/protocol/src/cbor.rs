//! The one way in and out of CBOR (RFC 8949): maps with text keys, and a check of size and shape before any decoding.
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Deepest nesting that is read; the deepest message has eight levels.
const DEPTH_MAX: usize = 32;

/// Why a payload is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum CborError {
    /// The payload is longer than the receiver accepts.
    #[error("payload of {len} bytes is over the limit of {max}")]
    TooLarge {
        /// Bytes received.
        len: usize,
        /// Bytes accepted.
        max: usize,
    },
    /// The bytes are not CBOR of the expected shape.
    #[error("malformed CBOR: {0}")]
    Malformed(String),
}

/// Encodes a message.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_cbor::to_vec(value).expect("messages of this crate hold only types that CBOR can express")
}

/// Decodes a message of at most `max` bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CborError> {
    if bytes.len() > max {
        return Err(CborError::TooLarge { len: bytes.len(), max });
    }
    // A decoder makes room for as many items as a head claims. Heads that claim more than there is, within one another,
    // would turn some hundred bytes into megabytes.
    let (mut at, mut whole) = (bytes, true);
    while whole && !at.is_empty() {
        whole = skip(&mut at, DEPTH_MAX).is_some();
    }
    if !whole {
        return Err(CborError::Malformed("an item is cut, or nested too deeply".into()));
    }
    let malformed = |e: &dyn core::fmt::Display| CborError::Malformed(e.to_string());
    let mut reader = serde_cbor::Deserializer::from_slice(bytes);
    // Erased: otherwise the program would hold a copy of the parser for each of more than a hundred types.
    let value = erased_serde::deserialize(&mut <dyn erased_serde::Deserializer>::erase(&mut reader))
        .map_err(|e| malformed(&e))?;
    reader.end().map_err(|e| malformed(&e))?;
    Ok(value)
}

/// Steps over one data item (RFC 8949 §3) with all it holds; `false` for the "break" that ends an indefinite one, `None`
/// if it is not whole.
fn skip(at: &mut &[u8], depth: usize) -> Option<bool> {
    let depth = depth.checked_sub(1)?;
    let (&first, rest) = at.split_first()?;
    *at = rest;
    let (major, info) = (first >> 5, first & 0x1f);
    let count = match info {
        0..24 => Some(u64::from(info)),
        24..28 => {
            let (head, rest) = at.split_at_checked(1 << (info - 24))?;
            *at = rest;
            Some(head.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        }
        31 => None,
        _ => return None,
    };
    match (major, count) {
        (0 | 1, Some(_)) | (7, Some(_)) => {}
        (2 | 3, Some(length)) => *at = at.split_at_checked(usize::try_from(length).ok()?)?.1,
        (4 | 5, Some(items)) => {
            // Every item is a byte at least, so this ends where the bytes do.
            for _ in 0..items.checked_mul(if major == 5 { 2 } else { 1 })? {
                skip(at, depth)?.then_some(())?;
            }
        }
        (2..=5, None) => while skip(at, depth)? {},
        (6, Some(_)) => return skip(at, depth),
        (7, None) => return Some(false),
        _ => return None,
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;
    use alloc::string::String;
    use alloc::vec;

    use super::*;
    use crate::PairCounts;

    #[test]
    fn heads_that_claim_more_than_there_is_are_refused_before_decoding() {
        type Map = BTreeMap<String, Vec<u64>>;
        let good = encode(&Map::from([("a".into(), vec![1, 256, u64::MAX])]));
        assert!(decode::<Map>(&good, 100).is_ok());
        for cut in 0..good.len() {
            assert!(decode::<Map>(&good[..cut], 100).is_err(), "{cut}");
        }
        let huge: [&[u8]; 6] = [
            b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff\x00",
            b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x9a\x00\x10\x00\x00\x9a\x00\x10\x00\x00\x00",
            b"\xff\x1c",
            b"\xc1",
        ];
        for bytes in huge {
            assert!(decode::<Map>(bytes, 100).is_err(), "{bytes:?}");
        }
        let deep = |levels: usize| [vec![0x81; levels], vec![0x00]].concat();
        assert!(skip(&mut &deep(DEPTH_MAX - 1)[..], DEPTH_MAX).is_some());
        assert!(skip(&mut &deep(DEPTH_MAX)[..], DEPTH_MAX).is_none());
        assert!(decode::<Vec<u8>>(&deep(1_000_000), 2_000_000).is_err());
    }

    #[test]
    fn indefinite_items_tags_and_simple_values_are_stepped_over() {
        let items: [&[u8]; 6] = [
            b"\x9f\x01\x02\xff",
            b"\xbf\x61a\x01\xff",
            b"\x7f\x61a\x61b\xff",
            b"\xc1\x1a\x00\x00\x00\x01",
            b"\xf9\x7e\x00",
            b"\xf6",
        ];
        for item in items {
            let mut at = item;
            assert_eq!((skip(&mut at, DEPTH_MAX), at.len()), (Some(true), 0), "{item:?}");
        }
        assert_eq!(skip(&mut &b"\xff"[..], DEPTH_MAX), Some(false));
    }

    fn counts() -> Vec<u8> {
        encode(&PairCounts {
            other: "m@1".parse().unwrap(),
            n: 9,
            disagree: 1,
            both_right: 5,
            only_this: 1,
            only_other: 2,
            both_wrong: 1,
        })
    }

    #[test]
    fn what_was_encoded_is_decoded_and_nothing_longer() {
        let mut bytes = counts();
        assert_eq!(decode::<PairCounts>(&bytes, bytes.len()).unwrap().only_other, 2);
        assert!(matches!(decode::<PairCounts>(&bytes, bytes.len() - 1), Err(CborError::TooLarge { .. })));
        bytes.push(0);
        assert!(matches!(decode::<PairCounts>(&bytes, 1000), Err(CborError::Malformed(_))));
    }

    #[test]
    fn a_key_twice_and_a_wrong_type_are_refused_by_name() {
        let mut twice = counts();
        twice[0] += 1; // one pair more in the map
        twice.extend_from_slice(b"\x61n\x01");
        let error = decode::<PairCounts>(&twice, 1000).unwrap_err().to_string();
        assert!(error.contains("duplicate field `n`"), "{error}");
        let error = decode::<PairCounts>(b"\xa1\x61n\x61x", 1000).unwrap_err().to_string();
        assert!(error.contains("expected u64"), "{error}");
    }
}
