//! How requests are answered, and what is counted of each.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dunlin_protocol::{ReasonCode, ReleaseId};

use super::super::answer::{Answer, AnsweredBy, InferError};
use super::super::asked::{Asked, run};
use super::super::baseline;
use super::super::lineup::LineUp;
use super::super::live::{Answered, Key, Noted, Principal};
use super::super::pool::Pool;
use super::super::resident::{Made, Serving, Unable};
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
            Some(_) => Err(InferError::Failed {
                task: self.task.clone(),
                detail: turn.failed.unwrap_or_else(|| "it has failed too often and is not asked".into()),
            }),
            None => {
                let left_out = turn.left_out;
                Ok(Answer { left_out, ..self.constant(&lineup, &asked)? })
            }
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

    /// Counts a failure of a member, and takes it out if it is one too many.
    pub(in crate::serve) fn failed(
        &self,
        leads: bool,
        key: &Key,
        model: &Serving,
        asked: &Asked,
        detail: &str,
        spent_ns: u64,
    ) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        model.tally().failed(spent_ns);
        let mut live = self.live();
        if leads {
            live.watch.failed(asked.rows as u64);
        }
        live.failed(key, model, asked.rows, &asked.x, detail, asked.now);
        // What is not a number goes in and comes out: that is no fault of the model.
        if asked.x.iter().all(|x| x.is_finite()) && model.strikes.strike(detail) {
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
        let name = lineup
            .champion()
            .and_then(|c| c.resident.model.outputs().last())
            .map_or("scores", |o| o.name.as_str());
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
            queue_ns: 0,
            infer_ns: 0,
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
        let failed = |detail| InferError::Failed { task: self.task.clone(), detail };
        if let Some(why) =
            lineup.slot.dismissed().find_map(|(release, why)| (release == version).then_some(why))
        {
            return Err(failed(why.to_owned()));
        }
        let model = lineup.members().map(|(_, m)| m).find(|m| m.release() == version).ok_or_else(unknown)?;
        if let Some(out) = model.strikes.out() {
            return Err(failed(out.to_owned()));
        }
        let ran = run(pool, lineup.wait(), model, None, asked).await?;
        match ran.made {
            Ok(made) => {
                self.count(AnsweredBy::Named);
                Ok(Answer {
                    by: AnsweredBy::Named,
                    release: Some(version.clone()),
                    generation: lineup.slot.generation,
                    voters: Vec::new(),
                    left_out: Vec::new(),
                    rows: asked.rows as u64,
                    queue_ns: ran.queue_ns,
                    infer_ns: made.latency_ns,
                    outputs: made.outputs,
                })
            }
            Err(Unable::Input(problem)) => Err(InferError::Input(problem)),
            Err(Unable::Failed(detail)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                model.tally().failed(ran.spent_ns);
                Err(failed(detail))
            }
        }
    }

    /// Counts where the time of an answered request went.
    pub(in crate::serve) fn tally(
        &self,
        release: &ReleaseId,
        rows: u64,
        spent: &Spent,
        wall_ms: Option<u64>,
    ) {
        let lineup = self.lineup();
        // A member that was swapped out meanwhile has no counters any more.
        if let Some((_, model)) = lineup.members().find(|(_, m)| m.release() == release) {
            model.tally().answered(rows, spent, wall_ms);
        }
    }

    fn count(&self, by: AnsweredBy) {
        self.answered[by as usize].fetch_add(1, Ordering::Relaxed);
    }
}
