use super::*;
use crate::profile;
use alloc::string::ToString;
use dunlin_protocol::cbor;

fn at(mono_ms: u64, wall_ms: Option<u64>) -> Now {
    Now { mono_ms, wall_ms }
}

/// A small generator with a fixed seed (Steele, Lea, Flood 2014: SplitMix64), uniform in [0, 1).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn open(classes: usize, profile: Option<&ReferenceProfile>) -> Accumulator {
    let profile = profile.map(|profile| (profile, Digest([7; 32])));
    Accumulator::new(
        "meter".parse().unwrap(),
        Some("meter@1".parse().unwrap()),
        3,
        classes,
        true,
        profile,
        at(1000, None),
    )
}

fn seen(class: u32, confidence: f32, features: &[f32]) -> Observation<'_> {
    Observation { latency_us: 250, failed: false, class: Some(class), confidence, features }
}

#[test]
fn a_full_window_of_64_features_fits_8_kib() {
    let names: Vec<_> = (0..64).map(|i| i.to_string()).collect();
    let mut noise = Noise(1);
    let columns: Vec<Vec<f32>> = (0..64).map(|_| (0..5000).map(|_| noise.next() as f32).collect()).collect();
    let profile = profile::build(&names, &columns, profile::BINS);
    let mut window = open(10, Some(&profile));
    let other = "meter@2".parse().unwrap();
    for i in 0..600u32 {
        let row: Vec<f32> = (0..64).map(|_| noise.next() as f32).collect();
        let latency_us = (200.0 + 2000.0 * noise.next()) as u64;
        window.observe(&Observation {
            latency_us,
            failed: false,
            class: Some(i % 10),
            confidence: noise.next() as f32,
            features: &row,
        });
        window.label(i % 10, (i * 7) % 10);
        window.pair(&other, i % 3 == 0);
    }
    let bytes = cbor::encode(&window.close(at(61_000, Some(1_800_000_000_000)), ResourceUse::default()));
    assert!(bytes.len() <= 8 * 1024, "{} bytes", bytes.len());
}

#[test]
fn counts_land_where_they_belong() {
    let profile = profile::build(&["x".into()], &[(0..100).map(|i| i as f32).collect()], 4);
    let mut window = open(3, Some(&profile));
    assert!(window.is_empty());
    window.observe(&seen(2, 1.0, &[0.0]));
    window.observe(&seen(0, 0.049, &[1000.0]));
    window.observe(&seen(9, f32::NAN, &[1.0, 2.0]));
    window.observe(&Observation { failed: true, ..seen(1, 0.5, &[f32::NAN]) });
    let window = window.close(at(61_000, Some(500_000)), ResourceUse::default());
    assert_eq!((window.n, window.errors, window.generation, window.probation), (4, 1, 3, true));
    assert_eq!((window.start_ms, window.end_ms, window.wall), (440_000, 500_000, true));
    assert_eq!(window.classes.unpack(3), Some(alloc::vec![1, 0, 1]));
    let confidence = window.confidence.unpack(CONFIDENCE_BINS).unwrap();
    assert_eq!((confidence[0], confidence[19], confidence.iter().sum::<u64>()), (1, 1, 2));
    assert_eq!(window.features.unpack(7), Some(alloc::vec![0, 1, 0, 0, 0, 1, 1]));
    assert_eq!(DdSketch::from_wire(&window.latency_us).unwrap().count(), 3);
}

#[test]
fn labels_fill_the_confusion_table_row_by_truth() {
    let mut window = open(3, None);
    window.label(1, 2);
    window.label(1, 1);
    window.label(7, 0);
    assert!(!window.is_empty());
    let window = window.close(at(2000, None), ResourceUse::default());
    assert_eq!(window.confusion.counts.unpack(9), Some(alloc::vec![0, 0, 0, 0, 1, 1, 0, 0, 0]));
    assert_eq!((window.wall, window.start_ms, window.end_ms), (false, 1000, 2000));
}

#[test]
fn many_classes_are_folded_to_right_and_wrong() {
    let mut window = open(1000, None);
    window.label(999, 999);
    window.label(999, 3);
    window.label(5, 6);
    let confusion = window.close(at(2000, None), ResourceUse::default()).confusion;
    assert_eq!((confusion.classes, confusion.counts.unpack(4)), (2, Some(alloc::vec![1, 2, 0, 0])));
}

#[test]
fn evidence_against_two_releases_is_never_mixed() {
    let (a, b) = ("meter@2".parse().unwrap(), "meter@3".parse().unwrap());
    let mut window = open(2, None);
    window.pair(&a, false);
    window.pair(&b, false);
    for (this, other) in [(true, true), (true, false), (true, false), (false, true), (false, false)] {
        window.pair_label(&a, this, other);
    }
    let pair = window.close(at(2000, None), ResourceUse::default()).pair.unwrap();
    assert_eq!((&pair.other, pair.n, pair.disagree), (&a, 1, 1));
    assert_eq!((pair.both_right, pair.only_this, pair.only_other, pair.both_wrong), (1, 2, 1, 1));
}

#[test]
fn autocorrelation_is_estimated() {
    let profile = profile::build(&["x".into()], &[(0..100).map(|i| i as f32).collect()], 4);
    for (phi, low, high) in [(0.0, -0.05, 0.05), (0.8, 0.75, 0.85)] {
        let (mut window, mut noise, mut x) = (open(2, Some(&profile)), Noise(5), 1e4);
        for _ in 0..5000 {
            x = 1e4 + phi * (x - 1e4) + noise.next() - 0.5;
            window.observe(&seen(0, 0.5, &[x as f32]));
        }
        let ppm = window.close(at(2000, None), ResourceUse::default()).autocorrelation_ppm;
        assert!((low * 1e6..high * 1e6).contains(&(ppm as f64)), "{phi}: {ppm}");
    }
}
