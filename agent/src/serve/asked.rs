//! A request on its way through the members of a line-up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dunlin_engine::floats;
use dunlin_protocol::{DType, Now, TensorData};

use super::InferError;
use super::gather;
use super::pool::{Pool, Wait, Worked};
use super::resident::{Failure, Made, Serving, Unable};

/// A request, with what is counted of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) inputs: Vec<TensorData>,
    pub(super) rows: usize,
    /// Features of all rows; empty if the first input is not `FP32`.
    pub(super) x: Vec<f32>,
    pub(super) now: Now,
}

impl Asked {
    pub(super) fn new(id: String, inputs: Vec<TensorData>, now: Now) -> Self {
        let rows = rows_of(&inputs);
        // A first input that is no FP32 has no features to count; one that is not whole rows is refused by the model.
        let x = inputs
            .first()
            .filter(|t| t.datatype == DType::Fp32)
            .and_then(floats)
            .filter(|x| rows > 0 && x.len() % rows == 0);
        Self { id, rows, x: x.unwrap_or_default(), inputs, now }
    }
}

/// What came of running a member.
pub(super) struct Ran {
    pub(super) made: Result<Made, Unable>,
    /// Whether it took too long.
    pub(super) late: bool,
    /// Whether it was not begun, so that nothing is the model's fault.
    pub(super) waited: bool,
    pub(super) queue_ns: u64,
    /// In all, nanoseconds.
    pub(super) spent_ns: u64,
}

/// What a run of a member is expected to take, microseconds.
pub(super) fn expected_us(model: &Serving, asked: &Asked) -> u64 {
    model.row_us().saturating_mul(asked.rows as u64)
}

/// Runs a member, within its own limit if it has one.
///
/// # Errors
/// [`InferError::Overloaded`] alone.
pub(super) async fn run(
    pool: Option<&Pool>,
    wait: Wait,
    model: &Arc<Serving>,
    limit: Option<Duration>,
    asked: &Arc<Asked>,
) -> Result<Ran, InferError> {
    let from = Instant::now();
    let worked = match pool {
        Some(pool) => match gather::terms(pool, wait, model, limit, asked) {
            Some(terms) => gather::run(pool, terms, model, asked).await,
            None => pool.run(wait, expected_us(model, asked), limit, work(model, asked)).await,
        },
        None => Worked::Done(work(model, asked)(), Duration::ZERO),
    };
    came(worked, nanos(from.elapsed()))
}

fn work(model: &Arc<Serving>, asked: &Arc<Asked>) -> impl FnOnce() -> Result<Made, Unable> + Send + use<> {
    let (model, asked) = (Arc::clone(model), Arc::clone(asked));
    move || model.run(&asked.inputs, asked.rows)
}

fn came(worked: Worked<Result<Made, Unable>>, spent_ns: u64) -> Result<Ran, InferError> {
    let late = |detail: String| Unable::Failed(Failure::of_model(detail));
    Ok(match worked {
        Worked::Done(made, queued) => {
            Ran { made, late: false, waited: false, queue_ns: nanos(queued), spent_ns }
        }
        Worked::Late(limit) => Ran {
            made: Err(late(format!("no answer within {} ms", limit.as_micros() as f64 / 1e3))),
            late: true,
            waited: false,
            queue_ns: 0,
            spent_ns,
        },
        Worked::Waited => Ran {
            made: Err(late("no worker within half of its time limit".into())),
            late: true,
            waited: true,
            queue_ns: spent_ns,
            spent_ns,
        },
        Worked::Refused => return Err(InferError::Overloaded),
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Rows of a request: the first dimension of its first input.
pub(super) fn rows_of(inputs: &[TensorData]) -> usize {
    inputs.first().and_then(|t| t.shape.first()).map_or(1, |&n| usize::try_from(n).unwrap_or(usize::MAX))
}
