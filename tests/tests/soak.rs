//! A part of what `cargo xtask soak` asks.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

#[test]
fn a_hundred_thousand_requests_are_answered_right_while_line_ups_are_swapped_and_memory_stays() {
    let done = dunlin_tests::swaps::drive(100_000, |_| ()).unwrap();
    eprintln!("{done:?}");
    assert_eq!((done.wrong, &done.first_wrong), (0, &None));
    assert!(done.requests >= 100_000 && done.swaps >= 10, "{done:?}");
    // The heap takes a while to settle, longer on a busy machine than this test lasts: `cargo xtask soak` sees whether it
    // does. A model that stays behind, or a good part of one, is seen here.
    assert!(done.left_behind() < dunlin_tests::swaps::MODEL_BYTES / 4, "{done:?}");
}

/// So many that what a swap leaves behind is more than what the heap moves by itself.
#[test]
fn a_thousand_swaps_leave_nothing_behind() {
    let grown = dunlin_tests::swaps::grow(300, 1000).unwrap();
    eprintln!("{grown:?}");
    assert!(grown.left_behind() < 2048, "{grown:?}");
}
