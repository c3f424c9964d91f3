//! What a file that nobody signed costs before it is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use dunlin_trust::metadata::{Kind, Root, Snapshot, Targets, Timestamp};
use dunlin_trust::{Signed, TrustError};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Most that one file may cost, as a multiple of the largest file of its kind, and what anything may cost. A node of a
/// map takes some 640 bytes however few members it has, and an object needs sixteen bytes of the file at least.
const FACTOR: usize = 64;
const SMALL: usize = 1 << 20;

/// Files of the largest length that try to cost the most: brackets, numbers, empty members, long lists of each.
fn hostile(max: usize) -> Vec<Vec<u8>> {
    let pieces = [
        "[],",
        "0,",
        "{},",
        "[[[[],[]]]],",
        "\"\",",
        "\"a\":{},",
        "\"abcdefg\":{},",
        "\"a\":[0,0,0,0],",
        "{\"a\":0},",
        "{\"abcdefghi\":0},",
    ];
    let mut files: Vec<Vec<u8>> = pieces.iter().map(|piece| wrapped(max, |_| (*piece).to_owned())).collect();
    files.push(wrapped(max, |n| format!("\"{n:07}\":[],")));
    files.push(wrapped(max, |n| format!("\"{n:07}\":{{\"length\":1,\"hashes\":{{}}}},")));
    files
}

fn wrapped(max: usize, piece: impl Fn(usize) -> String) -> Vec<u8> {
    let is_member = piece(0).starts_with('"');
    let (open, close) = if is_member { ("{", "\"z\":0}") } else { ("[", "0]") };
    let head = format!(
        "{{\"signatures\":[],\"signed\":{{\"_type\":\"targets\",\"spec_version\":\"1.0\",\"version\":1,\
         \"expires\":\"2030-01-01T00:00:00Z\",\"targets\":{{}},\"custom\":{open}"
    );
    let mut file = head.into_bytes();
    let mut n = 0;
    loop {
        let next = piece(n);
        if file.len() + next.len() + close.len() + 2 > max {
            break;
        }
        file.extend_from_slice(next.as_bytes());
        n += 1;
    }
    file.extend_from_slice(format!("{close}}}}}").as_bytes());
    file
}

fn costs<T: Kind>() {
    for file in hostile(T::BYTES_MAX) {
        HEAP.reset_peak_usage();
        let before = HEAP.current_usage();
        let parsed = Signed::<T>::parse(T::TYPE, &file).map(drop);
        let peak = HEAP.peak_usage() - before;
        let start = String::from_utf8_lossy(&file[120..200]).into_owned();
        assert!(peak <= FACTOR * T::BYTES_MAX + SMALL, "{}: {peak} bytes for {start}: {parsed:?}", T::TYPE);
    }
}

// One test, so that nothing else allocates meanwhile.
#[test]
fn a_file_costs_a_bounded_multiple_of_its_largest_length() {
    costs::<Root>();
    costs::<Timestamp>();
    costs::<Snapshot>();
    costs::<Targets>();
    // Above the largest length, nothing but the refusal.
    let long = vec![b'['; 4 * Targets::BYTES_MAX];
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    assert!(matches!(Signed::<Targets>::parse("targets", &long), Err(TrustError::TooLarge { .. })));
    assert!(HEAP.peak_usage() - before < 4096);
}
