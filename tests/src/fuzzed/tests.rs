//! The targets under bolero. `cargo test` replays the corpora in `__fuzz__` and draws bytes; `cargo xtask fuzz --guided` hands
//! the same functions to libFuzzer. Here and not in a program of its own, as one more would take minutes to link.
use std::path::Path;

use super::TARGETS;

/// Inputs that are drawn for each target after its corpus was replayed: a second's worth or less. Counted and not timed, as
/// a time could be over on a busy machine before the corpus is.
const DRAWN: usize = 1000;

/// A test for each target, called as the target is: `cargo xtask fuzz --guided` and `cargo bolero` find it by that.
macro_rules! tests {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                let target = TARGETS.iter().find(|target| target.name == stringify!($name)).expect("a target");
                bolero::check!(name = target.name).with_iterations(DRAWN).for_each(|input: &[u8]| {
                    (target.run)(input);
                });
            }
        )*
    };
}

tests! { metadata director cbor topic manifest range }

#[test]
fn every_target_has_its_test_and_its_corpus() {
    assert_eq!(TARGETS.each_ref().map(|target| target.name), NAMES);
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fuzzed/__fuzz__");
    for name in NAMES {
        let files = corpora.join(name).join("corpus").read_dir().map(Iterator::count);
        assert!(files.is_ok_and(|count| count > 0), "{name}");
    }
}
