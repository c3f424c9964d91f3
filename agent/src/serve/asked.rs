//! A request on its way through the members of a line-up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dunlin_engine::floats;
use dunlin_protocol::{DType, Now, TensorData};

use super::InferError;
use super::gather;
use super::pool::{Pool, Worked};
use super::resident::{Made, Serving, Unable};

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
        let rows = rows(&inputs);
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
    /// What the previous champion made of the same inputs, if it was to and could.
    pub(super) other: Option<(Arc<Serving>, Made)>,
    pub(super) queue_ns: u64,
    /// In all, nanoseconds.
    pub(super) spent_ns: u64,
}

/// Runs a member, and beside it `previous`, for the record.
pub(super) async fn run(
    pool: Option<&Pool>,
    model: &Arc<Serving>,
    previous: Option<&Arc<Serving>>,
    asked: &Arc<Asked>,
) -> Result<Ran, InferError> {
    let row_us = model.row_us() + previous.map_or(0, |m| m.row_us());
    let expected_us = row_us.saturating_mul(asked.rows as u64);
    let alone = pool.filter(|_| previous.is_none());
    let gathered = alone.and_then(|pool| Some((pool, gather::terms(pool, model, asked, expected_us)?)));
    let (model, previous, asked) = (Arc::clone(model), previous.cloned(), Arc::clone(asked));
    let from = Instant::now();
    if let Some((pool, terms)) = gathered {
        let worked = gather::run(pool, terms, &model, &asked).await;
        return ran(worked.map(|made| (made, None)), from);
    }
    let work = move || {
        let made = model.run(&asked.inputs, asked.rows);
        let other = previous.filter(|_| made.is_ok()).and_then(|previous| {
            let made = previous.run(&asked.inputs, asked.rows).ok()?;
            Some((previous, made))
        });
        (made, other)
    };
    let worked = match pool {
        Some(pool) => pool.run(expected_us, work).await,
        None => Worked::Done(work(), Duration::ZERO),
    };
    ran(worked, from)
}

/// What one member made, and its predecessor beside it.
type Both = (Result<Made, Unable>, Option<(Arc<Serving>, Made)>);

fn ran(worked: Worked<Both>, from: Instant) -> Result<Ran, InferError> {
    let spent_ns = nanos(from.elapsed());
    Ok(match worked {
        Worked::Done((made, other), queued) => Ran { made, other, queue_ns: nanos(queued), spent_ns },
        Worked::Late(limit) => Ran {
            made: Err(Unable::Failed(format!("no answer within {} ms", limit.as_millis()))),
            other: None,
            queue_ns: 0,
            spent_ns,
        },
        Worked::Refused => return Err(InferError::Overloaded),
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Rows of a request: the first dimension of its first input.
fn rows(inputs: &[TensorData]) -> usize {
    inputs.first().and_then(|t| t.shape.first()).map_or(1, |&n| usize::try_from(n).unwrap_or(usize::MAX))
}
