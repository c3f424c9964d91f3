//! Resident models and the answers they give.
//!
//! Per task there is a line-up: the champion answers, or several models together as its rule says; if they fail the
//! fallbacks do; if those fail too, the constant baseline of the task's signed policy. A challenger answers a share of
//! the requests, a smaller member all of them while the device's context asks for it. In probation champion and
//! fallbacks of the previous line-up stay loaded. Changing a line-up is one pointer: a request sees the old one or the
//! new one, never a mixture.
//!
//! The previous champion and shadows answer the same inputs after the answer was given, for the record only. Each
//! release is counted in its own window by what it says itself, whatever became of it in an answer of several.
//!
//! Members that there is no room for leave memory and keep their place ([`pack`]); requests that wait for a worker may be
//! run together ([`gather`]).
//!
//! What is counted per window, remembered for late labels and sampled is bounded; nothing here waits for the network.

mod answer;
mod asked;
mod baseline;
mod beside;
mod budget;
mod choose;
mod combine;
mod context;
mod explain;
pub mod gather;
mod guard;
mod lineup;
mod live;
mod memory;
pub mod pack;
mod pool;
mod resident;
mod sampling;
mod strikes;
mod tally;
mod task;
mod turn;
mod view;

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod gone_tests;
#[cfg(test)]
mod lineup_tests;
#[cfg(test)]
pub(crate) mod onnx;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use dunlin_protocol::{
    Indicator, IntoTree, Now, ReleaseId, ResourceUse, Samples, TaskId, TaskPolicy, TensorData, Window,
};

pub use answer::{Absence, Answer, AnsweredBy, FeedbackError, InferError, Part};
pub use context::Reading;
pub use explain::{
    Budget, EXPLAIN_BUDGET, EXPLAIN_BUDGET_MAX, EXPLAIN_PERMUTATIONS, EXPLAINED_ROWS_MAX, EXPLAINING_MAX,
    Explained,
};
pub use guard::Guard;
pub use lineup::Crew;
pub use pool::{INLINE_US_MAX, Limits};
pub use resident::Resident;
pub use strikes::{ANSWERS_PER_STRIKE, STRIKES_MAX};
pub use tally::{Span, Tally};
pub use view::{Member, MemberRole, TaskView};

use asked::Asked;
use futures_util::FutureExt;
use pool::Pool;
use task::Task;
use tokio::sync::{Notify, Semaphore};

/// All tasks of this device.
#[derive(Debug)]
pub struct Serving {
    tasks: RwLock<BTreeMap<TaskId, Arc<Task>>>,
    /// Tasks that are no longer served, as long as something of them is to be reported.
    gone: Mutex<Vec<Arc<Task>>>,
    pool: Pool,
    settings: pack::Settings,
    /// Explanations that may still be begun.
    explaining: Arc<Semaphore>,
    /// Wakes who waits in [`Serving::fallen`].
    fell: Notify,
}

impl Serving {
    /// Nothing served yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Self::with(limits, pack::Settings::default())
    }

    /// The same, with what the settings say of budgets and tasks.
    pub fn with(limits: Limits, settings: pack::Settings) -> Arc<Self> {
        let gather = |(task, of): (&TaskId, &pack::TaskSettings)| Some((task.clone(), of.gather?));
        let gather: BTreeMap<_, _> = settings.tasks.iter().filter_map(gather).into_tree();
        // One batch is filled while another one runs.
        let together = gather.values().map(|of| 2 * of.rows_max).max().unwrap_or(0);
        let pool = Pool::new(Limits { waiting_max: limits.waiting_max.max(together), ..limits }, gather);
        Arc::new(Self {
            tasks: RwLock::default(),
            gone: Mutex::default(),
            pool,
            settings,
            explaining: Arc::new(Semaphore::new(EXPLAINING_MAX)),
            fell: Notify::new(),
        })
    }

    /// Sets a task's signed policy: its baseline answer and whether samples may leave the device.
    pub fn set_policy(&self, policy: &TaskPolicy) {
        self.task_or_new(&policy.task).set_policy(policy);
    }

    /// Changes what a task runs. With `probation` the champion so far stays loaded and is run on the same inputs.
    pub fn switch(
        &self,
        task: &TaskId,
        champion: Resident,
        fallback: Option<Resident>,
        generation: u64,
        probation: bool,
    ) {
        self.line_up(task, Crew::new(champion, fallback), generation, probation);
    }

    /// The same with all that a line-up may have. With `probation` its champion and fallbacks so far stay loaded.
    pub fn line_up(&self, task: &TaskId, crew: Crew, generation: u64, probation: bool) {
        self.task_or_new(task).switch(crew, generation, probation);
    }

    /// Whether any task has context rules or a shadow, which go by readings.
    pub fn wants_reading(&self) -> bool {
        self.all().iter().any(|task| task.wants_reading())
    }

    /// Takes a reading of the device, by which the context rules of every task and the budgets of shadows are judged.
    pub fn surrounded(&self, reading: Reading, now: Now) {
        self.all().iter().for_each(|task| task.surrounded(reading, now));
    }

    /// Ends a task's probation in favour of the champion; the previous one is unloaded.
    pub fn commit(&self, task: &TaskId) {
        if let Some(task) = self.task(task) {
            task.commit();
        }
    }

    /// The models in memory, for line-ups that share them; those that failed too often are left out.
    pub fn residents(&self) -> Vec<Resident> {
        self.all().iter().flat_map(|task| task.residents()).collect()
    }

    /// Ends a task's probation in favour of the previous champion and its fallbacks; false if there is none.
    pub fn rollback(&self, task: &TaskId) -> bool {
        self.task(task).is_some_and(|task| task.rollback())
    }

    /// Goes on with a task's baseline alone: no release is to be served. What was counted of those before is still reported.
    pub fn vacate(&self, task: &TaskId) {
        if let Some(task) = self.task(task) {
            task.vacate();
        }
    }

    /// Stops serving a task. What was counted of it is still reported.
    pub fn remove(&self, task: &TaskId) {
        let removed = self.tasks.write().unwrap_or_else(PoisonError::into_inner).remove(task);
        if let Some(task) = removed {
            task.vacate();
            self.gone().push(task);
        }
    }

    /// How the champion has done since it was switched to.
    pub fn guard(&self, task: &TaskId) -> Option<Guard> {
        self.task(task).and_then(|task| task.guard())
    }

    /// Answers a request on this thread. `id` keys late labels; rows of a batch have the ids `{id}.{row}`.
    ///
    /// # Errors
    /// [`InferError::Input`] is the caller's fault. That a model failed is no error as long as anything in the
    /// line-up answers.
    pub fn infer(
        &self,
        task: &TaskId,
        id: &str,
        inputs: &[TensorData],
        now: Now,
    ) -> Result<Answer, InferError> {
        let task = self.task(task).ok_or_else(|| InferError::UnknownTask(task.clone()))?;
        let asked = Asked::new(id.to_owned(), inputs.to_vec(), now);
        let answer = task.answer(None, None, asked).now_or_never();
        let answer = answer.expect("without a pool nothing is waited for");
        self.look(&task, &answer);
        answer
    }

    /// Answers a request without holding up other work on this thread: what is expected to take less than
    /// [`INLINE_US_MAX`] is answered at once, all else by one of a bounded number of workers, each member within
    /// [`Limits::run_max`]. With `version` the named member of the line-up answers, and it alone.
    ///
    /// # Errors
    /// As [`Serving::infer`]; [`InferError::Overloaded`] if too many requests wait.
    pub async fn answer(
        &self,
        task: &TaskId,
        version: Option<ReleaseId>,
        id: String,
        inputs: Vec<TensorData>,
        now: Now,
    ) -> Result<Answer, InferError> {
        let task = self.task(task).ok_or_else(|| InferError::UnknownTask(task.clone()))?;
        let asked = Asked::new(id, inputs, now);
        let answer = task.answer(Some(&self.pool), version.as_ref(), asked).await;
        self.look(&task, &answer);
        answer
    }

    /// Counts the answers that were noted since somebody last looked at what was counted. Whoever looks does that
    /// himself; who has given an answer does it in his own time.
    pub fn settle(&self) {
        self.tasks.read().unwrap_or_else(PoisonError::into_inner).values().for_each(|task| task.settle());
    }

    /// How many answers wait to be counted.
    #[cfg(test)]
    pub(crate) fn noted(&self, task: &TaskId) -> usize {
        self.task(task).map_or(0, |task| task.noted())
    }

    /// Counts what was answered, and looks whether the request took a member out.
    fn look(&self, task: &Task, answer: &Result<Answer, InferError>) {
        if let Ok(answer) = answer {
            task.count_rows(answer.rows);
        }
        if task.has_fallen() {
            self.fell.notify_one();
        }
    }

    /// Waits until members were taken out because they failed too often, and says which and why. Requests are answered by
    /// the rest of their line-ups meanwhile.
    pub async fn fallen(&self) -> Vec<(TaskId, ReleaseId, String)> {
        loop {
            let fallen: Vec<_> = self.all().iter().flat_map(|task| task.fallen()).collect();
            if !fallen.is_empty() {
                return fallen;
            }
            self.fell.notified().await;
        }
    }

    /// Takes the members that `keep` refuses, and those that can not be without them, out of a task's line-up and out of
    /// memory; the rest goes on as it is. A line-up that has them again loads them anew.
    pub fn trim(&self, task: &TaskId, keep: impl Fn(&ReleaseId) -> bool) {
        if let Some(task) = self.task(task) {
            task.trim(keep);
        }
    }

    /// Counts where the time of an answered request went, with each member that answered: reading it took `input_ns` and
    /// writing the answer `output_ns`, nanoseconds.
    pub fn tally(&self, task: &TaskId, answer: &Answer, input_ns: u64, output_ns: u64, wall_ms: Option<u64>) {
        if let Some(task) = self.task(task) {
            task.tally(answer, input_ns, output_ns, wall_ms);
        }
    }

    /// Takes a task's models out of memory; its requests are refused until [`Serving::switch`].
    pub fn unload(&self, task: &TaskId) {
        if let Some(task) = self.task(task) {
            task.unload();
        }
    }

    /// Takes a late label for the request `id`. A label is taken once.
    ///
    /// # Errors
    /// If the task or the request is unknown, or the class is.
    pub fn feedback(&self, task: &TaskId, id: &str, label: u32, now: Now) -> Result<(), FeedbackError> {
        self.task(task).ok_or_else(|| FeedbackError::UnknownTask(task.clone()))?.feedback(id, label, now)
    }

    /// Index of a class by name, as the champion or else the policy of the task names them.
    pub fn class_index(&self, task: &TaskId, name: &str) -> Option<u32> {
        self.task(task)?.class_index(name)
    }

    /// Closes all windows in which anything was counted.
    pub fn close_windows(&self, now: Now, resources: &ResourceUse) -> Vec<Window> {
        let mut closed: Vec<_> =
            self.all().iter().flat_map(|task| task.close_windows(now, resources)).collect();
        // Until nothing more is counted: a request may have begun before its task was removed.
        self.gone().retain(|task| {
            let last = task.close_windows(now, resources);
            let counted = !last.is_empty();
            closed.extend(last);
            counted
        });
        closed
    }

    /// Takes the samples drawn so far.
    pub fn take_samples(&self) -> Vec<Samples> {
        self.all_and_gone().iter().flat_map(|task| task.take_samples()).collect()
    }

    /// Takes the failures counted so far, one entry a task and release.
    pub fn take_indicators(&self) -> Vec<Indicator> {
        self.all_and_gone().iter().flat_map(|task| task.take_indicators()).collect()
    }

    /// What is served, task by task.
    pub fn view(&self) -> Vec<TaskView> {
        self.all().iter().map(|task| task.view()).collect()
    }

    /// What one task serves.
    pub fn view_of(&self, task: &TaskId) -> Option<TaskView> {
        self.task(task).map(|task| task.view())
    }

    fn task(&self, task: &TaskId) -> Option<Arc<Task>> {
        self.tasks.read().unwrap_or_else(PoisonError::into_inner).get(task).cloned()
    }

    fn task_or_new(&self, task: &TaskId) -> Arc<Task> {
        let mut tasks = self.tasks.write().unwrap_or_else(PoisonError::into_inner);
        tasks.entry(task.clone()).or_insert_with(|| Arc::new(Task::new(task.clone()))).clone()
    }

    fn all(&self) -> Vec<Arc<Task>> {
        self.tasks.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn gone(&self) -> MutexGuard<'_, Vec<Arc<Task>>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_and_gone(&self) -> Vec<Arc<Task>> {
        let mut all = self.all();
        all.extend_from_slice(&self.gone());
        all
    }
}
