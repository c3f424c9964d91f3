use serde::Serialize;
use utoipa::ToSchema;

/// Where drift is.
#[derive(Serialize, ToSchema)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub(crate) enum DriftScope {
    /// Nowhere.
    Nowhere,
    /// In single devices while their peers are well: suspect their sensors.
    Devices {
        /// The suspects.
        suspects: Vec<String>,
    },
    /// In whole groups: their environment changed.
    Groups {
        /// The groups.
        groups: Vec<String>,
        /// Drifted devices outside those groups, suspects like above.
        suspects: Vec<String>,
    },
    /// In the fleet: the world changed.
    Fleet,
    /// Somewhere, but too few devices were judged to tell a sensor from the world.
    Unclear {
        /// The drifted devices.
        devices: Vec<String>,
    },
}

/// Whether the last windows agree that something changed.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DriftVerdict {
    Learning,
    Stable,
    Drifted,
}

/// All features of a window beside their reference.
#[derive(Serialize, ToSchema)]
pub(crate) struct DriftReport {
    /// Rows counted.
    n: u64,
    /// What they are worth after deflation by autocorrelation.
    n_effective: f64,
    /// By feature, in the profile's order.
    features: Vec<FeatureDrift>,
    /// Share of drifted features.
    share: f64,
    /// Whether that share reaches the limit.
    drifted: bool,
}

/// One feature beside its reference.
#[derive(Serialize, ToSchema)]
pub(crate) struct FeatureDrift {
    /// Name.
    name: String,
    /// Kolmogorov-Smirnov distance.
    ks: Statistic,
    /// The Kolmogorov-Smirnov p-value adjusted for the number of features.
    ks_p_adjusted: f64,
    /// Jensen-Shannon distance (natural logarithm), the square root of the divergence.
    js: Statistic,
    /// Population stability index, half a count added to every bin.
    psi: Statistic,
    /// Pearson's chi-square.
    chi_square: Statistic,
    /// Share of values outside the reference's range, or missing.
    outside: f64,
    /// Whether the adjusted p-value and the distance both pass the limits.
    drifted: bool,
}

/// A statistic with its p-value: the probability of one at least as large if nothing changed.
#[derive(Serialize, ToSchema)]
pub(crate) struct Statistic {
    /// The statistic.
    value: f64,
    /// The p-value.
    p: f64,
}
