//! Requests for one member that wait for a worker are run together.
//!
//! What is expected to be answered at once never waits, so nothing is held up that a batch could not make up for. The
//! first request of a batch gets a worker as any other does; whatever has come by then is run with it. Only where
//! requests meet, now or in the batch before, that worker waits for more until the first one has waited
//! [`Gather::wait_max`]: a lone client never does.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dunlin_engine::{append_rows, some_rows};
use dunlin_protocol::{DType, TensorData};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::oneshot;

use super::asked::{Asked, expected_us};
use super::pool::{Place, Pool, Wait, Worked, is_inline};
use super::resident::{Made, Serving, Unable};

/// How requests of a task are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gather {
    /// Most rows that are run together; fewer where so many are expected to take more than a quarter of the time that a worker
    /// has.
    pub rows_max: usize,
    /// How long the first of them waits for others, once it could have a worker.
    pub wait_max: Duration,
}

type Ran = Worked<Result<Made, Unable>>;

#[derive(Debug)]
struct Waiting {
    asked: Arc<Asked>,
    from: Instant,
    /// Its place in the pool's queue.
    place: Place,
    answer: oneshot::Sender<Ran>,
}

/// What waits for one member.
#[derive(Debug, Default)]
pub(super) struct Queue {
    line: Mutex<Line>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    /// Whether somebody is about to run what waits.
    led: bool,
    /// Whether the batch before was more than one request.
    crowded: bool,
}

impl Line {
    /// Requests at the front that can be run together: how many, and whether no more of them would do.
    fn front(&self, rows_max: usize) -> (usize, bool) {
        let mut rows = 0;
        for (i, one) in self.waiting.iter().enumerate() {
            let room = rows + one.asked.rows <= rows_max;
            if i > 0 && !(room && alike(&self.waiting[0].asked, &one.asked)) {
                return (i, true);
            }
            rows += one.asked.rows;
        }
        (self.waiting.len(), rows >= rows_max)
    }
}

impl Queue {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the one who adds it has to see to it that it is run.
    fn push(&self, one: Waiting) -> bool {
        let mut line = self.line();
        line.waiting.push_back(one);
        self.came.notify_all();
        !std::mem::replace(&mut line.led, true)
    }

    /// Until when the first one waits for others; `None` if it need not.
    fn until(&self, terms: Gather) -> Option<Instant> {
        let line = self.line();
        if !line.crowded && line.waiting.len() < 2 {
            return None;
        }
        let until = line.waiting.front()?.from + terms.wait_max;
        (!line.front(terms.rows_max).1 && until > Instant::now()).then_some(until)
    }

    /// Holds this thread until enough wait, or the time has come.
    fn fill(&self, rows_max: usize, until: Instant) {
        let mut line = self.line();
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if line.front(rows_max).1 {
                return;
            }
            line = self.came.wait_timeout(line, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes what is run together; true if more wait, which the caller has to see to.
    fn take(&self, rows_max: usize) -> (Vec<Waiting>, bool) {
        let mut line = self.line();
        // Who went away is not asked for.
        line.waiting.retain(|one| !one.answer.is_closed());
        let n = line.front(rows_max).0;
        line.crowded = n > 1;
        let taken = line.waiting.drain(..n).collect();
        line.led = !line.waiting.is_empty();
        (taken, line.led)
    }
}

/// How this request is gathered; `None` if it is run for itself. With a time limit of its own a member would be late by
/// what others ask.
pub(super) fn terms(
    pool: &Pool,
    wait: Wait,
    model: &Serving,
    limit: Option<Duration>,
    asked: &Asked,
) -> Option<Gather> {
    let terms = match wait {
        Wait::Gathered => pool.gather(&model.resident.bundle.task)?,
        Wait::Alone | Wait::Never => return None,
    };
    let graph = &model.resident.model;
    let (inputs, outputs) = (graph.inputs(), graph.outputs());
    let free = inputs.iter().chain(outputs).all(|spec| spec.shape.first() == Some(&-1));
    // Texts of outputs have no fixed length by which they could be told apart again.
    let plain = outputs.iter().all(|spec| spec.datatype != DType::Bytes);
    let small = (1..terms.rows_max).contains(&asked.rows);
    let whole = || asked.inputs.iter().all(|input| is_whole(input, asked.rows));
    let queues = limit.is_none() && !is_inline(expected_us(model, asked), limit);
    let in_time = pool.run_max().as_micros() / 4 / u128::from(model.row_us().max(1));
    let rows_max = terms.rows_max.min(usize::try_from(in_time).unwrap_or(usize::MAX));
    (queues && free && plain && small && whole()).then_some(Gather { rows_max, ..terms })
}

/// Whether a tensor holds as many bytes as its shape says, so that it can not shift those of the next request.
fn is_whole(tensor: &TensorData, rows: usize) -> bool {
    let elements = tensor.shape.iter().try_fold(1_u64, |all, &dim| all.checked_mul(dim));
    let bytes = elements.zip(tensor.datatype.size()).and_then(|(n, size)| n.checked_mul(size as u64));
    tensor.shape.first() == Some(&(rows as u64)) && bytes == Some(tensor.data.0.len() as u64)
}

/// Whether two requests differ in nothing but rows and values.
fn alike(a: &Asked, b: &Asked) -> bool {
    a.inputs.len() == b.inputs.len()
        && a.inputs.iter().zip(&b.inputs).all(|(a, b)| {
            a.name == b.name && a.datatype == b.datatype && a.shape.get(1..) == b.shape.get(1..)
        })
}

/// Runs a request with others like it.
pub(super) async fn run(pool: &Pool, terms: Gather, model: &Arc<Serving>, asked: &Arc<Asked>) -> Ran {
    let Some(place) = pool.place() else { return Worked::Refused };
    let (answer, answered) = oneshot::channel();
    let one = Waiting { asked: Arc::clone(asked), from: Instant::now(), place, answer };
    if model.queue.push(one) {
        // On a task of its own: others wait for it, and the one who asks may go away.
        tokio::spawn(lead(pool.clone(), terms, Arc::clone(model)));
    }
    answered.await.unwrap_or(Worked::Refused)
}

/// Gets workers until nothing waits. Batches run beside one another, as single requests do.
async fn lead(pool: Pool, terms: Gather, model: Arc<Serving>) {
    loop {
        let worker = pool.worker().await;
        if let Some(until) = model.queue.until(terms).filter(|_| worker.is_some()) {
            let of = Arc::clone(&model);
            let filled = tokio::task::spawn_blocking(move || of.queue.fill(terms.rows_max, until)).await;
            if let Err(error) = filled {
                tracing::error!(%error, "waiting for a batch ended badly");
            }
        }
        let (batch, more) = model.queue.take(terms.rows_max);
        if let Some(worker) = worker.filter(|_| !batch.is_empty()) {
            tokio::spawn(serve(pool.clone(), worker, Arc::clone(&model), batch));
        }
        if !more {
            return;
        }
    }
}

async fn serve(pool: Pool, worker: OwnedSemaphorePermit, model: Arc<Serving>, batch: Vec<Waiting>) {
    let (mut all, mut answers) = (Vec::new(), Vec::new());
    for Waiting { asked, from, place, answer } in batch {
        all.push(asked);
        answers.push((answer, from.elapsed()));
        drop(place);
    }
    let done = pool.on(worker, Duration::ZERO, None, move || together(&model, &all)).await;
    // Who asked may have gone away.
    match done {
        Worked::Done(made, _) => {
            for ((answer, queued), made) in answers.into_iter().zip(made) {
                drop(answer.send(Worked::Done(made, queued)));
            }
        }
        Worked::Late(limit) => {
            // One run was late, not as many as waited for it.
            for (i, (answer, _)) in answers.into_iter().enumerate() {
                drop(answer.send(if i == 0 { Worked::Late(limit) } else { Worked::Waited }));
            }
        }
        // An answer that is not given is a refusal.
        Worked::Waited | Worked::Refused => {}
    }
}

/// Runs requests that are alike in one go. If that fails, one of them may be at fault: each is run for itself, so that
/// no other one fails with it.
fn together(model: &Serving, all: &[Arc<Asked>]) -> Vec<Result<Made, Unable>> {
    let rows: Vec<usize> = all.iter().map(|asked| asked.rows).collect();
    if all.len() > 1
        && let Some(inputs) = joined(all)
        && let Ok(made) = model.made_together(&inputs, rows.iter().sum())
        && let Some(parts) = apart(&made, &rows)
    {
        return parts.into_iter().map(Ok).collect();
    }
    all.iter().map(|asked| model.run(&asked.inputs, asked.rows)).collect()
}

/// The inputs, one request's rows after the other's.
fn joined(all: &[Arc<Asked>]) -> Option<Vec<TensorData>> {
    let (first, rest) = all.split_first()?;
    let mut inputs = first.inputs.clone();
    for asked in rest {
        inputs.iter_mut().zip(&asked.inputs).try_for_each(|(all, one)| append_rows(all, one))?;
    }
    Some(inputs)
}

/// The answers, each request's rows for itself; `None` if an output is not one row per row. Each took as long as all.
fn apart(made: &Made, rows: &[usize]) -> Option<Vec<Made>> {
    let all: usize = rows.iter().sum();
    let by_row = |out: &TensorData| out.shape.first() == Some(&(all as u64));
    if !made.outputs.iter().all(by_row) || !made.scores.len().is_multiple_of(all) {
        return None;
    }
    let width = made.scores.len() / all;
    let mut from = 0;
    let parts = rows.iter().map(|&rows| {
        let part = from..from + rows;
        from = part.end;
        Some(Made {
            outputs: made.outputs.iter().map(|out| some_rows(out, part.clone())).collect::<Option<_>>()?,
            scores: made.scores[part.start * width..part.end * width].to_vec(),
            latency_ns: made.latency_ns,
        })
    });
    parts.collect()
}

#[cfg(test)]
mod tests;
