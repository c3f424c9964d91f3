//! The one place that sets tract up.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tract_onnx::Onnx;

use crate::EngineError;

/// tract's ONNX front end with this crate's operators in it. Declared shapes of intermediate values are
/// ignored: they may contradict the batch size that is chosen here, and tract derives them itself.
pub(crate) fn framework() -> Onnx {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    crate::tree::register(&mut onnx.op_register);
    crate::linear::register(&mut onnx.op_register);
    crate::scaler::register(&mut onnx.op_register);
    crate::svm::register(&mut onnx.op_register);
    crate::known::register(&mut onnx.op_register);
    crate::steps::register(&mut onnx.op_register);
    crate::amend::register(&mut onnx.op_register);
    onnx
}

/// Runs `work` and turns a panic into an error. tract panics on some unsound graphs; the state it leaves behind
/// is dropped by the callers, so nothing half-changed is used again.
pub(crate) fn contained<T>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(EngineError::Panicked { doing, message: message(panic.as_ref()) }))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").chars().take(500).collect()
}
