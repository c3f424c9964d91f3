use proptest::prelude::*;

use super::*;

fn at(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: None }
}

/// A shell that keeps the journal as told and drains commands before each event.
struct Shell {
    run: Run,
    journal: Vec<Entry>,
    started: Vec<(StepKind, u32)>,
    now: u64,
}

impl Shell {
    fn new(journal: Vec<Entry>) -> Self {
        let mut shell = Self { run: Run::restore(&journal, at(0)), journal, started: Vec::new(), now: 0 };
        shell.drain();
        shell
    }

    fn drain(&mut self) {
        while let Some(command) = self.run.poll_command() {
            match command {
                Command::Persist(entry) => self.journal.push(entry),
                Command::Start { step, attempt } => self.started.push((step, attempt)),
                Command::Stop => self.started.clear(),
            }
        }
    }

    fn event(&mut self, event: Event) -> Result<(), Ignored> {
        let result = self.run.handle(event, at(self.now));
        self.drain();
        result
    }

    fn wait(&mut self) {
        self.now = self.run.poll_timeout().expect("a step waits");
        self.event(Event::TimePassed).unwrap();
    }

    fn done(&mut self) {
        let (step, attempt) = *self.started.last().unwrap();
        self.event(Event::StepDone { step, attempt, output: step.as_str().into() }).unwrap();
    }

    fn failed(&mut self, fatal: bool) {
        let (step, attempt) = *self.started.last().unwrap();
        self.event(Event::StepFailed { step, attempt, error: "disk".into(), fatal }).unwrap();
    }
}

#[test]
fn steps_run_in_order_and_the_run_succeeds() {
    let mut shell = Shell::new(Vec::new());
    for _ in STEPS {
        assert_eq!(shell.run.state(), &RunState::Running);
        shell.done();
    }
    assert_eq!(shell.run.state(), &RunState::Succeeded);
    assert_eq!(shell.started, STEPS.iter().map(|step| (step.kind, 1)).collect::<Vec<_>>());
    assert_eq!(shell.run.output(StepKind::Pull), Some("pull"));
}

#[test]
fn a_failed_step_restarts_alone_after_its_wait() {
    let mut shell = Shell::new(Vec::new());
    shell.done();
    shell.done();
    shell.failed(false);
    assert_eq!(shell.started.last(), Some(&(StepKind::Search, 1)), "not at once");
    shell.wait();
    assert_eq!(shell.started.last(), Some(&(StepKind::Search, 2)));
    assert_eq!(shell.started.iter().filter(|(step, _)| *step == StepKind::Pull).count(), 1);
}

#[test]
fn tries_are_bounded_and_an_operator_gives_them_back() {
    let mut shell = Shell::new(Vec::new());
    shell.done();
    shell.done();
    for _ in 1..StepKind::Search.step().attempts_max {
        shell.failed(false);
        shell.wait();
    }
    shell.failed(false);
    assert!(matches!(shell.run.state(), RunState::Failed { step: StepKind::Search, .. }));
    assert_eq!(shell.run.poll_timeout(), None);
    shell.event(Event::RestartOrdered { by: "ann".into() }).unwrap();
    assert_eq!(shell.started.last(), Some(&(StepKind::Search, 1)), "that step alone");
}

#[test]
fn a_fatal_failure_ends_the_run_at_once() {
    let mut shell = Shell::new(Vec::new());
    shell.done();
    shell.failed(true);
    assert!(matches!(shell.run.state(), RunState::Failed { step: StepKind::Validate, .. }));
}

#[test]
fn no_gain_is_an_end_of_its_own() {
    let mut shell = Shell::new(Vec::new());
    for _ in 0..4 {
        shell.done();
    }
    shell
        .event(Event::StepFoundNoGain { step: StepKind::Compare, attempt: 1, output: "p .4".into() })
        .unwrap();
    assert_eq!(shell.run.state(), &RunState::NoGain { output: "p .4".into() });
    assert!(!shell.started.iter().any(|(step, _)| *step == StepKind::Register));
}

#[test]
fn what_does_not_fit_is_ignored_with_a_reason() {
    let mut shell = Shell::new(Vec::new());
    let stale = Event::StepDone { step: StepKind::Pull, attempt: 7, output: String::new() };
    assert_eq!(shell.event(stale), Err(Ignored::NotRunning));
    assert_eq!(shell.event(Event::RestartOrdered { by: "ann".into() }), Err(Ignored::NotFailed));
    shell.event(Event::Cancelled { by: "ann".into() }).unwrap();
    assert_eq!(shell.event(Event::Cancelled { by: "ann".into() }), Err(Ignored::Ended));
    let late = Event::StepDone { step: StepKind::Pull, attempt: 1, output: String::new() };
    assert_eq!(shell.event(late), Err(Ignored::Ended));
}

#[derive(Debug, Clone)]
enum Fate {
    Done,
    Failed(bool),
    NoGain,
    Cancelled,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![8 => Just(Fate::Done), 3 => Just(Fate::Failed(false)), 1 => Just(Fate::Failed(true)),
        1 => Just(Fate::NoGain), 1 => Just(Fate::Cancelled)]
}

proptest! {
    /// Cut after every durable line: the restored run orders next what the uncut one ordered next.
    #[test]
    fn replay_at_any_cut_reaches_the_same_next_command(fates in prop::collection::vec(fate(), 0..20)) {
        let mut run = Run::restore(&[], at(0));
        let mut trace = Vec::new();
        let mut now = 0;
        let mut last = None;
        let drain = |run: &mut Run, trace: &mut Vec<Command>, last: &mut Option<(StepKind, u32)>| {
            while let Some(command) = run.poll_command() {
                if let Command::Start { step, attempt } = command { *last = Some((step, attempt)); }
                trace.push(command);
            }
        };
        drain(&mut run, &mut trace, &mut last);
        for fate in fates {
            let (step, attempt) = last.unwrap();
            let event = match fate {
                Fate::Done => Event::StepDone { step, attempt, output: String::new() },
                Fate::Failed(fatal) => Event::StepFailed { step, attempt, error: String::new(), fatal },
                Fate::NoGain => Event::StepFoundNoGain { step, attempt, output: String::new() },
                Fate::Cancelled => Event::Cancelled { by: String::new() },
            };
            if run.handle(event, at(now)).is_err() { break }
            drain(&mut run, &mut trace, &mut last);
            if let Some(due) = run.poll_timeout() {
                now = due;
                run.handle(Event::TimePassed, at(now)).unwrap();
                drain(&mut run, &mut trace, &mut last);
            }
        }
        let mut journal = Vec::new();
        for (place, command) in trace.iter().enumerate() {
            let Command::Persist(entry) = command else { continue };
            journal.push(entry.clone());
            let mut restored = Run::restore(&journal, at(0));
            // A step that waits for its next try is due once its time has come.
            if let Some(due) = restored.poll_timeout() {
                restored.handle(Event::TimePassed, at(due)).unwrap();
            }
            let next = trace[place + 1..].first().cloned();
            match next {
                // Nothing runs after a cut, so there is nothing to end.
                Some(Command::Stop) => prop_assert_eq!(restored.poll_command(), None),
                next => {
                    if next.is_some() || restored.state() != &RunState::Running {
                        prop_assert_eq!(restored.poll_command(), next);
                    }
                }
            }
        }
    }

    #[test]
    fn journal_lines_read_back(step in 0usize..7, attempt in 1u32..9, text in ".{0,40}") {
        let step = STEPS[step].kind;
        for entry in [
            Entry::Started { step, attempt },
            Entry::Done { step, output: text.clone() },
            Entry::Failed { step, attempt, error: text.clone(), fatal: true },
            Entry::NoGain { step, output: text.clone() },
            Entry::Cancelled { by: text.clone() },
            Entry::Restarted { by: text.clone() },
        ] {
            prop_assert_eq!(serde_json::from_str::<Entry>(&serde_json::to_string(&entry).unwrap()).unwrap(), entry);
        }
    }
}
