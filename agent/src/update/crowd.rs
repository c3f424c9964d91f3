use std::collections::BTreeMap;

use dunlin_protocol::TaskId;

use crate::serve::MemberRole;
use crate::serve::pack::{Budget, Candidate, Held, pack};

/// Shortest stretch over which a task's rate is counted, milliseconds.
const RATE_MS: u64 = 1_000;

/// Rows that a task answers.
#[derive(Debug)]
struct Rate {
    rows: u64,
    since_ms: u64,
    /// Rows in a thousand seconds.
    per_ks: u64,
}

/// A member that was taken out for want of room.
#[derive(Debug)]
struct Away {
    held: Held,
    since_ms: u64,
}

/// What is to change in memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moves {
    pub(super) out: Vec<Held>,
    pub(super) back: Vec<Held>,
}

/// The room for models, and who was sent out of it.
#[derive(Debug)]
pub(super) struct Crowd {
    budget: Budget,
    rates: BTreeMap<TaskId, Rate>,
    away: Vec<Away>,
}

impl Crowd {
    pub(super) fn new(budget: Budget) -> Self {
        Self { budget, rates: BTreeMap::new(), away: Vec::new() }
    }

    pub(super) fn is_bounded(&self) -> bool {
        self.budget != Budget::default()
    }

    /// Forgets who of a task is away: its line-up is another one.
    pub(super) fn forget(&mut self, task: &TaskId) {
        self.away.retain(|away| away.held.task != *task);
    }

    /// Notes that a member could not be brought back.
    pub(super) fn stayed_away(&mut self, held: Held, now_ms: u64) {
        self.away.push(Away { held, since_ms: now_ms });
    }

    /// What is to change, given everything in memory and the rows that each task has answered so far.
    pub(super) fn decide(&mut self, held: Vec<Held>, rows: BTreeMap<TaskId, u64>, now_ms: u64) -> Moves {
        self.rates.retain(|task, _| rows.contains_key(task));
        rows.into_iter().for_each(|(task, rows)| self.count(task, rows, now_ms));
        let away = std::mem::take(&mut self.away);
        let cpu_ppm = |held: &Held| held.cpu_ppm(self.rates.get(&held.task).map_or(0, |rate| rate.per_ks));
        let here = held.iter().map(|held| Candidate { held, cpu_ppm: cpu_ppm(held), away_ms: None });
        let gone = away.iter().map(|Away { held, since_ms }| Candidate {
            held,
            cpu_ppm: cpu_ppm(held),
            away_ms: Some(now_ms.saturating_sub(*since_ms)),
        });
        let candidates: Vec<Candidate<'_>> = here.chain(gone).collect();
        let out = pack(&candidates, &self.budget);
        let mut moves = Moves::default();
        moves
            .out
            .extend(held.iter().enumerate().filter(|(i, _)| out.contains(i)).map(|(_, held)| held.clone()));
        let first_away = held.len();
        for (i, one) in away.into_iter().enumerate() {
            if out.contains(&(first_away + i)) { self.away.push(one) } else { moves.back.push(one.held) }
        }
        // Who is not asked any more has nothing to come back for, and to a predecessor there is a rollback, which loads it.
        let returns = |held: &&Held| !held.struck && held.role != MemberRole::Previous;
        let may_return = moves.out.iter().filter(returns).cloned();
        self.away.extend(may_return.map(|held| Away { held, since_ms: now_ms }));
        moves
    }

    fn count(&mut self, task: TaskId, rows: u64, now_ms: u64) {
        let rate = self.rates.entry(task).or_insert(Rate { rows, since_ms: now_ms, per_ks: 0 });
        let ms = now_ms.saturating_sub(rate.since_ms);
        if ms >= RATE_MS {
            // A stretch counts as much as all before it: follows a change within some looks, forgives one burst.
            let stretch = rows.saturating_sub(rate.rows).saturating_mul(1_000_000) / ms;
            *rate = Rate { rows, since_ms: now_ms, per_ks: rate.per_ks / 2 + stretch / 2 };
        }
    }
}

#[cfg(test)]
mod tests {
    use dunlin_protocol::Digest;

    use super::*;

    fn champion(task: &str, model: u8, value: u32) -> Held {
        Held {
            task: task.parse().unwrap(),
            role: MemberRole::Champion,
            release: "m@1".parse().unwrap(),
            model: Digest([model; 32]),
            value,
            bytes: 600,
            row_us: 100,
            share_ppm: 1_000_000,
            cpu_ppm_max: None,
            trial: false,
            struck: false,
        }
    }

    fn none() -> BTreeMap<TaskId, u64> {
        BTreeMap::new()
    }

    #[test]
    fn a_member_goes_when_room_runs_out_and_comes_back_when_there_is_room_again() {
        let mut crowd = Crowd::new(Budget { ram_bytes: Some(1_000), cpu_ppm: None });
        let (low, high) = (champion("low", 1, 1), champion("high", 2, 2));
        assert_eq!(crowd.decide(vec![low.clone()], none(), 0), Moves::default());
        let moves = crowd.decide(vec![low.clone(), high.clone()], none(), 10);
        assert_eq!(moves, Moves { out: vec![low.clone()], back: vec![] });
        assert_eq!(
            crowd.decide(vec![high.clone()], none(), 1_000_000),
            Moves::default(),
            "there is still no room"
        );
        assert_eq!(crowd.decide(vec![], none(), 1_000_001), Moves { out: vec![], back: vec![low.clone()] });
        assert_eq!(crowd.decide(vec![low.clone()], none(), 1_000_002), Moves::default(), "it is told once");

        crowd.decide(vec![low.clone(), high.clone()], none(), 1_000_003);
        crowd.forget(&low.task);
        assert_eq!(
            crowd.decide(vec![], none(), 9_000_000),
            Moves::default(),
            "another line-up has taken its place"
        );
    }

    #[test]
    fn processor_time_follows_the_rate_of_requests() {
        let task = || -> TaskId { "meter".parse().unwrap() };
        let one = champion("meter", 1, 1);
        let rows = |rows| BTreeMap::from([(task(), rows)]);
        let bound = || Crowd::new(Budget { ram_bytes: None, cpu_ppm: Some(500_000) });
        let mut crowd = bound();
        crowd.decide(vec![one.clone()], rows(0), 0);
        // 20,000 rows a second of 100 µs each: two cores, and half of that after one look.
        assert_eq!(crowd.decide(vec![one.clone()], rows(20_000), 1_000).out, std::slice::from_ref(&one));
        // Others answer now, but as many requests come.
        assert!(crowd.decide(vec![], rows(2_020_000), 101_000).back.is_empty());
        assert!(crowd.decide(vec![], rows(2_020_000), 201_000).back.is_empty(), "it takes some looks");
        assert_eq!(crowd.decide(vec![], rows(2_020_000), 301_000).back, std::slice::from_ref(&one));
        let mut quiet = bound();
        quiet.decide(vec![one.clone()], rows(0), 0);
        assert!(quiet.decide(vec![one], rows(2_000), 1_000).out.is_empty());
    }
}
