//! Tree ensembles of `ai.onnx.ml` (operator set 1 to 3): validated once, then walked in a flat array.
//!
//! tract's own operator is orders of magnitude slower, wrong for two classes and for some branch modes, and reads
//! out of bounds on hostile files. Here every branch mode becomes one comparison, `x <= t`, when the file is
//! read; leaves point at themselves, so that several walks can go on in step without a branch per node.

mod choice;
mod forest;
mod op;
mod read;
mod scores;
mod shap;

use forest::Forest;
pub(crate) use op::register;
pub(crate) use scores::Scores;
