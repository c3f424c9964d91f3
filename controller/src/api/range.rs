//! Byte ranges of HTTP (RFC 9110 §14).
use object_store::GetRange;

/// One byte range of a `Range` header (§14.1.2). Several ranges, other units and what does not parse read as none, as the
/// RFC allows: the whole blob is the answer then.
pub fn byte_range(header: &str) -> Option<GetRange> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    match (first, last) {
        ("", last) => last.parse().ok().map(GetRange::Suffix),
        (first, "") => first.parse().ok().map(GetRange::Offset),
        (first, last) => {
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then(|| GetRange::Bounded(first..last.saturating_add(1)))
        }
    }
}

/// Whether a range begins inside a blob of this length.
pub fn satisfiable(range: &GetRange, length: u64) -> bool {
    match range {
        GetRange::Bounded(range) => range.start < length,
        GetRange::Offset(first) => *first < length,
        GetRange::Suffix(last) => *last > 0 && length > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_as_the_rfc_says() {
        assert_eq!(byte_range("bytes=2-5"), Some(GetRange::Bounded(2..6)));
        assert_eq!(byte_range("bytes=7-"), Some(GetRange::Offset(7)));
        assert_eq!(byte_range("bytes=-3"), Some(GetRange::Suffix(3)));
        for whole in ["bytes=5-2", "bytes=1-2,4-5", "rows=1-2", "bytes=", "bytes=a-b"] {
            assert_eq!(byte_range(whole), None, "{whole}");
        }
        assert!(!satisfiable(&GetRange::Offset(10), 10) && satisfiable(&GetRange::Offset(9), 10));
        assert!(!satisfiable(&GetRange::Suffix(0), 10));
    }
}
