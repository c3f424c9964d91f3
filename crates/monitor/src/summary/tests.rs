use super::*;
use crate::window::{Accumulator, Observation};
use crate::{profile, rate};
use dunlin_protocol::{Now, ResourceUse, Sketch};
use proptest::prelude::*;

type Request = (u16, bool, u32, f32, Option<u32>, Option<bool>);

fn requests() -> impl Strategy<Value = Vec<Request>> {
    proptest::collection::vec(
        (
            any::<u16>(),
            any::<bool>(),
            0u32..3,
            -3.0..12.0f32,
            proptest::option::of(0u32..3),
            any::<Option<bool>>(),
        ),
        0..30,
    )
}

fn window(requests: &[Request], start: u64) -> Window {
    let reference = profile::build(&["x".into()], &[(0..100).map(|i| i as f32 / 10.0).collect()], 8);
    let profile = Some((&reference, Digest([1; 32])));
    let (from, to) =
        (Now { mono_ms: 0, wall_ms: None }, Now { mono_ms: 60_000, wall_ms: Some(start + 60_000) });
    let mut open = Accumulator::new(
        "meter".parse().unwrap(),
        Some("meter@1".parse().unwrap()),
        1,
        3,
        false,
        profile,
        from,
    );
    for &(latency, failed, class, x, label, same) in requests {
        open.observe(&Observation {
            latency_us: latency.into(),
            failed,
            class: Some(class),
            confidence: x / 12.0,
            features: &[x],
        });
        if let Some(truth) = label {
            open.label(truth, class);
            open.pair_label(&"meter@9".parse().unwrap(), truth == class, failed);
        }
        if let Some(same) = same {
            open.pair(&"meter@9".parse().unwrap(), same);
        }
    }
    open.close(to, ResourceUse::default())
}

fn merged(a: &Summary, b: &Summary) -> Summary {
    let mut sum = a.clone();
    sum.merge(b);
    sum
}

proptest! {
    #[test]
    fn adding_is_exact_associative_and_commutative(a in requests(), b in requests(), c in requests()) {
        let [x, y, z] = [window(&a, 1000), window(&b, 99_000), window(&c, 500)].map(|w| Summary::of(&w).unwrap());
        prop_assert_eq!(merged(&merged(&x, &y), &z), merged(&x, &merged(&z, &y)));
        prop_assert_eq!(merged(&x, &Summary::new()), x.clone());
        // What one long window would have counted, but for the count of windows, times and autocorrelation.
        let all: Vec<Request> = a.iter().chain(&b).copied().collect();
        let (mut sum, one) = (merged(&x, &y), Summary::of(&window(&all, 0)).unwrap());
        sum.windows = 1;
        sum.span_ms = one.span_ms;
        prop_assert_eq!(&sum.latency_us, &one.latency_us);
        prop_assert_eq!((sum.n, sum.errors, sum.accuracy()), (one.n, one.errors, one.accuracy()));
        prop_assert_eq!((&sum.pairs, &sum.confusion), (&one.pairs, &one.confusion));
        let bins = |s: &Summary| s.features(&Digest([1; 32]), 11).map(|f| f.counts.clone());
        prop_assert_eq!(bins(&sum), bins(&one));
    }

    #[test]
    fn hostile_windows_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40), n: u64, errors: u64, len: u32) {
        let counts = Counts(bytes.into());
        let mut bad = window(&[], 0);
        bad.n = n;
        bad.errors = errors;
        bad.latency_us = Sketch { zero: n, first: len as i32, len, bins: counts.clone() };
        bad.confusion.classes = len;
        bad.confusion.counts = counts.clone();
        bad.classes = counts.clone();
        bad.features = counts;
        let mut sum = Summary::new();
        if sum.add(&bad).is_err() {
            prop_assert_eq!(sum, Summary::new());
        }
    }
}

#[test]
fn contradictions_are_refused_whole() {
    let good = window(&[(10, false, 1, 1.0, Some(1), None)], 0);
    let mut more_errors = good.clone();
    more_errors.errors = 2;
    let mut more_answers = good.clone();
    more_answers.classes = Counts::pack(&[5, 0, 0]);
    let mut many_classes = good.clone();
    many_classes.confusion.classes = u32::MAX;
    let mut bad_sketch = good.clone();
    bad_sketch.latency_us.len += 1;
    let mut sum = Summary::of(&good).unwrap();
    for bad in [more_errors, more_answers, many_classes, bad_sketch] {
        assert!(sum.add(&bad).is_err());
    }
    assert_eq!(sum, Summary::of(&good).unwrap());
}

#[test]
fn the_number_of_other_releases_is_bounded() {
    let mut sum = Summary::new();
    for version in 1..=KEYS_MAX + 1 {
        let mut next = window(&[(10, false, 1, 1.0, None, Some(true))], 0);
        next.pair.as_mut().unwrap().other.version = u32::try_from(version).unwrap();
        assert_eq!(sum.add(&next).is_ok(), version <= KEYS_MAX);
    }
    assert_eq!(sum.pairs.len(), KEYS_MAX);
}

#[test]
fn rates_are_read_off_the_sums() {
    let rows = [
        (10, false, 1, 1.0, Some(1), Some(false)),
        (10, false, 2, 1.0, Some(1), Some(true)),
        (10, true, 0, 1.0, None, None),
    ];
    let sum = Summary::of(&window(&rows, 0)).unwrap();
    assert_eq!(
        (sum.accuracy(), sum.error_rate()),
        (rate::Rate { hits: 1, n: 2 }, rate::Rate { hits: 1, n: 3 })
    );
    // Class 1: twice 1 right of 3 mentions; class 2: none of 1.
    assert_eq!(sum.macro_f1(), Some((2.0 / 3.0 + 0.0) / 2.0));
    assert_eq!(
        sum.pairs.values().next().map(|pairs| (pairs.n, pairs.disagree, pairs.labelled())),
        Some((2, 1, 2))
    );
}
