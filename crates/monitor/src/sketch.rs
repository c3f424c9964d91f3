//! DDSketch (Masson, Rim, Lee: "DDSketch", VLDB 2019): quantiles with a relative error of at most 1 %.
//!
//! Logarithmic bins add up exactly, so a fleet's p99 is as good as one device's. Only the number of bins is
//! bounded: past [`BINS_MAX`] the lowest ones collapse into one, which keeps high quantiles intact. For latencies
//! in microseconds that takes a spread of e^40, which no clock produces.
use alloc::vec::Vec;

use dunlin_protocol::{Counts, Sketch};

/// Relative accuracy of a quantile.
pub const ACCURACY: f64 = 0.01;
/// Most bins a sketch holds: 16 KiB of counts.
pub const BINS_MAX: usize = 2048;
/// `γ = (1 + ACCURACY) / (1 - ACCURACY)`.
const GAMMA: f64 = (1.0 + ACCURACY) / (1.0 - ACCURACY);
/// Beyond any index a finite f64 can have (`ln(f64::MAX) / ln γ` is about 35,490).
const INDEX_MAX: i32 = 40_000;

/// Counts of values in logarithmic bins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DdSketch {
    zero: u64,
    first: i32,
    /// Neither the first nor the last count is zero.
    bins: Vec<u64>,
}

impl DdSketch {
    /// An empty sketch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one value. Values that are zero or below share one store; NaN is not counted.
    pub fn add(&mut self, value: f64) {
        if value.is_nan() {
            return;
        }
        if value <= 0.0 {
            self.zero = self.zero.saturating_add(1);
            return;
        }
        let index = libm::ceil(libm::log(value.min(f64::MAX)) / libm::log(GAMMA)) as i32;
        self.add_at(index, 1);
    }

    /// Adds the counts of `other`; the result is what one sketch of all values would be.
    pub fn merge(&mut self, other: &Self) {
        self.zero = self.zero.saturating_add(other.zero);
        for (index, &count) in (other.first..).zip(&other.bins) {
            self.add_at(index, count);
        }
    }

    /// Number of values counted.
    pub fn count(&self) -> u64 {
        self.bins.iter().fold(self.zero, |sum, &count| sum.saturating_add(count))
    }

    /// The value below which a share `q` in [0, 1] of all values lies, within 1 % (zero for values that are
    /// not positive); `None` if there are no values or `q` is no share.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = libm::floor(q * (count - 1) as f64) as u64;
        let mut seen = self.zero;
        if seen > rank {
            return Some(0.0);
        }
        let mut index = self.first;
        for &bin in &self.bins {
            seen = seen.saturating_add(bin);
            if seen > rank {
                break;
            }
            index += 1;
        }
        Some(2.0 * libm::exp(f64::from(index) * libm::log(GAMMA)) / (GAMMA + 1.0))
    }

    /// The wire form.
    pub fn to_wire(&self) -> Sketch {
        let len = u32::try_from(self.bins.len()).expect("a sketch holds at most BINS_MAX bins");
        Sketch { zero: self.zero, first: self.first, len, bins: Counts::pack(&self.bins) }
    }

    /// Reads the wire form; `None` if it holds too many bins, an index no value has, or not the stated number of counts.
    pub fn from_wire(wire: &Sketch) -> Option<Self> {
        let len = usize::try_from(wire.len).ok().filter(|&len| len <= BINS_MAX)?;
        let last = i64::from(wire.first) + i64::from(wire.len);
        if wire.first < -INDEX_MAX || last > i64::from(INDEX_MAX) {
            return None;
        }
        let mut sketch = Self { zero: wire.zero, first: 0, bins: Vec::new() };
        for (index, count) in (wire.first..).zip(wire.bins.unpack(len)?) {
            sketch.add_at(index, count);
        }
        Some(sketch)
    }

    fn add_at(&mut self, index: i32, count: u64) {
        if count == 0 {
            return;
        }
        if self.bins.is_empty() {
            self.first = index;
        }
        let last = (self.first + self.bins.len() as i32 - 1).max(index);
        let lowest = last - BINS_MAX as i32 + 1;
        if lowest > self.first && !self.bins.is_empty() {
            self.collapse_below(lowest);
        }
        let index = index.max(lowest);
        if index < self.first {
            let room = (self.first - index) as usize;
            self.bins.splice(0..0, core::iter::repeat_n(0, room));
            self.first = index;
        }
        let at = (index - self.first) as usize;
        if at >= self.bins.len() {
            self.bins.resize(at + 1, 0);
        }
        self.bins[at] = self.bins[at].saturating_add(count);
    }

    /// Moves all counts below index `lowest`, which lies above the first, into it.
    fn collapse_below(&mut self, lowest: i32) {
        let below = ((lowest - self.first) as usize).min(self.bins.len());
        let moved = self.bins.drain(..below).fold(0u64, u64::saturating_add);
        self.first = lowest;
        match self.bins.first_mut() {
            Some(first) => *first = first.saturating_add(moved),
            None => self.bins.push(moved),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sketch(values: &[f64]) -> DdSketch {
        let mut sketch = DdSketch::new();
        values.iter().for_each(|&value| sketch.add(value));
        sketch
    }

    fn merged(a: &DdSketch, b: &DdSketch) -> DdSketch {
        let mut sum = a.clone();
        sum.merge(b);
        sum
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec(
            prop_oneof![Just(0.0), 1.0..1e7f64, -300.0..300.0f64, 1e-300..1e300f64],
            0..60,
        )
    }

    proptest! {
        #[test]
        fn quantiles_are_within_one_percent(mut values in proptest::collection::vec(1.0..1e9f64, 1..300), q in 0.0..=1.0f64) {
            let got = sketch(&values).quantile(q).unwrap();
            values.sort_by(f64::total_cmp);
            let want = values[(q * (values.len() - 1) as f64) as usize];
            prop_assert!((got - want).abs() <= want * (ACCURACY + 1e-9), "{got} for {want}");
        }

        #[test]
        fn merging_is_exact_associative_and_commutative(a in values(), b in values(), c in values()) {
            let all: Vec<f64> = a.iter().chain(&b).chain(&c).copied().collect();
            let (a, b, c) = (sketch(&a), sketch(&b), sketch(&c));
            let want = sketch(&all);
            prop_assert_eq!(&merged(&merged(&a, &b), &c), &want);
            prop_assert_eq!(&merged(&a, &merged(&c, &b)), &want);
        }

        #[test]
        fn the_wire_form_keeps_everything(values in values()) {
            let sketch = sketch(&values);
            prop_assert_eq!(DdSketch::from_wire(&sketch.to_wire()), Some(sketch));
        }

        #[test]
        fn hostile_wire_forms_never_panic(zero: u64, first: i32, len: u32, bins in proptest::collection::vec(any::<u8>(), 0..64)) {
            let wire = Sketch { zero, first, len, bins: Counts(bins.into()) };
            if let Some(sketch) = DdSketch::from_wire(&wire) {
                let _ = sketch.quantile(0.5);
            }
        }
    }

    #[test]
    fn extremes_collapse_at_the_low_end() {
        let sketch = sketch(&[f64::MIN_POSITIVE, 1e-200, 1e300, f64::INFINITY]);
        assert_eq!(sketch.count(), 4);
        assert!(sketch.bins.len() <= BINS_MAX);
        assert!((sketch.quantile(0.7).unwrap() / 1e300 - 1.0).abs() <= ACCURACY + 1e-9);
    }

    #[test]
    fn an_empty_sketch_has_no_quantile() {
        assert_eq!(DdSketch::new().quantile(0.5), None);
        assert_eq!(sketch(&[f64::NAN]).count(), 0);
        assert_eq!(sketch(&[5.0]).quantile(1.5), None);
    }
}
