//! How requests are answered, and what is counted of each.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dunlin_protocol::{ReasonCode, ReleaseId};

use super::super::answer::{Answer, AnsweredBy, InferError, Part};
use super::super::asked::{Asked, run};
use super::super::baseline;
use super::super::lineup::LineUp;
use super::super::live::{Answered, Key, Noted, Principal};
use super::super::pool::Pool;
use super::super::resident::{Failure, Fault, Made, Serving, Unable};
use super::super::tally::Spent;
use super::super::turn::Turn;
use super::Task;

impl Task {
    /// Answers a request: by the member it names, else as the rule of the line-up says. Without `pool` all is done on
    /// this thread.
    pub(in crate::serve) async fn answer(
        self: &Arc<Self>,
        pool: Option<&Pool>,
        version: Option<&ReleaseId>,
        asked: Asked,
    ) -> Result<Answer, InferError> {
        let lineup = self.lineup();
        if !lineup.unloaded.is_empty() {
            return Err(InferError::Unloaded(self.task.clone()));
        }
        let asked = Arc::new(asked);
        if let Some(version) = version.filter(|v| lineup.champion().is_none_or(|c| c.release() != *v)) {
            return self.named(&lineup, pool, version, &asked).await;
        }
        let degraded = self.degraded.load(Ordering::Relaxed);
        let mut turn = Turn::new(self, &lineup, pool, &asked);
        let answer = match version {
            Some(_) => turn.by_champion().await?,
            None => turn.by_rule(degraded).await?,
        };
        if turn.doubtful {
            self.go_judge(pool, &lineup, &asked).await;
        }
        if let Some(answer) = answer {
            self.count(answer.by);
            if let Some(principal) = turn.principal.take() {
                self.go_beside(pool, &lineup, principal, &asked, degraded).await;
            }
            return Ok(answer);
        }
        // A constant in place of a model that is only busy would be a worse answer than to ask again.
        if !turn.refused.is_empty() {
            return Err(InferError::Overloaded);
        }
        match version {
            // Who names a version wants that one or none.
            Some(_) => {
                let quarantined = || Failure::of_model("it has failed too often and is not asked");
                Err(self.refusal(turn.failed.unwrap_or_else(quarantined)))
            }
            None => match (self.constant(&lineup, &asked), turn.failed) {
                (Ok(answer), _) => Ok(Answer { left_out: turn.left_out, ..answer }),
                // That nothing is ready would be said of a line-up that is.
                (Err(InferError::NotReady(_)), Some(failure)) if failure.fault == Fault::Request => {
                    Err(self.refusal(failure))
                }
                (Err(error), _) => Err(error),
            },
        }
    }

    /// Notes what a member of the line-up answered, in comparison with `principal`; of the first one gives back what
    /// others are compared with. The champion is who `leads`. It is counted when the caller has its answer.
    pub(in crate::serve) fn answered(
        &self,
        leads: bool,
        key: Key,
        model: &Arc<Serving>,
        made: &Made,
        principal: Option<Principal>,
        asked: &Arc<Asked>,
    ) -> Option<Principal> {
        model.strikes.answered();
        let done = Answered::new(key, model, made, asked);
        let first = principal.is_none().then(|| done.principal());
        self.note(Noted { done, leads, principal });
        first
    }

    /// Counts a failure in a member's window.
    pub(in crate::serve) fn missed(
        &self,
        leads: bool,
        key: &Key,
        model: &Serving,
        asked: &Asked,
        failure: &Failure,
    ) {
        let mut live = self.live();
        live.failed(key, model, asked);
        if leads && failure.fault == Fault::Model && live.watch.is_of(key.generation) {
            live.watch.failed(asked.rows as u64);
        }
    }

    /// Counts a failure of a member, whoever asked it, and takes it out if it is one too many.
    pub(in crate::serve) fn failed(&self, model: &Serving, asked: &Asked, failure: &Failure, spent_ns: u64) {
        let Failure { detail, fault } = failure;
        self.failed.fetch_add(1, Ordering::Relaxed);
        model.tally().failed(spent_ns);
        let mut live = self.live();
        live.tell(model.release(), ReasonCode::ModelFailed, detail, asked.now);
        if *fault == Fault::Model && model.strikes.strike(detail) {
            let detail = format!("failed too often, at last: {detail}");
            tracing::error!(task = %self.task, release = %model.release(), detail, "a member is taken out");
            live.tell(model.release(), ReasonCode::Quarantined, &detail, asked.now);
            live.fallen.push((model.release().clone(), detail));
            self.fallen.store(true, Ordering::Relaxed);
        }
    }

    fn constant(&self, lineup: &LineUp, asked: &Asked) -> Result<Answer, InferError> {
        let rows = asked.rows;
        let not_ready = || InferError::NotReady(self.task.clone());
        if rows == 0 || rows > dunlin_engine::ROWS_MAX {
            return Err(InferError::Input(format!(
                "{rows} rows; from 1 to {} are answered at once",
                dunlin_engine::ROWS_MAX
            )));
        }
        let policy = lineup.policy.as_deref().ok_or_else(not_ready)?;
        let name = lineup.output.as_deref().unwrap_or("scores");
        let classes = baseline::classes(policy, rows, &asked.x).ok_or_else(not_ready)?;
        let outputs = baseline::answer(policy, name, &classes);
        self.live().constant(&lineup.key(None), &classes, policy.labels.len(), asked.now);
        self.count(AnsweredBy::Baseline);
        Ok(Answer {
            outputs,
            by: AnsweredBy::Baseline,
            release: None,
            generation: lineup.slot.generation,
            voters: Vec::new(),
            left_out: Vec::new(),
            rows: rows as u64,
            parts: Vec::new(),
        })
    }

    /// One member answers for itself: nothing is counted in windows, so that they tell of the line-up's traffic.
    async fn named(
        &self,
        lineup: &LineUp,
        pool: Option<&Pool>,
        version: &ReleaseId,
        asked: &Arc<Asked>,
    ) -> Result<Answer, InferError> {
        let unknown = || InferError::UnknownVersion { task: self.task.clone(), version: version.to_string() };
        let failed = |detail| self.refusal(Failure::of_model(detail));
        if let Some(why) =
            lineup.slot.dismissed().find_map(|(release, why)| (release == version).then_some(why))
        {
            return Err(failed(why));
        }
        let model = lineup.members().map(|(_, m)| m).find(|m| m.release() == version).ok_or_else(unknown)?;
        if let Some(out) = model.strikes.out() {
            return Err(failed(out));
        }
        let ran = run(pool, lineup.wait(), model, None, asked).await?;
        match ran.made {
            Ok(made) => {
                model.strikes.answered();
                self.count(AnsweredBy::Named);
                let (queue_ns, infer_ns) = (ran.queue_ns, made.latency_ns);
                Ok(Answer {
                    by: AnsweredBy::Named,
                    release: Some(version.clone()),
                    generation: lineup.slot.generation,
                    voters: Vec::new(),
                    left_out: Vec::new(),
                    rows: asked.rows as u64,
                    parts: vec![Part { release: version.clone(), queue_ns, infer_ns }],
                    outputs: made.outputs,
                })
            }
            Err(Unable::Input(problem)) => Err(InferError::Input(problem)),
            Err(Unable::Failed(failure)) => {
                if !ran.waited {
                    self.failed(model, asked, &failure, ran.spent_ns);
                }
                Err(self.refusal(failure))
            }
        }
    }

    /// What a request is told that a member failed on, and no other one answered.
    fn refusal(&self, failure: Failure) -> InferError {
        let Failure { detail, fault } = failure;
        match fault {
            Fault::Model => InferError::Failed { task: self.task.clone(), detail },
            Fault::Request => InferError::Input(format!("the model can not answer this: {detail}")),
        }
    }

    /// Counts where the time of an answered request went, with each member that answered.
    pub(in crate::serve) fn tally(
        &self,
        answer: &Answer,
        input_ns: u64,
        output_ns: u64,
        wall_ms: Option<u64>,
    ) {
        let lineup = self.lineup();
        for Part { release, queue_ns, infer_ns } in &answer.parts {
            // A member that was swapped out meanwhile has no counters any more.
            if let Some((_, model)) = lineup.members().find(|(_, m)| m.release() == release) {
                let spent = Spent { queue_ns: *queue_ns, input_ns, infer_ns: *infer_ns, output_ns };
                model.tally().answered(answer.rows, &spent, wall_ms);
            }
        }
    }

    fn count(&self, by: AnsweredBy) {
        self.answered[by as usize].fetch_add(1, Ordering::Relaxed);
    }
}
