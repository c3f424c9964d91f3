//! Everything that reads what others wrote, as functions of a byte slice: what is fuzzed. `dunlin-fuzz` bends good inputs
//! of each, and the tests here hand them to bolero. Why two: `docs/adr/0006-fuzzing-on-the-stable-toolchain.md`.

mod messages;
mod metadata;
mod range;
#[cfg(test)]
mod tests;

use dunlin_agent::update::MANIFEST_BYTES_MAX;
use dunlin_protocol::PAYLOAD_BYTES_MAX;
use dunlin_trust::metadata::{Kind, Targets};

/// Longest topic or header that is made: longer than any broker or server lets through.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// What a byte of JSON may cost that is read as any value, bytes: five, `{"":` and the bracket that closes it, make a node
/// of a map, 632 bytes, which is held three times at most (the value, what is signed of it, what is read of that). What the
/// parser alone may cost is a test of `dunlin-trust`.
const JSON_COST: usize = 384;
/// What a byte of JSON may cost that is read as a type: three, `"",`, make a string in a list, whose room doubles, and it is
/// written and read again.
const TYPED_COST: usize = 64;
/// What a byte of CBOR may cost: an item is one at least, and room is made for as many as a head claims, up to a megabyte.
/// The largest item, an outcome, takes some 130.
const CBOR_COST: usize = 128;
/// What a byte of text may cost: of the shortest pieces, each makes a number in a list.
const TEXT_COST: usize = 16;

/// Something that reads what others wrote.
#[derive(Debug)]
pub struct Target {
    /// What it is called on command lines and in its corpus.
    pub name: &'static str,
    /// Words of the format, to bend inputs with.
    pub words: &'static [&'static [u8]],
    /// Good inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Well-formed inputs about as long as the parser's own cap, and longer than it; run once each.
    pub large: fn() -> Vec<Vec<u8>>,
    /// Longest input that is made, bytes: over the parser's own cap.
    pub bytes_max: usize,
    /// What a byte of input may cost on the heap, bytes.
    pub bytes_per_byte: usize,
    /// Runs one input, and panics where a law is broken. Where the input got to: the same number for what behaves alike.
    pub run: fn(&[u8]) -> u64,
}

/// All of them.
pub static TARGETS: [Target; 6] = [
    Target {
        name: "metadata",
        words: &[
            b"\"keyids\":",
            b"\"threshold\":",
            b"\"delegations\":",
            b"\"paths\":[\"*\"]",
            b"\"path_hash_prefixes\":",
            b"\"terminating\":true",
            b"\"meta\":",
            b"\"version\":",
            b"\"hashes\":{\"sha512\":\"00\"}",
            b"\"length\":",
            b"\"consistent_snapshot\":false",
            b"\"name\":\"task-gate\"",
            b"\"classes\":[\"pi\"]",
            b"\"keytype\":\"rsa\",\"scheme\":\"rsassa-pss-sha256\"",
            b"\"keytype\":\"ecdsa\",\"scheme\":\"ecdsa-sha2-nistp256\"",
            b"\"signatures\":[]",
        ],
        seeds: metadata::metadata_seeds,
        large: metadata::metadata_large,
        bytes_max: Targets::BYTES_MAX + 1024,
        bytes_per_byte: JSON_COST,
        run: metadata::metadata,
    },
    Target {
        name: "director",
        words: &[
            b"\"device\":\"pole-2\"",
            b"\"class\":\"pole\"",
            b"\"task\":\"gate\"",
            b"\"generation\":",
            b"\"lineup\":",
            b"\"champion\":\"meter@2\"",
            b"\"fallback\":",
            b"\"members\":[{\"release\":\"meter@3\",\"role\":\"bigger\"}]",
            b"\"conduct\":{\"rule\":{\"cascade\":{\"margin_ppm\":1}}}",
            b"\"tasks\":",
        ],
        seeds: metadata::director_seeds,
        large: metadata::director_large,
        bytes_max: Targets::BYTES_MAX + 1024,
        bytes_per_byte: JSON_COST,
        run: metadata::director,
    },
    Target {
        name: "cbor",
        words: &[b"\x64kind", b"\x63seq", b"\xa0", b"\x80", b"\xf6", b"\xf9\x7e\x00"],
        seeds: messages::cbor_seeds,
        large: messages::cbor_large,
        bytes_max: PAYLOAD_BYTES_MAX + 1024,
        bytes_per_byte: CBOR_COST,
        run: messages::cbor,
    },
    Target {
        name: "topic",
        words: &[b"+", b"#", b"/", b"$SYS", b"dunlin/v1/d/", b"/up/", b"/down/", b"@", b".json"],
        seeds: messages::topic_seeds,
        large: Vec::new,
        bytes_max: TEXT_BYTES_MAX,
        bytes_per_byte: TEXT_COST,
        run: messages::topic,
    },
    Target {
        name: "manifest",
        words: &[b"\"length\":", b"\"shape\":", b"\"retrained\":", b"\"format\":"],
        seeds: messages::manifest_seeds,
        large: messages::manifest_large,
        bytes_max: MANIFEST_BYTES_MAX as usize,
        bytes_per_byte: TYPED_COST,
        run: messages::manifest,
    },
    Target {
        name: "range",
        words: &[b"bytes=", b"bytes ", b"-", b",", b"/", b"*"],
        seeds: range::range_seeds,
        large: Vec::new,
        bytes_max: TEXT_BYTES_MAX,
        bytes_per_byte: TEXT_COST,
        run: range::range,
    },
];

/// Tells the texts of errors apart by what the parser says itself: quoted pieces of the input, and numbers, end it.
fn told_apart(text: &str) -> u64 {
    let own = text.split(|c: char| c == '"' || c.is_ascii_digit()).next().unwrap_or_default();
    own.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))) & 0x3ff
}

/// An error with its causes.
fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}
