use std::fmt;
use std::time::{Duration, Instant};

use super::{Progress, Watch};

/// Time between two syncs of the output.
const SAVE: Duration = Duration::from_secs(2);

/// Saves every two seconds, which is what a kill may cost, against the wear of a card.
pub struct Paced<'a> {
    since: Instant,
    told: &'a mut dyn FnMut(&Progress),
}

impl<'a> Paced<'a> {
    /// Begins now; `told` hears what was saved.
    pub fn new(told: &'a mut dyn FnMut(&Progress)) -> Self {
        Self { since: Instant::now(), told }
    }
}

impl fmt::Debug for Paced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paced").field("since", &self.since).finish_non_exhaustive()
    }
}

impl Watch for Paced<'_> {
    fn is_due(&mut self) -> bool {
        self.since.elapsed() >= SAVE
    }

    fn saved(&mut self, progress: &Progress) {
        self.since = Instant::now();
        (self.told)(progress);
    }
}
