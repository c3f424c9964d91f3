//! Byte ranges of HTTP, from both ends: what a device asks for, what a server answers, how long that lets it wait.
use dunlin_agent::update::{is_the_rest, retry_after_ms};
use dunlin_controller::api::range::{byte_range, satisfiable};
use object_store::GetRange;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};

pub(crate) fn range_seeds() -> Vec<Vec<u8>> {
    let asked = ["bytes=2-5", "bytes=7-", "bytes=-3", "bytes=0-18446744073709551615", "bytes=1-2,4-5"];
    let answered = ["bytes 2-5/6", "bytes 0-0/1", "bytes */6", "bytes 2-5/*", "120"];
    asked.into_iter().chain(answered).map(|text| text.as_bytes().to_vec()).collect()
}

/// The same text is read as a `Range`, a `Content-Range` and a `Retry-After`.
pub(crate) fn range(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    asked(text) | u64::from(answered(text)) << 3 | u64::from(waits(input)) << 4
}

/// An answer that is taken for the rest of a file is one for the very place from which it is asked for to the very end.
fn answered(text: &str) -> bool {
    let numbers: Vec<u64> =
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    let [first, last, length] = numbers[..] else { return false };
    let taken = is_the_rest(text, first, length);
    assert!(!taken || last == length.saturating_sub(1), "{text:?}");
    assert!(!is_the_rest(text, first.wrapping_add(1), length), "{text:?}");
    assert!(!is_the_rest(text, first, length.wrapping_add(1)), "{text:?}");
    // What the controller answers to the same request is taken.
    let wanted = byte_range(&format!("bytes={first}-")).expect("a number makes a range");
    if satisfiable(&wanted, length) {
        assert!(is_the_rest(&format!("bytes {first}-{}/{length}", length - 1), first, length));
    }
    taken
}

fn waits(input: &[u8]) -> bool {
    let Ok(value) = HeaderValue::from_bytes(input) else { return false };
    retry_after_ms(&HeaderMap::from_iter([(RETRY_AFTER, value)])).is_some()
}

/// A range that can be satisfied lies within the blob and is not empty.
fn asked(text: &str) -> u64 {
    let Some(range) = byte_range(text) else { return 1 };
    for length in [0, 1, 5, 1 << 20, u64::MAX] {
        if satisfiable(&range, length) {
            let (start, end) = match &range {
                GetRange::Bounded(range) => (range.start, range.end.min(length)),
                GetRange::Offset(first) => (*first, length),
                GetRange::Suffix(last) => (length - (*last).min(length), length),
            };
            assert!(start < end && end <= length, "{range:?} of {length}");
        }
    }
    match range {
        GetRange::Bounded(_) => 2,
        GetRange::Offset(_) => 3,
        GetRange::Suffix(_) => 4,
    }
}
