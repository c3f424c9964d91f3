use dunlin_monitor::sketch::DdSketch;

/// How a champion has done since it was switched to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Guard {
    /// Rows it was asked about.
    pub requests: u64,
    /// Rows it failed on.
    pub errors: u64,
    /// 99th percentile of its latency, microseconds; zero before the first answer.
    pub p99_us: u64,
    /// The same of the previous champion on the same inputs.
    pub previous_p99_us: u64,
    /// Rows both answered.
    pub paired: u64,
    /// Of those, rows they answered differently.
    pub disagree: u64,
}

/// A guard in the making.
#[derive(Debug)]
pub(super) struct Watch {
    /// Of whose champion it is: requests of the one before may still be running when it begins.
    generation: u64,
    guard: Guard,
    latency: DdSketch,
    previous: DdSketch,
}

impl Watch {
    pub(super) fn new(generation: u64) -> Self {
        Self { generation, guard: Guard::default(), latency: DdSketch::new(), previous: DdSketch::new() }
    }

    /// Whether it is about the champion of that generation.
    pub(super) fn is_of(&self, generation: u64) -> bool {
        self.generation == generation
    }

    pub(super) fn answered(&mut self, rows: u64, latency_us: u64) {
        self.guard.requests += rows;
        self.latency.add(latency_us as f64);
    }

    pub(super) fn failed(&mut self, rows: u64) {
        self.guard.requests += rows;
        self.guard.errors += rows;
    }

    pub(super) fn previous(&mut self, latency_us: u64) {
        self.previous.add(latency_us as f64);
    }

    pub(super) fn paired(&mut self, same: bool) {
        self.guard.paired += 1;
        self.guard.disagree += u64::from(!same);
    }

    pub(super) fn guard(&self) -> Guard {
        let p99 = |sketch: &DdSketch| sketch.quantile(0.99).map_or(0, |us| us.ceil().max(0.0) as u64);
        Guard { p99_us: p99(&self.latency), previous_p99_us: p99(&self.previous), ..self.guard }
    }
}
