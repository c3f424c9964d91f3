use super::*;
use crate::profile::Binner;
use crate::summary::Summary;
use crate::window::{Accumulator, Observation};
use alloc::string::ToString;
use dunlin_protocol::{Digest, Now, ResourceUse};
use proptest::prelude::*;

/// SplitMix64 (Steele, Lea, Flood 2014): seeded, so that every rate below is one fixed number.
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        crate::special::normal_quantile(self.uniform())
    }
}

/// Features of three kinds: smooth, half zeros, and seventeen grey levels.
const KINDS: usize = 3;

fn draw(noise: &mut Noise, feature: usize, shift: f64) -> f32 {
    match feature % KINDS {
        0 => (noise.normal() + shift) as f32,
        1 if noise.uniform() < 0.5 - shift / 2.0 => 0.0,
        1 => noise.uniform() as f32,
        _ => libm::floor(17.0 * noise.uniform()).min(16.0).max(libm::floor(17.0 * shift)) as f32,
    }
}

fn reference(noise: &mut Noise, features: usize, n: usize) -> ReferenceProfile {
    let names: Vec<_> = (0..features).map(|i| i.to_string()).collect();
    let columns: Vec<Vec<f32>> =
        (0..features).map(|i| (0..n).map(|_| draw(noise, i, 0.0)).collect()).collect();
    profile::build(&names, &columns, profile::BINS)
}

fn window(
    noise: &mut Noise,
    profile: &ReferenceProfile,
    n: usize,
    shift: f64,
    moved: usize,
) -> FeatureCounts {
    let binner = Binner::new(profile);
    let mut sums = FeatureCounts::new(n as u64, alloc::vec![0; binner.bins()], 0);
    for _ in 0..n {
        for feature in 0..binner.features() {
            let x = draw(noise, feature, if feature < moved { shift } else { 0.0 });
            sums.counts[binner.flat(feature, x)] += 1;
        }
    }
    sums
}

fn report(profile: &ReferenceProfile, window: &FeatureCounts) -> Report {
    match judge(profile, window, &Limits::default()).unwrap() {
        Judgement::Judged(report) => report,
        Judgement::TooFew { n_effective, .. } => panic!("only {n_effective}"),
    }
}

#[test]
fn false_alarms_keep_to_their_rate_when_nothing_moved() {
    const REPEATS: usize = 200;
    const FEATURES: usize = 6;
    let mut noise = Noise(20_260_101);
    let (mut ks, mut js, mut psi, mut chi, mut drifted) = (0, 0, 0, 0, 0);
    for _ in 0..REPEATS {
        let profile = reference(&mut noise, FEATURES, 2000);
        let window = window(&mut noise, &profile, 400, 0.0, 0);
        let report = report(&profile, &window);
        let below = |test: fn(&FeatureDrift) -> f64| {
            report.features.iter().filter(|feature| test(feature) < 0.05).count()
        };
        ks += below(|feature| feature.ks.p);
        js += below(|feature| feature.js.p);
        psi += below(|feature| feature.psi.p);
        chi += below(|feature| feature.chi_square.p);
        drifted += usize::from(report.drifted);
    }
    // 1,200 tests at 5 %: 60 expected, four standard deviations are 30. Kolmogorov-Smirnov on bins may be rarer.
    for (name, count) in [("js", js), ("psi", psi), ("chi", chi)] {
        assert!((30..=90).contains(&count), "{name}: {count} of 1200");
    }
    assert!(ks <= 90, "ks: {ks} of 1200");
    assert_eq!(drifted, 0);
}

#[test]
fn a_real_shift_is_found_and_named() {
    let mut noise = Noise(7);
    let profile = reference(&mut noise, 6, 2000);
    let mut found = 0;
    for _ in 0..50 {
        let report = report(&profile, &window(&mut noise, &profile, 400, 0.5, 3));
        let named: Vec<&str> = report.worst().iter().map(|feature| feature.name.as_str()).collect();
        assert!(named.iter().all(|name| ["0", "1", "2"].contains(name)), "{named:?}");
        found += usize::from(report.drifted && named.len() == 3);
    }
    assert!(found >= 45, "{found} of 50");
}

#[test]
fn significance_without_an_effect_is_not_drift() {
    let mut noise = Noise(3);
    let profile = reference(&mut noise, 1, 20_000);
    let report = report(&profile, &window(&mut noise, &profile, 20_000, 0.12, 1));
    let feature = &report.features[0];
    assert!(feature.ks_p_adjusted < 1e-6 && feature.ks.value < 0.1 && !feature.drifted, "{feature:?}");
}

#[test]
fn autocorrelated_inputs_do_not_raise_false_alarms() {
    const REPEATS: usize = 100;
    let mut noise = Noise(11);
    let columns: Vec<f32> = (0..4000).map(|_| noise.normal() as f32).collect();
    let profile = profile::build(&["x".into()], &[columns], profile::BINS);
    let (phi, start) = (0.9f64, Now { mono_ms: 0, wall_ms: None });
    let (mut deflated, mut naive) = (0, 0);
    for _ in 0..REPEATS {
        let reference = Some((&profile, Digest([0; 32])));
        let mut open = Accumulator::new("t".parse().unwrap(), None, 0, 0, false, reference, start);
        let mut x = noise.normal();
        for _ in 0..5000 {
            x = phi * x + libm::sqrt(1.0 - phi * phi) * noise.normal();
            open.observe(&Observation {
                latency_us: 1,
                failed: false,
                class: None,
                confidence: 0.0,
                features: &[x as f32],
            });
        }
        let sum = Summary::of(&open.close(start, ResourceUse::default())).unwrap();
        let counts = sum.features(&Digest([0; 32]), profile.features[0].bins()).unwrap();
        assert!((effective(5000, counts.autocorrelation_ppm()) - 263.0).abs() < 130.0);
        deflated += usize::from(report(&profile, counts).features[0].ks.p < 0.05);
        let independent = FeatureCounts::new(counts.n, counts.counts.clone(), 0);
        naive += usize::from(report(&profile, &independent).features[0].ks.p < 0.05);
    }
    // At 5 % of 100: five expected, four standard deviations are nine.
    assert!(deflated <= 14, "{deflated} of {REPEATS}");
    assert!(naive > 50, "{naive} of {REPEATS}: the test would not notice a missing deflation");
}

#[test]
fn few_samples_are_not_judged() {
    let mut noise = Noise(1);
    let profile = reference(&mut noise, 2, 500);
    let few = window(&mut noise, &profile, 199, 0.0, 0);
    assert_eq!(
        judge(&profile, &few, &Limits::default()),
        Ok(Judgement::TooFew { n_effective: 199.0, needed: 200.0 })
    );
    let other = FeatureCounts::new(5, alloc::vec![0; 5], 0);
    assert!(matches!(judge(&profile, &other, &Limits::default()), Err(DriftError::Bins { counts: 5, .. })));
}

#[test]
fn missing_values_and_constants_are_noticed() {
    let profile = profile::build(
        &["stuck".into(), "gone".into()],
        &[alloc::vec![4.0; 900], (0..900).map(|i| i as f32).collect()],
        16,
    );
    let binner = Binner::new(&profile);
    let mut sums = FeatureCounts::new(300, alloc::vec![0; binner.bins()], 0);
    for i in 0..300u16 {
        sums.counts[binner.flat(0, 4.01)] += 1;
        sums.counts[binner.flat(1, if i < 60 { f32::NAN } else { 3.0 * f32::from(i) })] += 1;
    }
    let report = report(&profile, &sums);
    assert_eq!(report.features[0].ks.value, 1.0);
    assert_eq!(report.features[0].outside, 1.0);
    assert!(report.features[1].drifted && report.features[1].outside == 0.2, "{:?}", report.features[1]);
}

#[test]
fn adjusted_p_values_as_published() {
    // Benjamini and Hochberg 1995, §3.2: at 5 % the four smallest of these fifteen are rejected.
    let p = [
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719,
        0.6528, 0.7590, 1.0,
    ];
    let adjusted = benjamini_hochberg(&p);
    assert_eq!(adjusted.iter().filter(|p| **p <= 0.05).count(), 4);
    assert!((adjusted[3] - 0.0095 * 15.0 / 4.0).abs() < 1e-15);
    assert_eq!(benjamini_hochberg(&[]), Vec::<f64>::new());
}

/// The very bits of one comparison.
#[test]
fn golden_bits() {
    let mut noise = Noise(42);
    let profile = reference(&mut noise, 3, 1000);
    let report = report(&profile, &window(&mut noise, &profile, 500, 0.1, 3));
    let feature = |i: usize| {
        let f = &report.features[i];
        [f.ks.value, f.ks.p, f.js.value, f.js.p, f.psi.value, f.psi.p, f.chi_square.value, f.ks_p_adjusted]
            .map(f64::to_bits)
    };
    let got = [feature(0), feature(1), feature(2)];
    assert_eq!(got, GOLDEN, "{got:#x?}");
}

const GOLDEN: [[u64; 8]; 3] = [
    [
        0x3fb2_b020_c49b_a5e5,
        0x3fad_55c3_1b46_6413,
        0x3fb7_71a8_eb97_ee2e,
        0x3fd4_8ca5_1a09_b5e6,
        0x3fb0_add0_7ac1_74f3,
        0x3fd6_c95c_9569_c090,
        0x4037_08bf_609e_dd84,
        0x3fc3_41ab_5165_8501,
    ],
    [
        0x3fa0_e560_4189_3748,
        0x3feb_8d00_92ba_4675,
        0x3fac_76de_31dd_086f,
        0x3fe6_2098_d760_7dfc,
        0x3f99_494a_eeff_a511,
        0x3fe6_2895_b64d_e9b3,
        0x4020_e4dc_d578_c10e,
        0x3feb_8d00_92ba_4675,
    ],
    [
        0x3fb1_26e9_78d4_fdf4,
        0x3fb9_ace4_6c87_5c01,
        0x3fc6_a8fc_a430_51b6,
        0x3dc4_9fee_aa6b_4686,
        0x3fd5_e187_53b8_7b46,
        0x3c96_b7f6_29a8_e3e4,
        0x404b_cea2_005d_15e8,
        0x3fc3_41ab_5165_8501,
    ],
];

proptest! {
    #[test]
    fn statistics_stay_in_their_ranges(a in proptest::collection::vec(0u64..500, 7), n in 1u64..2000) {
        let profile = profile::build(&["x".into()], &[(0..n).map(|i| (i % 97) as f32).collect()], 4);
        let mut counts = a;
        counts.resize(profile.features[0].bins(), 3);
        let window = FeatureCounts::new(1, counts, 0);
        let limits = Limits { effective_min: 0.0, ..Limits::default() };
        if let Judgement::Judged(report) = judge(&profile, &window, &limits).unwrap() {
            let f = &report.features[0];
            for p in [f.ks.p, f.js.p, f.psi.p, f.chi_square.p, f.ks_p_adjusted, f.ks.value, f.outside, report.share] {
                prop_assert!((0.0..=1.0).contains(&p) || (p - 1.0).abs() < 1e-9, "{report:?}");
            }
            prop_assert!(f.js.value <= libm::sqrt(core::f64::consts::LN_2) + 1e-12 && f.psi.value >= -1e-12);
        }
    }
}
