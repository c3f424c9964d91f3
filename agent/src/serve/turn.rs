//! One request on its way through the line-up.

use std::sync::Arc;
use std::time::Duration;

use dunlin_engine::of_floats;
use dunlin_protocol::{ReleaseId, Role, Rule, TensorData};
use futures_util::future::join_all;

use super::answer::{Absence, Answer, AnsweredBy, InferError, Part};
use super::asked::{Asked, Ran, expected_us, run};
use super::choose::challenger;
use super::combine::{Ballot, Voice, side_by_side, sure, vote};
use super::lineup::{Berth, LineUp, Seat};
use super::live::Principal;
use super::pool::{Pool, is_inline};
use super::resident::{Failure, Fault, Made, Serving, Unable};
use super::task::Task;
use super::view::MemberRole;

/// The champion's weight in a weighted vote.
const CHAMPION_PPM: u32 = 1_000_000;

/// What one member answered.
struct Reply {
    by: AnsweredBy,
    model: Arc<Serving>,
    made: Made,
    weight: u32,
}

/// A request, and what has become of it so far.
pub(super) struct Turn<'a> {
    pub(super) task: &'a Task,
    pub(super) lineup: &'a LineUp,
    pub(super) pool: Option<&'a Pool>,
    pub(super) asked: &'a Arc<Asked>,
    /// The first that answered, which the others are compared with.
    pub(super) principal: Option<Principal>,
    /// Those that should have had a part and had none.
    pub(super) left_out: Vec<(ReleaseId, Absence)>,
    /// What those did that answered.
    parts: Vec<Part>,
    /// How the last that failed did.
    pub(super) failed: Option<Failure>,
    /// Whether the champion failed and the request may be to blame.
    pub(super) doubtful: bool,
    /// Those that too many wait for.
    pub(super) refused: Vec<AnsweredBy>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(
        task: &'a Task,
        lineup: &'a LineUp,
        pool: Option<&'a Pool>,
        asked: &'a Arc<Asked>,
    ) -> Self {
        Self {
            task,
            lineup,
            pool,
            asked,
            principal: None,
            left_out: Vec::new(),
            parts: Vec::new(),
            failed: None,
            doubtful: false,
            refused: Vec::new(),
        }
    }

    /// Asks the line-up by its rule; `None` if none of its models answered.
    pub(super) async fn by_rule(&mut self, degraded: bool) -> Result<Option<Answer>, InferError> {
        let slot = &self.lineup.slot;
        if degraded {
            for seat in slot.of(MemberRole::Smaller) {
                if let Some(reply) = self.seat(AnsweredBy::Smaller, seat).await? {
                    return Ok(Some(self.one(reply)));
                }
            }
        } else if let Some(seat) = self.challenger()
            && let Some(reply) = self.seat(AnsweredBy::Challenger, seat).await?
        {
            return Ok(Some(self.one(reply)));
        }
        // Who is degraded saves what the rule would cost.
        let rule = if degraded { Rule::First } else { slot.conduct.rule };
        let answer = match rule {
            Rule::First => self.champion().await?.map(|reply| self.one(reply)),
            Rule::Cascade { margin_ppm } => self.cascade(margin_ppm).await?,
            Rule::HardVote => self.voted(Ballot::Hard).await?,
            Rule::SoftVote => self.voted(Ballot::Soft).await?,
            Rule::WeightedVote => self.voted(Ballot::Weighted).await?,
            Rule::Stack => self.stacked().await?,
        };
        // Fallbacks are for a champion that can not answer, not for one that too many wait for.
        if answer.is_some() || self.refused.contains(&AnsweredBy::Champion) {
            return Ok(answer);
        }
        let mut stand_ins: Vec<(AnsweredBy, &Seat)> =
            slot.of(MemberRole::Fallback).map(|seat| (AnsweredBy::Fallback, seat)).collect();
        // A smaller one stands in for a champion that there is no room for, unless it was asked before.
        if !degraded && self.lineup.champion().is_none() {
            stand_ins.extend(slot.of(MemberRole::Smaller).map(|seat| (AnsweredBy::Smaller, seat)));
        }
        for (by, seat) in stand_ins {
            if let Some(reply) = self.seat(by, seat).await? {
                return Ok(Some(self.one(reply)));
            }
        }
        Ok(None)
    }

    /// Asks the champion and nobody else.
    pub(super) async fn by_champion(&mut self) -> Result<Option<Answer>, InferError> {
        Ok(self.champion().await?.map(|reply| self.one(reply)))
    }

    fn challenger(&self) -> Option<&'a Seat> {
        let shares = self.lineup.slot.seats.iter().filter_map(|seat| match seat.role {
            Role::Challenger { share_ppm } => Some((seat, share_ppm)),
            Role::Fallback
            | Role::Shadow { .. }
            | Role::Voter { .. }
            | Role::Bigger
            | Role::Smaller
            | Role::Meta => None,
        });
        let chosen = challenger(&self.asked.id, shares.clone().map(|(_, share)| share))?;
        shares.map(|(seat, _)| seat).nth(chosen)
    }

    async fn champion(&mut self) -> Result<Option<Reply>, InferError> {
        let Some(champion) = &self.lineup.slot.champion else { return Ok(None) };
        self.ask(AnsweredBy::Champion, champion, None, self.asked).await
    }

    async fn seat(&mut self, by: AnsweredBy, seat: &Seat) -> Result<Option<Reply>, InferError> {
        self.ask(by, &seat.berth, seat.limit, self.asked).await
    }

    async fn ask(
        &mut self,
        by: AnsweredBy,
        berth: &Berth,
        limit: Option<Duration>,
        asked: &Arc<Asked>,
    ) -> Result<Option<Reply>, InferError> {
        let Some(model) = self.asked_of(berth) else { return Ok(None) };
        let ran = run(self.pool, self.lineup.wait(), model, limit, asked).await;
        self.take(by, model, CHAMPION_PPM, ran, asked)
    }

    /// The model of a member that is still asked; one that is not is left out.
    fn asked_of<'b>(&mut self, berth: &'b Berth) -> Option<&'b Arc<Serving>> {
        let why = match berth {
            Berth::Loaded(model) if model.strikes.out().is_none() => return Some(model),
            Berth::Loaded(_) | Berth::Out(..) => Absence::Quarantined,
            Berth::Away(_) => Absence::Unloaded,
        };
        self.left_out.push((berth.release().clone(), why));
        None
    }

    /// Takes what came of running a member on what it was `asked`, and counts it.
    fn take(
        &mut self,
        by: AnsweredBy,
        model: &Arc<Serving>,
        weight: u32,
        ran: Result<Ran, InferError>,
        asked: &Arc<Asked>,
    ) -> Result<Option<Reply>, InferError> {
        let Ok(ran) = ran else {
            // Others may answer, and that it is crowded is no fault of the member.
            self.refused.push(by);
            self.left_out.push((model.release().clone(), Absence::Late));
            return Ok(None);
        };
        let key = self.lineup.key(Some(model.release().clone()));
        let leads = by == AnsweredBy::Champion;
        let failure = match ran.made {
            Ok(made) => {
                let first = self.task.answered(leads, key, model, &made, self.principal.clone(), asked);
                self.principal = first.or_else(|| self.principal.take());
                let model = Arc::clone(model);
                let (release, queue_ns, infer_ns) = (model.release().clone(), ran.queue_ns, made.latency_ns);
                self.parts.push(Part { release, queue_ns, infer_ns });
                return Ok(Some(Reply { by, model, made, weight }));
            }
            // All take the same: what the champion can not read, or the first, is the caller's fault.
            Err(Unable::Input(problem)) if self.principal.is_none() && (leads || self.failed.is_none()) => {
                return Err(InferError::Input(problem));
            }
            // What others could read is not for this one. That is no failure.
            Err(Unable::Input(_)) => {
                self.left_out.push((model.release().clone(), Absence::Failed));
                return Ok(None);
            }
            Err(Unable::Failed(failure)) => failure,
        };
        let why = if ran.late { Absence::Late } else { Absence::Failed };
        self.left_out.push((model.release().clone(), why));
        if !ran.waited {
            self.task.missed(leads, &key, model, asked, &failure);
            self.task.failed(model, asked, &failure, ran.spent_ns);
            self.doubtful |= leads && failure.fault == Fault::Request;
        }
        self.failed = Some(failure);
        Ok(None)
    }

    /// The champion, and each bigger member for as long as those before were not sure.
    async fn cascade(&mut self, margin_ppm: u32) -> Result<Option<Answer>, InferError> {
        let mut best = self.champion().await?;
        for seat in self.lineup.slot.of(MemberRole::Bigger) {
            if best.as_ref().is_some_and(|reply| sure(&reply.made.scores, self.asked.rows, margin_ppm)) {
                break;
            }
            best = self.seat(AnsweredBy::Bigger, seat).await?.or(best);
        }
        Ok(best.map(|reply| self.one(reply)))
    }

    /// What champion and voters answer, side by side, in this order.
    async fn voices(&mut self) -> Result<Vec<Reply>, InferError> {
        let slot = &self.lineup.slot;
        let champion = slot.champion.iter().map(|berth| (AnsweredBy::Champion, berth, None, CHAMPION_PPM));
        let voters = slot.seats.iter().filter_map(|seat| match seat.role {
            Role::Voter { weight_ppm } => Some((AnsweredBy::Vote, &seat.berth, seat.limit, weight_ppm)),
            Role::Fallback
            | Role::Challenger { .. }
            | Role::Shadow { .. }
            | Role::Bigger
            | Role::Smaller
            | Role::Meta => None,
        });
        let mut called = Vec::new();
        for (by, berth, limit, weight) in champion.chain(voters) {
            if let Some(model) = self.asked_of(berth) {
                called.push((by, model, limit, weight));
            }
        }
        let (pool, wait, asked) = (self.pool, self.lineup.wait(), self.asked);
        // What needs a worker is begun before what holds this thread: the champion, which is to wait for no voter, then
        // those with little time.
        called.sort_by_cached_key(|(by, model, limit, _)| {
            (is_inline(expected_us(model, asked), *limit), *by != AnsweredBy::Champion, limit.is_none())
        });
        let mut runs = Vec::new();
        for (by, model, limit, weight) in called {
            runs.push(async move { (by, model, weight, run(pool, wait, model, limit, asked).await) });
        }
        let mut ran = join_all(runs).await;
        let order = |model: &Arc<Serving>| self.lineup.members().position(|(_, m)| Arc::ptr_eq(m, model));
        ran.sort_unstable_by_key(|(_, model, _, _)| order(model));
        let mut replies = Vec::new();
        for (by, model, weight, ran) in ran {
            replies.extend(self.take(by, model, weight, ran, asked)?);
        }
        Ok(replies)
    }

    async fn voted(&mut self, ballot: Ballot) -> Result<Option<Answer>, InferError> {
        let mut replies = self.voices().await?;
        // Scores that do not add up with the first's are not heard.
        let width = replies.first().map_or(0, |first| first.made.scores.len());
        replies.retain(|reply| {
            let heard = reply.made.scores.len() == width;
            if !heard {
                self.left_out.push((reply.model.release().clone(), Absence::Failed));
            }
            heard
        });
        // One voice is no vote: its answer stays whole.
        if replies.len() < 2 {
            return Ok(replies.pop().map(|reply| self.one(reply)));
        }
        let voices: Vec<Voice<'_>> =
            replies.iter().map(|r| Voice { scores: &r.made.scores, weight: r.weight }).collect();
        let scores = vote(ballot, &voices, self.asked.rows);
        Ok(self.several(AnsweredBy::Vote, replies, |like| of_floats(&like.name, &like.shape, &scores)))
    }

    /// The meta-model's answer; without all that it was trained to hear, the champion's, or that of who came next.
    async fn stacked(&mut self) -> Result<Option<Answer>, InferError> {
        let replies = self.voices().await?;
        let heard = 1 + self.lineup.slot.of(MemberRole::Voter).count();
        let Some(meta) = self.lineup.slot.of(MemberRole::Meta).next().filter(|_| replies.len() == heard)
        else {
            return Ok(replies.into_iter().next().map(|reply| self.one(reply)));
        };
        let rows = self.asked.rows;
        let scores: Vec<&[f32]> = replies.iter().map(|reply| reply.made.scores.as_slice()).collect();
        let x = side_by_side(&scores, rows);
        let takes = meta.berth.model().and_then(|model| model.resident.model.inputs().first());
        let name = takes.map_or("x", |input| input.name.as_str());
        let inputs = vec![of_floats(name, &[rows as u64, (x.len() / rows.max(1)) as u64], &x)];
        let asked = Asked { id: self.asked.id.clone(), inputs, rows, x: Vec::new(), now: self.asked.now };
        match self.ask(AnsweredBy::Stack, &meta.berth, meta.limit, &Arc::new(asked)).await? {
            Some(last) => {
                let output = last.made.outputs.last().cloned();
                let release = Some(last.model.release().clone());
                let answer = self.several(AnsweredBy::Stack, replies, |like| {
                    output.map_or_else(
                        || like.clone(),
                        |output| TensorData { name: like.name.clone(), ..output },
                    )
                });
                Ok(answer.map(|answer| Answer { release, ..answer }))
            }
            None => Ok(replies.into_iter().next().map(|reply| self.one(reply))),
        }
    }

    /// The answer of one member.
    fn one(&mut self, reply: Reply) -> Answer {
        // A single voter speaks in the champion's place.
        let by = if reply.by == AnsweredBy::Vote { AnsweredBy::Fallback } else { reply.by };
        Answer {
            by,
            release: Some(reply.model.release().clone()),
            generation: self.lineup.slot.generation,
            voters: Vec::new(),
            left_out: std::mem::take(&mut self.left_out),
            rows: self.asked.rows as u64,
            parts: std::mem::take(&mut self.parts),
            outputs: reply.made.outputs,
        }
    }

    /// The answer of several, whose last output `make` gives after the first's own.
    fn several(
        &mut self,
        by: AnsweredBy,
        replies: Vec<Reply>,
        make: impl FnOnce(&TensorData) -> TensorData,
    ) -> Option<Answer> {
        let like = replies.first()?.made.outputs.last()?;
        let voters: Vec<_> = replies.iter().map(|reply| reply.model.release().clone()).collect();
        Some(Answer {
            outputs: vec![make(like)],
            by,
            release: voters.first().cloned(),
            generation: self.lineup.slot.generation,
            voters,
            left_out: std::mem::take(&mut self.left_out),
            rows: self.asked.rows as u64,
            parts: std::mem::take(&mut self.parts),
        })
    }
}
