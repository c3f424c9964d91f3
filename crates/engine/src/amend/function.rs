//! Functions of single values that tract computes by formulas which overflow, or cancel, where the function does not.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};

use super::Built;
use crate::attributes::Attributes;

pub(super) fn register(ops: &mut OnnxOpRegister) {
    ops.insert("Softplus", |_, _| built(Function::Softplus));
    ops.insert("Asinh", |_, _| built(Function::Asinh));
    ops.insert("Acosh", |_, _| built(Function::Acosh));
    ops.insert("Celu", |_, node| built(Function::Celu(Attributes { node }.float("alpha", 1.0))));
    ops.insert("Gelu", gelu);
}

fn built(function: Function) -> Built {
    Ok((ElementWiseOp(Box::new(function), None).into_hir(), vec![]))
}

/// With the hyperbolic tangent; the exact one is tract's.
fn gelu(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    if (Attributes { node }).text("approximate", "none") == "tanh" {
        return built(Function::GeluTanh);
    }
    super::theirs(context, node)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    Softplus,
    Asinh,
    Acosh,
    /// With its alpha.
    Celu(f32),
    GeluTanh,
}

/// An alpha that is no number is unlike itself, and so is not merged with another one.
impl Eq for Function {}

impl Function {
    fn of(self, x: f32) -> f32 {
        match self {
            Self::Softplus if x > 0.0 => x + (-x).exp().ln_1p(),
            Self::Softplus => x.exp().ln_1p(),
            Self::Asinh => f64::from(x).asinh() as f32,
            Self::Acosh => f64::from(x).acosh() as f32,
            Self::Celu(_) if x > 0.0 => x,
            Self::Celu(alpha) => alpha * (x / alpha).exp_m1(),
            Self::GeluTanh => {
                let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                // As 0.5 (1 + tanh), which cancels where that is near zero.
                x * (1.0 / (1.0 + (-2.0 * inner).exp()))
            }
        }
    }
}

impl ElementWiseMiniOp for Function {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        for x in tensor.try_as_plain_ram_mut()?.as_slice_mut::<f32>()? {
            *x = self.of(*x);
        }
        Ok(())
    }
}
