use crate::data::Table;

/// Standardisation of features: `(x - mean) * inverse`, in f32 exactly as the graph does it.
#[derive(Debug, Clone)]
pub(crate) struct Scaling {
    pub(crate) mean: Vec<f32>,
    pub(crate) inverse: Vec<f32>,
}

impl Scaling {
    pub(crate) fn of(table: &Table) -> Self {
        let n = table.rows() as f64;
        let (mean, inverse) = (0..table.width)
            .map(|feature| {
                let column = table.column(feature);
                let mean = column.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
                let variance = column.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
                // A constant feature says nothing: it becomes zero.
                let inverse =
                    if variance > 1e-12 * mean.abs().max(1e-12) { 1.0 / variance.sqrt() } else { 0.0 };
                (mean as f32, inverse as f32)
            })
            .unzip();
        Self { mean, inverse }
    }

    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let width = self.mean.len();
        x.iter().enumerate().map(|(i, &v)| (v - self.mean[i % width]) * self.inverse[i % width]).collect()
    }
}
