//! The shell around one run's machine.
use std::sync::Arc;
use std::time::Duration;

use dunlin_pipeline::{Command, Event, Run, RunState, StepKind};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::steps::{Context, Outcome, StepError};
use super::{RunRow, TrainingError};
use crate::api::AppState;
use crate::clock;

type Ended = (StepKind, u32, Result<Outcome, StepError>);

/// Drives a run from where its journal ends to its end, or until shutdown drops it.
pub(super) async fn drive(
    state: AppState,
    run: RunRow,
    mut orders: mpsc::Receiver<Event>,
) -> Result<RunState, TrainingError> {
    let id = run.id.clone();
    let journal = state.store.journal(&id).await?;
    let mut machine = Run::restore(&journal, clock::now());
    let context = Arc::new(Context::new(state.clone(), run));
    let mut steps: JoinSet<Ended> = JoinSet::new();
    loop {
        // An order that came with the start is heard before the state is taken for the end.
        while let Ok(event) = orders.try_recv() {
            note_ignored(&id, machine.handle(event, clock::now()));
        }
        while let Some(command) = machine.poll_command() {
            match command {
                Command::Persist(entry) => state.store.journal_append(&id, &entry, clock::wall_ms()).await?,
                Command::Start { step, attempt } => {
                    let context = Arc::clone(&context);
                    let outputs: Vec<(StepKind, Option<String>)> = dunlin_pipeline::STEPS
                        .iter()
                        .map(|step| (step.kind, machine.output(step.kind).map(str::to_owned)))
                        .collect();
                    let output = move |step| {
                        outputs.iter().find(|(kind, _)| *kind == step).and_then(|(_, output)| output.clone())
                    };
                    tracing::info!(run = id, step = step.as_str(), attempt, "a step of a run starts");
                    steps.spawn(async move { (step, attempt, context.step(step, output).await) });
                }
                Command::Stop => steps.shutdown().await,
            }
        }
        if *machine.state() != RunState::Running {
            return Ok(machine.state().clone());
        }
        let due =
            machine.poll_timeout().map(|at| Duration::from_millis(at.saturating_sub(clock::now().mono_ms)));
        let event = tokio::select! {
            Some(ended) = steps.join_next(), if !steps.is_empty() => event_of(ended),
            Some(event) = orders.recv() => Some(event),
            () = tokio::time::sleep(due.unwrap_or(Duration::MAX)), if due.is_some() => Some(Event::TimePassed),
            // Nobody is left to report or to order anything.
            else => return Ok(machine.state().clone()),
        };
        if let Some(event) = event {
            note_ignored(&id, machine.handle(event, clock::now()));
        }
    }
}

fn event_of(ended: Result<Ended, tokio::task::JoinError>) -> Option<Event> {
    let (step, attempt, result) = match ended {
        Ok(ended) => ended,
        Err(error) if error.is_cancelled() => return None,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    Some(match result {
        Ok(Outcome::Done(output)) => Event::StepDone { step, attempt, output },
        Ok(Outcome::NoGain(output)) => Event::StepFoundNoGain { step, attempt, output },
        Err(StepError { text, fatal }) => {
            tracing::warn!(step = step.as_str(), attempt, error = text, "a step of a run failed");
            Event::StepFailed { step, attempt, error: text, fatal }
        }
    })
}

fn note_ignored(run: &str, handled: Result<(), dunlin_pipeline::Ignored>) {
    if let Err(ignored) = handled {
        tracing::debug!(run, %ignored, "an event of a run does not fit");
    }
}
