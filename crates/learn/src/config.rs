use std::fmt;

use serde::{Deserialize, Serialize};

/// A kind of model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Multinomial logistic regression: the smallest and fastest.
    Logistic,
    /// A multi-layer perceptron.
    Mlp,
    /// Gradient-boosted trees, one against the rest.
    Gbdt,
}

impl Family {
    /// All of them, cheapest first.
    pub const ALL: [Self; 3] = [Self::Logistic, Self::Mlp, Self::Gbdt];

    /// The name, also the last label of a retrained model line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Logistic => "logistic",
            Self::Mlp => "mlp",
            Self::Gbdt => "gbdt",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one trial fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case", deny_unknown_fields)]
pub enum Config {
    /// Logistic regression.
    Logistic {
        /// Weight of the squared norm of the coefficients.
        l2: f64,
    },
    /// Perceptron.
    Mlp {
        /// Width of each hidden layer.
        hidden: Vec<usize>,
        /// Learning rate.
        rate: f64,
        /// Passes over the rows.
        epochs: usize,
        /// Weight decay.
        decay: f64,
    },
    /// Boosted trees.
    Gbdt {
        /// Trees per class.
        trees: usize,
        /// Depth of a tree.
        depth: usize,
        /// Learning rate.
        rate: f32,
        /// Weight of the squared leaf values.
        l2: f32,
    },
}

impl Config {
    /// The family.
    pub fn family(&self) -> Family {
        match self {
            Self::Logistic { .. } => Family::Logistic,
            Self::Mlp { .. } => Family::Mlp,
            Self::Gbdt { .. } => Family::Gbdt,
        }
    }
}
