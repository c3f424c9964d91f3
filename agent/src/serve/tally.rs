//! What a loaded model has answered and what that took, as the statistics extension tells it.

use std::collections::BTreeMap;

/// Batch sizes told apart: requests of one application have a few sizes; those of further sizes count in the sums alone.
const BATCHES_MAX: usize = 16;

/// How often, and how long in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// How often.
    pub count: u64,
    /// In all, nanoseconds.
    pub ns: u64,
}

impl Span {
    fn add(&mut self, ns: u64) {
        self.count += 1;
        self.ns = self.ns.saturating_add(ns);
    }
}

/// Where the time of one answered request went, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// Waiting for a worker.
    pub(super) queue_ns: u64,
    /// Reading the request.
    pub(super) input_ns: u64,
    /// Running the model.
    pub(super) infer_ns: u64,
    /// Writing the answer.
    pub(super) output_ns: u64,
}

/// Where the time of requests of one size went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batch {
    /// Reading requests.
    pub input: Span,
    /// Running the model.
    pub infer: Span,
    /// Writing answers.
    pub output: Span,
}

/// Counters of one loaded model, from when it was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests answered, with everything between reading and writing.
    pub success: Span,
    /// Runs that failed or came too late.
    pub fail: Span,
    /// Waiting for a worker.
    pub queue: Span,
    /// Reading requests.
    pub input: Span,
    /// Running the model.
    pub infer: Span,
    /// Writing answers.
    pub output: Span,
    /// Runs of the model that gave an answer: one for all requests that were run together.
    pub executions: u64,
    /// Rows answered.
    pub rows: u64,
    /// Wall time of the last answer, milliseconds since 1970; zero if there was none or the time is not known.
    pub last_ms: u64,
    /// By rows of a request.
    pub batches: BTreeMap<u64, Batch>,
}

impl Tally {
    pub(super) fn answered(&mut self, rows: u64, spent: &Spent, wall_ms: Option<u64>) {
        let Spent { queue_ns, input_ns, infer_ns, output_ns } = *spent;
        self.success
            .add(queue_ns.saturating_add(input_ns).saturating_add(infer_ns).saturating_add(output_ns));
        self.queue.add(queue_ns);
        self.input.add(input_ns);
        self.infer.add(infer_ns);
        self.output.add(output_ns);
        self.rows += rows;
        self.last_ms = wall_ms.unwrap_or(self.last_ms);
        if self.batches.len() < BATCHES_MAX || self.batches.contains_key(&rows) {
            let batch = self.batches.entry(rows).or_default();
            batch.input.add(input_ns);
            batch.infer.add(infer_ns);
            batch.output.add(output_ns);
        }
    }

    pub(super) fn failed(&mut self, ns: u64) {
        self.fail.add(ns);
    }
}
