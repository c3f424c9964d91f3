use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most runs that wait. A fleet with more tasks than this in need of retraining at once has a different
/// problem, and a full queue says so instead of growing.
pub const WAITING_MAX: usize = 256;

/// A run that waits for a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The run.
    pub run: String,
    /// Its task; one run of a task waits at a time.
    pub task: String,
    /// Who owns the task; workers are shared fairly among owners.
    pub owner: String,
}

/// Why a run is not taken into the queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum QueueRefusal {
    /// As many wait as may.
    #[error("{0} runs wait already, which is the cap")]
    Full(usize),
    /// The task has a run in the queue.
    #[error("run {0} of this task waits already")]
    Waiting(String),
}

/// Waiting runs, first come first served within an owner. It is data: store it after each change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    waiting: Vec<Ticket>,
    /// Turns each owner had, lowered together so that they stay small.
    turns: BTreeMap<String, u64>,
}

impl Queue {
    /// Puts a run at the end.
    pub fn offer(&mut self, ticket: Ticket) -> Result<(), QueueRefusal> {
        if let Some(waiting) = self.waiting.iter().find(|waiting| waiting.task == ticket.task) {
            return Err(QueueRefusal::Waiting(waiting.run.clone()));
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(QueueRefusal::Full(self.waiting.len()));
        }
        // An owner who was away starts level with the one served least, not with a credit of idle time.
        let level = self.waiting.iter().map(|waiting| self.had(&waiting.owner)).min().unwrap_or(0);
        let had = self.turns.entry(ticket.owner.clone()).or_insert(level);
        *had = (*had).max(level);
        self.waiting.push(ticket);
        Ok(())
    }

    /// The run whose turn it is when `running` (by owner) are at work and `workers` may be: the owner with the
    /// fewest at work, then with the fewest turns, then who waits longest.
    pub fn next(&mut self, running: &BTreeMap<String, usize>, workers: usize) -> Option<Ticket> {
        if running.values().sum::<usize>() >= workers {
            return None;
        }
        let at_work = |owner: &String| running.get(owner).copied().unwrap_or(0);
        let (place, _) = self
            .waiting
            .iter()
            .enumerate()
            .min_by_key(|(place, ticket)| (at_work(&ticket.owner), self.had(&ticket.owner), *place))?;
        let ticket = self.waiting.remove(place);
        *self.turns.entry(ticket.owner.clone()).or_insert(0) += 1;
        self.turns.retain(|owner, _| {
            *owner == ticket.owner || self.waiting.iter().any(|waiting| waiting.owner == *owner)
        });
        let least = self.turns.values().min().copied().unwrap_or(0);
        self.turns.values_mut().for_each(|turns| *turns -= least);
        Some(ticket)
    }

    /// Takes a run out, wherever it waits.
    pub fn remove(&mut self, run: &str) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|ticket| ticket.run != run);
        self.waiting.len() < before
    }

    /// Those that wait, in the order they came.
    pub fn waiting(&self) -> &[Ticket] {
        &self.waiting
    }

    fn had(&self, owner: &str) -> u64 {
        self.turns.get(owner).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket(run: usize, owner: &str) -> Ticket {
        Ticket { run: format!("run-{run}"), task: format!("task-{run}"), owner: owner.into() }
    }

    #[test]
    fn a_full_queue_and_a_second_run_of_a_task_are_refused() {
        let mut queue = Queue::default();
        for run in 0..WAITING_MAX {
            queue.offer(ticket(run, "a")).unwrap();
        }
        assert_eq!(queue.offer(ticket(3, "b")), Err(QueueRefusal::Waiting("run-3".into())));
        assert_eq!(queue.offer(ticket(999, "b")), Err(QueueRefusal::Full(WAITING_MAX)));
        assert!(queue.remove("run-3") && !queue.remove("run-3"));
        assert_eq!(queue.offer(ticket(999, "b")), Ok(()));
    }

    #[test]
    fn no_worker_is_given_out_twice() {
        let mut queue = Queue::default();
        queue.offer(ticket(1, "a")).unwrap();
        assert_eq!(queue.next(&BTreeMap::from([("b".to_owned(), 2)]), 2), None);
        assert_eq!(queue.next(&BTreeMap::from([("b".to_owned(), 1)]), 2).unwrap().run, "run-1");
    }

    proptest! {
        #[test]
        fn owners_who_wait_are_served_in_turns(counts in prop::collection::vec(1usize..20, 2..5)) {
            let mut queue = Queue::default();
            let mut number = 0;
            for (owner, count) in counts.iter().enumerate() {
                for _ in 0..*count {
                    queue.offer(ticket(number, &format!("owner-{owner}"))).unwrap();
                    number += 1;
                }
            }
            let mut served: BTreeMap<String, usize> = BTreeMap::new();
            while let Some(ticket) = queue.next(&BTreeMap::new(), 1) {
                *served.entry(ticket.owner).or_default() += 1;
                for waiting in queue.waiting() {
                    let least = served.get(&waiting.owner).copied().unwrap_or(0);
                    let most = served.values().max().copied().unwrap_or(0);
                    prop_assert!(most <= least + 1, "{served:?}");
                }
            }
            prop_assert_eq!(served.values().sum::<usize>(), number, "everyone is served in the end");
        }

        #[test]
        fn a_queue_read_back_goes_on_alike(owners in prop::collection::vec(0usize..4, 1..30), cut in 0usize..30) {
            let mut queue = Queue::default();
            for (number, owner) in owners.iter().enumerate() {
                queue.offer(ticket(number, &format!("owner-{owner}"))).unwrap();
            }
            for _ in 0..cut {
                queue.next(&BTreeMap::new(), 1);
            }
            let mut read: Queue = serde_json::from_str(&serde_json::to_string(&queue).unwrap()).unwrap();
            loop {
                let next = queue.next(&BTreeMap::new(), 1);
                prop_assert_eq!(&next, &read.next(&BTreeMap::new(), 1));
                if next.is_none() { break }
            }
        }
    }
}
