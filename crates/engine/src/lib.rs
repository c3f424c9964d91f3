//! Inference: the only crate that names tract.
//!
//! It rewrites files of other exporters, reads ONNX files from bytes, refuses what it would compute wrongly or what is
//! unsound, runs models, and proves them in a child process. It deliberately does not do more: signatures are checked
//! before a file comes here, which model serves which task is the agent's business, and models are made elsewhere.
//!
//! Invariants:
//! - A model is loaded from bytes alone; no path inside a file is ever followed.
//! - Operators of [`supported_ops`] are computed as ONNX Runtime computes them; every other one is refused by name. What
//!   they make of NaN where they choose between values is not part of it; docs/parity.md names them.
//! - A hostile file is an error. What can only be seen by running it is bounded by the limits of [`prove`].
//! - A panic of the runtime is caught, in load and in run, and the state it happened in is thrown away.
//! - The answer of one row does not depend on the rows it comes with.
//!
//! ```
//! assert!(dunlin_engine::supported_ops().contains("ai.onnx.ml/TreeEnsembleClassifier"));
//! assert!(dunlin_engine::inspect(b"no model").is_err());
//! ```

mod amend;
mod attributes;
pub mod batch;
mod check;
mod depthwise;
mod error;
mod explain;
mod golden;
mod import;
pub mod json;
mod known;
mod layout;
mod linear;
mod mixing;
mod model;
mod origin;
mod parent;
mod places;
mod plan;
mod program;
pub mod prove;
mod rows;
mod runtime;
mod scaler;
mod steps;
mod svm;
mod tensor;
mod tree;
mod words;

pub use check::{Inspection, MODEL_BYTES_MAX, NODES_MAX, inspect, supported_ops};
pub use error::EngineError;
pub use explain::{
    BACKGROUND_ROWS_MAX, EXPLAINED_FEATURES_MAX, Effort, Explains, Explanation, Method, PERMUTATIONS_MAX,
    background,
};
pub use golden::{anchor_score_ppm, argmax, first_row, golden, max_error_ppm};
pub use import::{Imported, Rewrite, import};
pub use model::{Model, ROWS_MAX, ROWS_TOGETHER, ROWS_TOGETHER_MIN};
pub use parent::{end_with_parent, tie};
pub use program::this_program;
pub use tensor::{append_rows, floats, of_floats, of_numbers, some_rows};

/// The protobuf types of ONNX, for those who write files.
pub use tract_onnx::pb as onnx_pb;
