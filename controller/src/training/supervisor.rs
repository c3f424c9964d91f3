//! Weighs triggers, gives workers to runs, and sees to what operators want.
use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_pipeline::{Cause, Event, Outcome, RunState, Verdict, consider};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::drive::drive;
use super::{RunRow, TrainingError, WAITING, Wanted, enqueue, facts};
use crate::api::AppState;
use crate::clock;
use crate::planner::TaskRow;
use crate::serve::Shutdown;
use crate::store::StoreError;

/// Orders that wait for one run; an operator gives one at a time.
const ORDERS_MAX: usize = 8;

/// A run at work.
#[derive(Debug)]
struct AtWork {
    owner: String,
    orders: mpsc::Sender<Event>,
    task: JoinHandle<Result<RunState, TrainingError>>,
}

#[derive(Debug)]
struct Supervisor {
    state: AppState,
    at_work: BTreeMap<String, AtWork>,
}

/// Runs until shutdown: a look each tick and whenever something wakes the supervisor.
pub async fn run(state: AppState, mut shutdown: Shutdown) {
    let every = Duration::from_millis(state.config.training.tick_ms.max(1));
    let mut supervisor = Supervisor { state: state.clone(), at_work: BTreeMap::new() };
    while !shutdown.is_requested() {
        if let Err(error) = supervisor.look().await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the training supervisor's look failed"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = state.wake.training.notified() => {}
            () = shutdown.requested() => {}
        }
    }
    // Workers end with their tasks; the journals know where to go on.
    for at_work in supervisor.at_work.into_values() {
        at_work.task.abort();
        drop(at_work.task.await);
    }
}

impl Supervisor {
    async fn look(&mut self) -> Result<(), TrainingError> {
        self.reap().await?;
        for run in self.state.store.runs_open().await? {
            if !self.at_work.contains_key(&run.id) {
                tracing::info!(run = run.id, "a run is taken up from its journal");
                self.begin(run, None);
            }
        }
        self.see_to_orders().await?;
        for task in self.state.store.tasks().await? {
            // One task's trouble is not the others'; the next look tries again.
            if let Err(error) = self.weigh(&task).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    task = %task.definition.task,
                    "the triggers of a task were not weighed"
                );
            }
        }
        self.dispatch().await
    }

    fn begin(&mut self, run: RunRow, first: Option<Event>) {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        if let Some(event) = first {
            orders.try_send(event).expect("a new channel has room");
        }
        let (id, owner, wake) = (run.id.clone(), run.owner.clone(), self.state.wake.training.clone());
        let driving = drive(self.state.clone(), run, receiver);
        let task = tokio::spawn(async move {
            let ended = driving.await;
            wake.notify_one();
            ended
        });
        self.at_work.insert(id, AtWork { owner, orders, task });
    }

    /// Notes the end of runs that ended.
    async fn reap(&mut self) -> Result<(), TrainingError> {
        let ended: Vec<String> = self
            .at_work
            .iter()
            .filter(|(_, at_work)| at_work.task.is_finished())
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            let Some(at_work) = self.at_work.remove(&id) else { continue };
            let now_ms = clock::wall_ms();
            match at_work.task.await {
                Ok(Ok(end)) => {
                    tracing::info!(run = id, state = end.name(), "a run ended");
                    self.state.store.run_facts(&id, &serde_json::json!({ "end": end })).await?;
                    self.state.store.run_state(&id, end.name(), now_ms, true).await?;
                }
                // What is damaged does not heal by trying: whoever repairs the row restarts the run.
                Ok(Err(TrainingError::Store(error @ StoreError::Corrupt { .. }))) => {
                    tracing::error!(run = id, %error, "a run can not go on");
                    self.fail(&id, &error.to_string(), now_ms).await?;
                }
                // The database failed it, not the run: this look takes it up again from its journal.
                Ok(Err(error)) => tracing::error!(
                    run = id,
                    error = &error as &dyn std::error::Error,
                    "a run is taken up again"
                ),
                Err(error) => {
                    tracing::error!(run = id, %error, "a run's task broke off");
                    self.fail(&id, &error.to_string(), now_ms).await?;
                }
            }
        }
        Ok(())
    }

    async fn fail(&self, id: &str, why: &str, now_ms: u64) -> Result<(), TrainingError> {
        // Its state first: facts that are damaged take no others.
        self.state.store.run_state(id, "failed", now_ms, true).await?;
        Ok(self.state.store.run_facts(id, &serde_json::json!({ "end": why })).await?)
    }

    async fn see_to_orders(&mut self) -> Result<(), TrainingError> {
        for (id, state, wanted) in self.state.store.runs_wanted().await? {
            let event = match &wanted {
                Wanted::Cancel { by } => Event::Cancelled { by: by.clone() },
                Wanted::Restart { by } => Event::RestartOrdered { by: by.clone() },
            };
            match (self.at_work.get(&id), &wanted) {
                (Some(at_work), _) => {
                    if at_work.orders.try_send(event).is_err() {
                        continue;
                    }
                }
                (None, Wanted::Cancel { .. }) => {
                    // One that has just left the queue is at work at the next look.
                    if !self.state.store.run_unqueue(&id, clock::wall_ms()).await? && state == WAITING {
                        continue;
                    }
                }
                (None, Wanted::Restart { .. }) if state == "failed" => {
                    self.state
                        .store
                        .run_state(&id, RunState::Running.name(), clock::wall_ms(), false)
                        .await?;
                    let run = self.state.store.run(&id).await?;
                    self.begin(run, Some(event));
                }
                (None, Wanted::Restart { .. }) => {}
            }
            self.state.store.run_seen_to(&id).await?;
        }
        Ok(())
    }

    /// Weighs the triggers of a task and queues a run if one fired and nothing holds it.
    async fn weigh(&mut self, task: &TaskRow) -> Result<(), TrainingError> {
        let now_ms = clock::wall_ms();
        if task.schedule_ms > now_ms {
            self.state.store.task_schedule_from(&task.definition.task, now_ms).await?;
        }
        // Looked at even where it is no trigger, and where nothing is ever retrained: the alerts come of it.
        let drift = facts::drift(&self.state, task, now_ms).await?;
        let Some(retraining) = &task.definition.retraining else { return Ok(()) };
        let mut facts = facts::of_runs(&self.state, task, now_ms).await?;
        facts.drift = drift;
        if facts.pending.is_none() {
            // Models on their way are judged by their rollout before others are made.
            let rollouts = self.state.store.rollouts_read().await?;
            let id = &task.definition.task;
            let under_way = rollouts
                .rows
                .iter()
                .find(|rollout| rollout.plan.task == *id && !rollout.plan.state.is_final());
            // One that can not be read may be under way.
            let unread = || rollouts.damaged.iter().find(|(_, task)| *task == id.as_str());
            facts.pending = under_way
                .map(|rollout| rollout.plan.rollout.clone())
                .or_else(|| unread().map(|(rollout, _)| rollout.clone()));
        }
        let decision = consider(&retraining.triggers, &facts, None, Some(now_ms));
        let mut fired_ms = None;
        if let Verdict::Start(cause) = &decision.verdict {
            match enqueue(&self.state, task, cause.clone(), None, "trainer").await {
                Ok(run) => {
                    tracing::info!(run, task = %task.definition.task, ?cause, "a retraining run was queued");
                    let due = |row: &dunlin_pipeline::Row| {
                        matches!(row.outcome, Outcome::Fired(Cause::Cron { .. }))
                    };
                    fired_ms = decision.rows.iter().any(due).then_some(now_ms);
                }
                Err(TrainingError::Refused(reason)) => {
                    tracing::warn!(reason, "a retraining run was not queued")
                }
                Err(error) => return Err(error),
            }
        }
        if fired_ms.is_some() || task.triggers.as_ref() != Some(&decision) {
            self.state.store.task_weighed(&task.definition.task, &decision, fired_ms).await?;
        }
        Ok(())
    }

    /// Gives free workers to those whose turn it is.
    async fn dispatch(&mut self) -> Result<(), TrainingError> {
        loop {
            let mut running: BTreeMap<String, usize> = BTreeMap::new();
            self.at_work.values().for_each(|at_work| *running.entry(at_work.owner.clone()).or_default() += 1);
            let workers = self.state.config.training.workers_max;
            let Some(run) = self.state.store.run_next(&running, workers, clock::wall_ms()).await? else {
                return Ok(());
            };
            self.begin(run, None);
        }
    }
}
