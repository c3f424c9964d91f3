//! Explaining a prediction: who is asked, against what, and for how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dunlin_engine::{Effort, Explanation, argmax, floats};
use dunlin_protocol::{ReleaseId, TaskId, TaskType, TensorData};

use super::pool::{Wait, Worked};
use super::{InferError, Serving, resident};

/// Rows explained in one request: each takes hundreds of runs of the model.
pub const EXPLAINED_ROWS_MAX: usize = 16;
/// Budget of a request that names none.
pub const EXPLAIN_BUDGET: Duration = Duration::from_millis(500);
/// Largest budget: what is still within the default time limit of a run, so that the answer comes before the cut.
pub const EXPLAIN_BUDGET_MAX: Duration = Duration::from_millis(4_000);
/// Orders of the features that are walked if a request names no number.
pub const EXPLAIN_PERMUTATIONS: usize = 16;
/// Requests for explanations worked on at one time: further ones are refused, so that predictions find a worker.
pub const EXPLAINING_MAX: usize = 1;

/// What an explanation may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Time for all rows together, from when a worker begins.
    pub time: Duration,
    /// What may be done for each row.
    pub effort: Effort,
}

/// Explained rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// The release that was asked.
    pub release: ReleaseId,
    /// Generation of the assignment in force.
    pub generation: u64,
    /// Names of the features, in the order of the contributions.
    pub features: Vec<String>,
    /// Names of the output columns: classes, or places in the last output.
    pub columns: Vec<String>,
    /// Whether the columns are classes, of which one is predicted.
    pub classes: bool,
    /// One a row.
    pub rows: Vec<Explanation>,
}

impl Explained {
    /// The predicted class of a row, if there are classes.
    pub fn predicted(&self, row: &Explanation) -> Option<usize> {
        let scores: Vec<f32> = row.value.iter().map(|y| *y as f32).collect();
        argmax(&scores).map(|class| class as usize).filter(|_| self.classes)
    }
}

impl Serving {
    /// Explains the prediction of a task's member, the first that is asked if no version is named, for each row of its
    /// one input. Nothing is counted of it.
    ///
    /// # Errors
    /// As [`Serving::answer`]; [`InferError::Input`] also where the model takes no table, and
    /// [`InferError::Overloaded`] if another explanation is being worked on.
    pub async fn explain(
        &self,
        task: &TaskId,
        version: Option<&ReleaseId>,
        inputs: Vec<TensorData>,
        budget: Budget,
    ) -> Result<Explained, InferError> {
        let found = self.task(task).ok_or_else(|| InferError::UnknownTask(task.clone()))?;
        let (member, generation) = found.asked(version)?;
        let model = Arc::clone(&member.resident.model);
        let columns = model.columns().map_err(|e| InferError::Input(e.to_string()))?;
        let x = rows(&member, &inputs, columns)?;
        let one = Arc::clone(&self.explaining).try_acquire_owned().map_err(|_| InferError::Overloaded)?;
        let background = Arc::clone(&member.resident.background);
        let work = move || {
            // Of the work, not of the caller, who may go away before it is done.
            let _one = one;
            let from = Instant::now();
            let count = u32::try_from(x.len() / columns).unwrap_or(u32::MAX);
            let row = |(row, done): (&[f32], u32)| {
                // Each row has its share, and what the ones before it left.
                let share = budget.time * done / count;
                model.explain(row, &background, &budget.effort, &mut || from.elapsed() < share)
            };
            x.chunks_exact(columns).zip(1..).map(row).collect::<Result<Vec<_>, _>>()
        };
        let failed = |detail: String| InferError::Failed { task: task.clone(), detail };
        // However short it is expected to be, it does not hold up the connections of others.
        let rows = match self.pool.run(Wait::Alone, u64::MAX, None, work).await {
            Worked::Done(Ok(rows), _) => rows,
            Worked::Done(Err(error), _) if error.is_input() => {
                return Err(InferError::Input(error.to_string()));
            }
            Worked::Done(Err(error), _) => return Err(failed(error.to_string())),
            Worked::Late(limit) => {
                return Err(failed(format!("no explanation within {} ms", limit.as_millis())));
            }
            Worked::Waited | Worked::Refused => return Err(InferError::Overloaded),
        };
        let width = rows.first().map_or(0, |row| row.value.len());
        let signature = &member.resident.bundle.signature;
        let classification = member.resident.bundle.task_type == TaskType::Classification;
        let output = member.resident.model.outputs().last().map_or("", |spec| spec.name.as_str());
        Ok(Explained {
            release: member.release().clone(),
            generation,
            features: names(
                signature.features.iter().map(|feature| feature.name.clone()).collect(),
                &inputs[0].name,
                columns,
            ),
            columns: names(signature.labels.clone(), output, width),
            classes: classification && signature.labels.len() == width,
            rows,
        })
    }
}

/// The rows of the one input, checked as for a prediction.
fn rows(member: &resident::Serving, inputs: &[TensorData], columns: usize) -> Result<Vec<f32>, InferError> {
    let spec = &member.resident.model.inputs()[0];
    let wrong = |problem: String| Err(InferError::Input(format!("input {:?}: {problem}", spec.name)));
    let [input] = inputs else { return wrong(format!("{} inputs where one belongs", inputs.len())) };
    if input.name != spec.name || input.datatype != spec.datatype {
        let given = input.name.chars().take(100).collect::<String>();
        return wrong(format!("{given:?} of type {} is there instead", input.datatype.as_str()));
    }
    let x = floats(input).unwrap_or_default();
    let count = x.len() / columns;
    if input.shape != [count as u64, columns as u64] || x.len() != count * columns {
        return wrong(format!("its shape is {:?} where {:?} belongs", input.shape, spec.shape));
    }
    if !(1..=EXPLAINED_ROWS_MAX).contains(&count) {
        return wrong(format!("{count} rows; from 1 to {EXPLAINED_ROWS_MAX} are explained at once"));
    }
    Ok(x)
}

/// The given names if there is one for each of `n` places, else the tensor's name with the place.
fn names(given: Vec<String>, tensor: &str, n: usize) -> Vec<String> {
    match n {
        _ if given.len() == n => given,
        1 => vec![tensor.to_owned()],
        _ => (0..n).map(|i| format!("{tensor}[{i}]")).collect(),
    }
}
