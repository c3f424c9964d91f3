//! One graph made ready for one number of rows.

use std::sync::{Arc, Mutex, PoisonError};

use tract_onnx::tract_hir::internal::{
    SessionId, TValue, TVec, Tensor, TypedModel, TypedSimplePlan, TypedSimpleState,
};
use tract_onnx::tract_hir::tract_core::ops::gru_seq::GruSeq;
use tract_onnx::tract_hir::tract_core::ops::matmul::optimized::OptMatMul;
use tract_onnx::tract_hir::tract_core::ops::scan::{OptScan, Scan};
use tract_onnx::tract_hir::tract_core::plan::eval;

use crate::EngineError;
use crate::depthwise;
use crate::runtime::contained;

/// States kept for reuse: as many as requests run side by side on the largest of these devices.
const STATES_MAX: usize = 8;

/// An optimised graph for a fixed number of rows, with states for reuse.
pub(crate) struct Plan {
    plan: Arc<TypedSimplePlan>,
    idle: Mutex<Vec<TypedSimpleState>>,
    /// How many of those are kept.
    idle_max: usize,
    /// The first product of matrices, if there is one.
    product: Option<usize>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").finish_non_exhaustive()
    }
}

impl Plan {
    /// Optimises `model`, in which every dimension is known.
    pub(crate) fn new(mut model: TypedModel) -> Result<Self, EngineError> {
        contained("optimising the model", || {
            begin_anew(&mut model);
            depthwise::put(&mut model).map_err(prepare)?;
            let model = model.into_optimized().map_err(prepare)?;
            let plan = TypedSimplePlan::new(model).map_err(prepare)?;
            let nodes = plan.model().nodes();
            let product = nodes.iter().position(|node| node.op_is::<OptMatMul>());
            // A graph within the graph has a session of its own, which ends with the state alone.
            let within = nodes.iter().any(|node| node.op_is::<OptScan>());
            let idle_max = if within { 0 } else { STATES_MAX };
            Ok(Self { plan, idle: Mutex::new(Vec::new()), idle_max, product })
        })
    }

    /// One run. A state that failed or panicked is not used again.
    pub(crate) fn run(&self, inputs: TVec<TValue>) -> Result<TVec<TValue>, EngineError> {
        contained("running the model", || {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut state = match idle {
                Some(state) => state,
                None => self.plan.spawn().map_err(run)?,
            };
            let mut session = SessionId::NONE;
            let outputs = state
                .run_plan_with_eval(inputs, |context, state, node, inputs| {
                    session = context.session;
                    eval(context, state, node, inputs)
                })
                .map_err(|e| match e.downcast_ref::<EngineError>() {
                    Some(own) => own.clone(),
                    None => run(e),
                })?;
            self.forget(session);
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < self.idle_max {
                idle.push(state);
            }
            Ok(outputs)
        })
    }

    /// Frees what products of matrices keep of a session. They keep it with the thread that ran them, and let go when the
    /// state is dropped, but only of what the thread that drops it holds: without this, a thread that lives as long as
    /// the program would keep something of every state it ever ran.
    fn forget(&self, session: SessionId) {
        if let Some(id) = self.product {
            self.plan.model().nodes[id].op.drop_session(session, id);
        }
    }
}

/// Lets recurrent operators begin each run with the state that the graph gives them. The runtime is made for streams: by
/// itself it goes on with what the run before left, which here are another row or another caller's request.
fn begin_anew(model: &mut TypedModel) {
    for node in &mut model.nodes {
        if let Some(scan) = node.op_as_mut::<Scan>() {
            scan.reset_every_turn = true;
        }
        if let Some(gru) = node.op_as_mut::<GruSeq>() {
            gru.reset_every_turn = true;
        }
    }
}

pub(crate) fn prepare(e: impl std::fmt::Display) -> EngineError {
    EngineError::Prepare(format!("{e:#}"))
}

pub(crate) fn run(e: impl std::fmt::Display) -> EngineError {
    EngineError::Run(format!("{e:#}"))
}

/// A tensor as the runtime takes it.
pub(crate) fn value(tensor: Tensor) -> TValue {
    tensor.into()
}
