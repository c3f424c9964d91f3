//! Reference profiles: the bins that training data fixes, so that device and controller count on the same ones.
//!
//! Inner edges are quantiles of the reference. Values that carry more than one bin's worth of mass, or all values
//! if there are no more than bins (the pixels of a small image), are *atoms* and counted by themselves: without
//! them a quantile bin can not tell a constant from its neighbours.
use alloc::string::String;
use alloc::vec::Vec;

use dunlin_protocol::{Counts, ReferenceFeature, ReferenceProfile};

/// Default number of quantile bins. Against exact samples the mean error of a KS distance is 0.0043 with 64.
pub const BINS: usize = 64;
/// Most features a profile may have; their counts have to fit one message.
pub const FEATURES_MAX: usize = 2048;
/// Most bins of one feature, all kinds together.
pub const FEATURE_BINS_MAX: usize = 1024;

/// Why a profile can not be counted on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// The format is of a newer release.
    #[error("reading reference profile format {0}: only format 1 is known")]
    Format(u32),
    /// Too many features.
    #[error("reading a reference profile of {0} features: at most {FEATURES_MAX}")]
    Features(usize),
    /// Too many bins in one feature.
    #[error("reading the bins of feature {feature}: {bins} of at most {FEATURE_BINS_MAX}")]
    Bins {
        /// Index of the feature.
        feature: usize,
        /// Bins it claims.
        bins: usize,
    },
    /// Edges do not rise, or an edge or atom is not finite.
    #[error("reading the edges of feature {0}: they must be finite and rise")]
    Edges(usize),
    /// Not one count per bin.
    #[error("reading the reference counts of feature {0}: not one count per bin")]
    Counts(usize),
}

/// Makes the profile of `columns`, one per feature and all of the same length, in `bins` quantile bins.
/// Names beyond the columns, or columns beyond the names, are left out.
pub fn build(names: &[String], columns: &[Vec<f32>], bins: usize) -> ReferenceProfile {
    let bins = bins.clamp(1, FEATURE_BINS_MAX - 3);
    let features = names.iter().zip(columns).map(|(name, column)| feature(name, column, bins)).collect();
    let n = columns.first().map_or(0, |column| column.len() as u64);
    ReferenceProfile { format: 1, n, features, classes: Counts::default() }
}

/// Checks everything that counting on a profile relies on.
pub fn check(profile: &ReferenceProfile) -> Result<(), ProfileError> {
    if profile.format != 1 {
        return Err(ProfileError::Format(profile.format));
    }
    if profile.features.len() > FEATURES_MAX {
        return Err(ProfileError::Features(profile.features.len()));
    }
    for (index, feature) in profile.features.iter().enumerate() {
        let bins = feature.bins();
        if bins > FEATURE_BINS_MAX {
            return Err(ProfileError::Bins { feature: index, bins });
        }
        let rising = feature.edges.windows(2).all(|pair| pair[0] < pair[1]);
        let finite = feature.edges.iter().chain(&feature.atoms).all(|value| value.is_finite());
        if !rising || !finite {
            return Err(ProfileError::Edges(index));
        }
        if feature.counts.unpack(bins).is_none() {
            return Err(ProfileError::Counts(index));
        }
    }
    Ok(())
}

fn feature(name: &str, column: &[f32], bins: usize) -> ReferenceFeature {
    // Adding zero turns -0.0 into 0.0, so that both are one value.
    let mut finite: Vec<f32> = column.iter().filter(|x| x.is_finite()).map(|x| x + 0.0).collect();
    finite.sort_by(f32::total_cmp);
    let runs: Vec<(f32, usize)> = finite.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect();
    let few = runs.len() <= bins;
    let atoms: Vec<f32> =
        runs.iter().filter(|(_, count)| few || count * bins > finite.len()).map(|&(x, _)| x).collect();
    let spread: Vec<f32> = finite.iter().copied().filter(|x| !atoms.contains(x)).collect();
    let edges = if spread.is_empty() {
        // All atoms: the edges only tell unseen values inside the range from those outside it.
        let mut ends: Vec<f32> = finite.first().into_iter().chain(finite.last()).copied().collect();
        ends.dedup();
        ends
    } else {
        // As many bins as keep about one bin's worth of mass in each.
        let inner = (spread.len() * bins).div_ceil(finite.len());
        let last = spread.len() - 1;
        let mut edges: Vec<f32> = (0..=inner).map(|i| spread[(i * spread.len() / inner).min(last)]).collect();
        edges.dedup();
        edges
    };
    let (mean, sd) = moments(&finite);
    let mut feature =
        ReferenceFeature { name: name.into(), edges, atoms, counts: Counts::default(), mean, sd };
    let mut counts = alloc::vec![0u64; feature.bins()];
    let bins = Bins::new(&feature);
    column.iter().for_each(|&x| counts[bins.bin(x)] += 1);
    feature.counts = Counts::pack(&counts);
    feature
}

fn moments(values: &[f32]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let square = values.iter().map(|&x| (f64::from(x) - mean) * (f64::from(x) - mean)).sum::<f64>() / n;
    (mean, libm::sqrt(square))
}

/// The bins of one feature: one search finds atom and quantile bin alike.
#[derive(Debug, Clone)]
struct Bins {
    /// Edges and atoms; they rise.
    cuts: Vec<f32>,
    /// Bins of the values between the cuts, the first of those below all; one more than cuts.
    between: Vec<usize>,
    /// Bins of the cuts themselves.
    at: Vec<usize>,
    /// The last bin: of what is no number.
    nan: usize,
}

impl Bins {
    fn new(feature: &ReferenceFeature) -> Self {
        let ReferenceFeature { edges, atoms, .. } = feature;
        let inner = edges.len().saturating_sub(1);
        let overflow = inner + 1;
        let below = |x: f32| edges.partition_point(|&edge| edge <= x).min(overflow);
        let mut cuts: Vec<f32> = edges.iter().chain(atoms).map(|x| x + 0.0).collect();
        cuts.sort_by(f32::total_cmp);
        cuts.dedup();
        let between = core::iter::once(0).chain(cuts.iter().map(|&cut| below(cut))).collect();
        let at = |&cut: &f32| match atoms.iter().position(|&atom| atom == cut) {
            Some(atom) => overflow + 1 + atom,
            // The last bin has both of its edges.
            None if inner > 0 && edges.last() == Some(&cut) => inner,
            None => below(cut),
        };
        let at = cuts.iter().map(at).collect();
        Self { cuts, between, at, nan: overflow + 1 + atoms.len() }
    }

    fn bins(&self) -> usize {
        self.nan + 1
    }

    fn bin(&self, x: f32) -> usize {
        if x.is_nan() {
            return self.nan;
        }
        let below = self.cuts.partition_point(|&cut| cut <= x);
        match below.checked_sub(1) {
            Some(last) if self.cuts[last] == x => self.at[last],
            Some(_) | None => self.between[below],
        }
    }
}

/// Finds the bin of a value: the flat layout that [`dunlin_protocol::Window::features`] counts on.
#[derive(Debug, Clone)]
pub struct Binner {
    features: Vec<Bins>,
    offsets: Vec<usize>,
}

impl Binner {
    /// The binner of a profile that passed [`check`]; of any other the bins mean nothing, but stay in range.
    pub fn new(profile: &ReferenceProfile) -> Self {
        let features: Vec<Bins> = profile.features.iter().map(Bins::new).collect();
        let mut offsets = alloc::vec![0];
        for feature in &features {
            offsets.push(offsets[offsets.len() - 1] + feature.bins());
        }
        Self { features, offsets }
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.features.len()
    }

    /// Number of bins of all features.
    pub fn bins(&self) -> usize {
        self.offsets[self.features.len()]
    }

    /// Where each feature's bins begin in the flat layout; one more entry than features, the last is [`Self::bins`].
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Bin of value `x` within feature number `feature`, which must be below [`Self::features`].
    pub fn bin(&self, feature: usize, x: f32) -> usize {
        self.features[feature].bin(x)
    }

    /// The same in the flat layout.
    pub fn flat(&self, feature: usize, x: f32) -> usize {
        self.offsets[feature] + self.bin(feature, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(column: &[f32], bins: usize) -> ReferenceProfile {
        build(&["x".into()], &[column.to_vec()], bins)
    }

    #[test]
    fn quantile_bins_are_filled_evenly() {
        let column: Vec<f32> = (0..6400).map(|i| (i as f32).sqrt()).collect();
        let profile = one(&column, 64);
        let feature = &profile.features[0];
        assert_eq!((feature.edges.len(), feature.atoms.len(), feature.bins()), (65, 0, 67));
        let counts = feature.counts.unpack(67).unwrap();
        assert!(counts[1..65].iter().all(|count| (99..=101).contains(count)), "{counts:?}");
        assert_eq!((counts[0], counts[65], counts[66]), (0, 0, 0));
    }

    #[test]
    fn bins_lie_in_the_documented_order() {
        let mut column: Vec<f32> = (0..100).map(|i| 10.0 + i as f32).collect();
        column.extend([0.0; 100]);
        let profile = one(&column, 10);
        let feature = &profile.features[0];
        assert_eq!(feature.atoms, [0.0]);
        assert_eq!((feature.edges.first(), feature.edges.last()), (Some(&10.0), Some(&109.0)));
        let binner = Binner::new(&profile);
        let inner = feature.edges.len() - 1;
        let bins = [-5.0, 10.0, 109.0, 109.5, 0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
            .map(|x| binner.bin(0, x));
        assert_eq!(bins, [0, 1, inner, inner + 1, inner + 2, inner + 2, inner + 3, inner + 1, 0]);
    }

    #[test]
    fn image_like_and_constant_columns_become_atoms() {
        let pixels: Vec<f32> = (0..1700).map(|i| (i % 17) as f32).collect();
        let image = one(&pixels, BINS);
        assert_eq!((image.features[0].atoms.len(), image.features[0].bins()), (17, 21));
        let constant = one(&[3.0; 50], BINS);
        assert_eq!(constant.features[0].bins(), 4);
        let binner = Binner::new(&constant);
        assert_eq!([2.9, 3.0, 3.1, f32::NAN].map(|x| binner.bin(0, x)), [0, 2, 1, 3]);
        let empty = one(&[], BINS);
        assert_eq!(empty.features[0].bins(), 3);
        assert_eq!(check(&empty), Ok(()));
    }

    #[test]
    fn broken_profiles_are_refused() {
        let good = one(&[1.0, 2.0, 3.0, 4.0], 2);
        assert_eq!(check(&good), Ok(()));
        let mut newer = good.clone();
        newer.format = 2;
        assert_eq!(check(&newer), Err(ProfileError::Format(2)));
        let mut falling = good.clone();
        falling.features[0].edges.reverse();
        assert_eq!(check(&falling), Err(ProfileError::Edges(0)));
        let mut short = good.clone();
        short.features[0].counts = Counts::pack(&[1]);
        assert_eq!(check(&short), Err(ProfileError::Counts(0)));
        let mut wide = good;
        wide.features[0].atoms = (0..FEATURE_BINS_MAX).map(|i| i as f32).collect();
        assert!(matches!(check(&wide), Err(ProfileError::Bins { feature: 0, .. })));
    }

    /// The bin of a value as [`ReferenceFeature`] words it, looked for from one end to the other.
    fn documented(feature: &ReferenceFeature, x: f32) -> usize {
        let inner = feature.edges.len().saturating_sub(1);
        let first_atom = inner + 2;
        if x.is_nan() {
            return feature.bins() - 1;
        }
        if let Some(atom) = feature.atoms.iter().position(|&atom| atom == x) {
            return first_atom + atom;
        }
        let within = |i: &usize| {
            let (low, high) = (feature.edges[*i], feature.edges[*i + 1]);
            low <= x && (x < high || *i + 1 == inner && x == high)
        };
        let outside = if feature.edges.first().is_none_or(|&low| x < low) { 0 } else { inner + 1 };
        (0..inner).find(within).map_or(outside, |i| i + 1)
    }

    proptest! {
        #[test]
        fn every_value_has_one_bin(column in proptest::collection::vec(prop_oneof![any::<f32>(), (0..9i8).prop_map(f32::from)], 0..200), bins in 1usize..70, x: f32) {
            let profile = one(&column, bins);
            prop_assert_eq!(check(&profile), Ok(()));
            let feature = &profile.features[0];
            let counts = feature.counts.unpack(feature.bins()).unwrap();
            prop_assert_eq!(counts.iter().sum::<u64>(), column.len() as u64);
            prop_assert!(Binner::new(&profile).bin(0, x) < feature.bins());
            // Each bin is the documented one, at its ends and within.
            let binner = Binner::new(&profile);
            let ends = feature.edges.iter().chain(&feature.atoms);
            for x in ends.flat_map(|&x| [x.next_down(), x, x.next_up()]).chain(column.iter().copied()).chain([x]) {
                prop_assert_eq!(binner.bin(0, x), documented(feature, x), "{}", x);
            }
            // No finite reference value lies outside the range.
            let low = column.iter().filter(|x| **x == f32::NEG_INFINITY).count() as u64;
            prop_assert_eq!(counts[0], low);
        }
    }
}
