//! The two tree operators as tract sees them.

use std::sync::Arc;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::{Scores, read};
use crate::rows::{self, RowWork};

/// Registers both operators, over tract's own where it has one.
pub(crate) fn register(ops: &mut OnnxOpRegister) {
    ops.insert("TreeEnsembleClassifier", classifier);
    ops.insert("TreeEnsembleRegressor", regressor);
}

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

fn classifier(_: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let (scores, labels) = read::classifier(node)?;
    Ok((rows::op("TreeEnsemble", Arc::new(Trees { scores, labels: Some(labels) })), vec![]))
}

fn regressor(_: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let scores = read::regressor(node)?;
    Ok((rows::op("TreeEnsemble", Arc::new(Trees { scores, labels: None })), vec![]))
}

/// With labels a classifier, without a regressor.
#[derive(Debug)]
struct Trees {
    scores: Scores,
    labels: Option<Vec<i64>>,
}

impl RowWork for Trees {
    fn labels(&self) -> bool {
        self.labels.is_some()
    }

    fn width(&self) -> usize {
        self.scores.width()
    }

    fn features(&self) -> (usize, bool) {
        (self.scores.features(), true)
    }

    fn narrow(&self) -> Option<fn(f64) -> f32> {
        self.scores.only_up_to().then_some(rows::not_below)
    }

    fn trees(&self) -> Option<&Scores> {
        Some(&self.scores)
    }

    fn eval(&self, rows: &[f32], columns: usize) -> (Vec<i64>, Vec<f32>) {
        let (classes, scores) = self.scores.eval(rows, columns);
        let labels =
            self.labels.as_ref().map(|labels| classes.into_iter().map(|class| labels[class]).collect());
        (labels.unwrap_or_default(), scores)
    }
}
