//! The laws of the agent's own program, held against a board that starts, dies and loses power.
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use dunlin_protocol::{Blob, Digest, Now, Phase, ReasonCode};
use dunlin_trust::{ApprovedProgram, Refusal};
use proptest::prelude::*;

use super::world::{digest, release, retarget, setup};
use crate::{
    CRASHES_MAX, Command, Event, Fault, Journal, ProgramStep, RESETS_MAX, Setup, Stop, Updater, WRONG_MAX,
};

/// Release of the installed program.
const INSTALLED: &str = "0.2.0";
const REACH_MS: u64 = 60_000;

fn program(n: u32, agent: &str) -> ApprovedProgram {
    let release = release(&alloc::format!("agent.x86-64-unknown-linux-musl@{n}"));
    let file = Blob { digest: digest(&release.to_string()), length: 9 };
    ApprovedProgram { release, file, agent: agent.to_string(), reach_ms: REACH_MS }
}

/// A board whose service manager starts the installed program whenever nothing runs.
struct Board {
    updater: Updater,
    now: Now,
    disk: Vec<u8>,
    /// Number of the board's boot.
    boot: u32,
    /// Whether updates are held back.
    hold: bool,
    /// The program that runs, if it is not the installed one.
    runs: Option<Digest>,
    open: Vec<Command>,
    /// Programs that passed their test here.
    proved: Vec<Digest>,
    /// Outcomes that were reported, each once.
    outcomes: Vec<(Phase, ReasonCode)>,
    /// Number of the last of them.
    told: u64,
}

impl Board {
    fn new() -> Self {
        let now = Now { mono_ms: 10, wall_ms: None };
        let mut board = Self {
            updater: Updater::restore(Journal::default(), setup(), now),
            now,
            disk: Journal::default().encode(),
            boot: 1,
            hold: false,
            runs: None,
            open: vec![],
            proved: vec![],
            outcomes: vec![],
            told: 0,
        };
        board.start();
        board
    }

    /// As the service manager does it: the installed program looks at the journal, and starts what is to run.
    fn start(&mut self) {
        self.start_if(|_| true);
    }

    /// The same where files can be damaged.
    fn start_if(&mut self, whole: impl Fn(&Digest) -> bool) {
        self.launch(whole, Stop::Orderly);
    }

    /// The same after an end that is laid to what the agent did.
    fn start_after(&mut self, stop: Stop) {
        self.launch(|_| true, stop);
    }

    fn launch(&mut self, whole: impl Fn(&Digest) -> bool, stop: Stop) {
        let mut journal = Journal::decode(&self.disk).unwrap();
        self.runs = loop {
            let launch = journal.launch(&self.boot.to_string(), INSTALLED, self.hold, self.now);
            self.disk = journal.encode();
            let Some(launch) = launch else { break None };
            let file = launch.program.file.digest;
            assert!(self.proved.contains(&file), "what was never tested is started");
            if whole(&file) {
                break Some(file);
            }
            journal.launch_failed(&launch, ReasonCode::DigestMismatch, "", self.now);
            self.disk = journal.encode();
        };
        self.open.clear();
        self.now.mono_ms = 5;
        let setup = Setup { program: self.runs, ..setup() };
        self.updater = Updater::restore(Journal::decode(&self.disk).unwrap(), setup, self.now);
        self.tell(Event::ProcessStarted(stop));
    }

    fn tell(&mut self, event: Event) -> bool {
        let taken = self.updater.handle(event, self.now).is_ok();
        self.drain();
        taken
    }

    fn drain(&mut self) {
        while let Some(command) = self.updater.poll_command() {
            match command {
                Command::Persist(bytes) => self.disk = bytes,
                Command::Report { seq, outcome } => {
                    if seq > self.told {
                        self.outcomes.push((outcome.phase, outcome.reason));
                        self.told = seq;
                    }
                    self.updater.handle(Event::Reported { seq }, self.now).unwrap();
                }
                Command::DropBlobs { keep } => {
                    let state = self.updater.journal().program();
                    assert!(state.files().all(|file| keep.contains(&file.digest)));
                    assert!(state.files().count() <= 2);
                }
                other => self.open.push(other),
            }
        }
    }

    fn assign(&mut self, generation: u64, verdict: Result<ApprovedProgram, Refusal>) {
        let named = verdict.as_ref().map_or_else(|_| release("agent.x@9"), |program| program.release.clone());
        self.updater.assign_program(generation, "c", &named, verdict, self.now);
        // The rest of `handle`, which only takes verified assignments.
        self.tell(Event::TimePassed);
    }

    /// Answers the oldest order well or badly; whether there was one.
    fn answer(&mut self, well: bool) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let fault = |reason| Fault::Wrong { reason, detail: "x".repeat(2 * crate::DETAIL_CHARS_MAX) };
        match self.open.remove(0) {
            Command::FetchProgram { file } if well => self.tell(Event::ProgramStored { file: file.digest }),
            Command::ProveProgram { file } if well => {
                self.proved.push(file.digest);
                self.tell(Event::ProgramProved { file: file.digest })
            }
            Command::FetchProgram { file } => {
                let fault = fault(ReasonCode::DigestMismatch);
                self.tell(Event::ProgramFailed { file: file.digest, fault })
            }
            Command::ProveProgram { file } => {
                let fault = fault(ReasonCode::ProofCrashed);
                self.tell(Event::ProgramFailed { file: file.digest, fault })
            }
            Command::StartAnew => {
                self.start();
                true
            }
            other => panic!("{other:?} is of no program"),
        }
    }

    fn wait(&mut self) {
        if let Some(due_ms) = self.updater.poll_timeout() {
            self.now.mono_ms = due_ms;
            self.tell(Event::TimePassed);
        }
    }

    /// Answers well until one is on trial.
    fn try_out(&mut self) {
        while self.answer(true) {}
        assert!(matches!(self.updater.journal().program().step(), ProgramStep::Trying { .. }));
    }

    fn committed(&self) -> Option<String> {
        self.updater.journal().program().committed().map(|program| program.release.to_string())
    }

    fn last(&self) -> (Phase, ReasonCode) {
        *self.outcomes.last().unwrap()
    }
}

const NEXT: &str = "agent.x86-64-unknown-linux-musl@1";

/// A board that runs a program of its own.
fn committed() -> Board {
    let mut board = Board::new();
    board.assign(1, Ok(program(1, "0.3.0")));
    board.try_out();
    assert!(board.tell(Event::ControllerReached));
    board
}

#[test]
fn a_program_that_reaches_its_controller_is_the_devices_from_then_on() {
    let mut board = committed();
    let phases: Vec<Phase> = board.outcomes.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::Fetching, Phase::Proving, Phase::Probation, Phase::Committed]);
    for _ in 0..2 * RESETS_MAX {
        board.boot += 1;
        board.start();
        board.start();
    }
    assert_eq!((board.committed().as_deref(), board.runs), (Some(NEXT), Some(program(1, "").file.digest)));
    // The same again is nothing new, by whatever generation.
    board.assign(1, Ok(program(1, "0.3.0")));
    assert!(board.open.is_empty());
    board.assign(2, Ok(program(1, "0.3.0")));
    assert_eq!((board.open.len(), board.last()), (0, (Phase::Committed, ReasonCode::Ok)));
}

#[test]
fn one_that_is_not_heard_in_its_time_leaves_by_itself_and_is_not_tried_again_until_it_is_retargeted() {
    let mut board = Board::new();
    board.assign(1, Ok(program(1, "0.3.0")));
    board.try_out();
    assert_eq!(board.updater.poll_timeout(), Some(5 + REACH_MS));
    board.wait();
    assert_eq!(board.last(), (Phase::RolledBack, ReasonCode::ControllerUnreached));
    assert!(board.answer(true) && board.runs.is_none(), "it began anew with the installed program");
    assert!(!board.tell(Event::ControllerReached), "which is no program on trial");
    board.assign(2, Ok(program(1, "0.3.0")));
    assert_eq!(board.last(), (Phase::Rejected, ReasonCode::KnownBad));
    assert!(board.tell(retarget(NEXT)));
    board.assign(2, Ok(program(1, "0.3.0")));
    board.try_out();
    board.tell(Event::ControllerReached);
    assert_eq!(board.committed().as_deref(), Some(NEXT));
}

#[test]
fn one_that_dies_before_it_is_heard_is_left_by_the_installed_program() {
    let mut board = committed();
    board.assign(2, Ok(program(2, "0.4.0")));
    board.try_out();
    for start in 1..CRASHES_MAX {
        assert_eq!(board.runs, Some(program(2, "").file.digest), "start {start}");
        board.start();
    }
    board.start();
    assert_eq!(board.runs, Some(program(1, "").file.digest), "what ran before runs again");
    assert_eq!(board.last(), (Phase::RolledBack, ReasonCode::CrashLoop));
}

#[test]
fn power_cuts_are_no_failure_of_a_program_as_long_as_they_may_be_chance() {
    let mut board = Board::new();
    board.assign(1, Ok(program(1, "0.3.0")));
    board.try_out();
    for _ in 1..RESETS_MAX {
        board.boot += 1;
        board.start();
        assert_eq!(board.runs, Some(program(1, "").file.digest));
    }
    board.boot += 1;
    board.start();
    assert_eq!((board.runs, board.last()), (None, (Phase::RolledBack, ReasonCode::CrashLoop)));
}

#[test]
fn a_trial_that_is_held_back_begins_when_it_is_held_no_more() {
    let mut board = Board::new();
    board.assign(1, Ok(program(1, "0.3.0")));
    board.hold = true;
    board.try_out();
    assert!(board.runs.is_none() && board.open.is_empty(), "no circle of starts");
    for _ in 0..2 * CRASHES_MAX {
        board.start();
    }
    board.hold = false;
    board.wait();
    assert!(board.answer(true) && board.runs == Some(program(1, "").file.digest));
}

#[test]
fn a_test_that_takes_the_agent_down_is_not_repeated_for_ever() {
    let mut board = Board::new();
    board.assign(1, Ok(program(1, "0.3.0")));
    assert!(board.answer(true));
    for _ in 0..CRASHES_MAX {
        assert!(matches!(board.open[..], [Command::ProveProgram { .. }]));
        board.start_after(Stop::Crashed);
    }
    assert_eq!((board.open.len(), board.last()), (0, (Phase::Failed, ReasonCode::ProofCrashed)));
}

#[test]
fn a_file_that_rots_before_its_test_is_fetched_again_but_not_for_ever() {
    let mut board = Board::new();
    board.assign(1, Ok(program(1, "0.3.0")));
    let file = program(1, "").file.digest;
    for _ in 0..WRONG_MAX {
        assert!(board.answer(true));
        let detail = String::new();
        let fault = Fault::Wrong { reason: ReasonCode::DigestMismatch, detail };
        board.open.clear();
        board.tell(Event::ProgramFailed { file, fault });
        board.wait();
    }
    assert_eq!((board.open.len(), board.last()), (0, (Phase::Failed, ReasonCode::DigestMismatch)));
}

#[test]
fn withdrawing_what_ran_before_leaves_its_successors_trial_alone() {
    let mut board = committed();
    board.assign(2, Ok(program(2, "0.4.0")));
    board.try_out();
    let floors = [(release(NEXT).model, 2)].into_iter().collect();
    board.tell(Event::FloorsRaised(floors));
    assert!(board.open.is_empty() && board.committed().is_none());
    board.tell(Event::ControllerReached);
    assert!(board.committed().is_some_and(|release| release.ends_with("@2")));
}

#[test]
fn one_that_hangs_is_left_when_its_time_is_over() {
    let mut board = Board::new();
    board.assign(1, Ok(program(1, "0.3.0")));
    board.try_out();
    let mut journal = Journal::decode(&board.disk).unwrap();
    assert!(!journal.overdue(digest("another"), board.now));
    assert!(journal.overdue(program(1, "").file.digest, board.now));
    assert!(!journal.overdue(program(1, "").file.digest, board.now), "once");
    board.disk = journal.encode();
    board.start();
    assert_eq!((board.runs, board.last()), (None, (Phase::RolledBack, ReasonCode::ControllerUnreached)));
}

#[test]
fn a_program_older_than_the_installed_one_is_not_started() {
    let mut board = Board::new();
    board.assign(1, Ok(program(1, "0.1.9")));
    while board.answer(true) {}
    assert_eq!((board.runs, board.last()), (None, (Phase::RolledBack, ReasonCode::ProgramOlder)));
    // Nor does one run on when an image brings a newer one.
    let mut journal = Journal::decode(&committed().disk).unwrap();
    assert!(journal.launch("1", "0.3.0", false, board.now).is_some_and(|launch| !launch.trial));
    assert_eq!(journal.launch("1", "0.3.1", false, board.now), None);
    assert!(journal.program().committed().is_none());
}

#[test]
fn a_damaged_program_gives_way_to_what_ran_before() {
    let mut board = committed();
    board.assign(2, Ok(program(2, "0.4.0")));
    board.try_out();
    board.start_if(|file| *file != program(2, "").file.digest);
    assert_eq!(board.runs, Some(program(1, "").file.digest));
    assert_eq!(board.last(), (Phase::RolledBack, ReasonCode::DigestMismatch));
    board.start_if(|_| false);
    assert_eq!((board.runs, board.committed()), (None, None));
}

#[test]
fn what_fails_before_it_runs_never_runs() {
    let mut board = Board::new();
    board.assign(1, Ok(program(1, "0.3.0")));
    for _ in 1..WRONG_MAX {
        assert!(board.answer(false));
        assert_eq!(board.last(), (Phase::Deferred, ReasonCode::DigestMismatch));
        board.wait();
    }
    assert!(board.answer(false) && board.open.is_empty());
    assert_eq!(board.last(), (Phase::Failed, ReasonCode::DigestMismatch));
    // Nothing speaks against the program itself: the next generation has it fetched again.
    board.assign(2, Ok(program(1, "0.3.0")));
    assert!(board.answer(true) && board.answer(false), "fetched, and its test failed");
    assert_eq!((board.last(), board.runs), ((Phase::Failed, ReasonCode::ProofCrashed), None));
    board.assign(3, Ok(program(1, "0.3.0")));
    assert_eq!(board.last(), (Phase::Rejected, ReasonCode::KnownBad));
}

#[test]
fn what_is_refused_or_withdrawn_is_left() {
    let refused = || Err(Refusal { reason: ReasonCode::ArchMismatch, detail: "built for another".into() });
    let mut board = committed();
    board.assign(2, refused());
    assert_eq!(board.last(), (Phase::Rejected, ReasonCode::ArchMismatch));
    assert_eq!(board.committed().as_deref(), Some(NEXT));
    board.assign(3, Ok(program(2, "0.4.0")));
    board.try_out();
    board.assign(4, refused());
    assert!(board.outcomes.contains(&(Phase::RolledBack, ReasonCode::Superseded)));
    assert!(board.answer(true) && board.runs == Some(program(1, "").file.digest));
    let floors = [(release(NEXT).model, 2)].into_iter().collect();
    board.tell(Event::FloorsRaised(floors));
    assert_eq!(board.last(), (Phase::RolledBack, ReasonCode::BelowReleaseFloor));
    assert!(board.answer(true));
    assert_eq!((board.runs, board.committed()), (None, None));
}

#[test]
fn a_journal_without_a_program_reads_and_writes_as_before() {
    let mut board = committed();
    let with = board.disk.clone();
    assert!(with.windows(7).any(|bytes| bytes == b"program"));
    assert!(!Journal::default().encode().windows(7).any(|bytes| bytes == b"program"));
    assert_eq!(Journal::decode(&with).unwrap().encode(), with);
    board.start();
    assert_eq!(board.disk, with, "a start of what is committed writes nothing");
}

#[derive(Debug, Clone)]
enum Move {
    Assign(u32),
    Refuse,
    Answer(bool),
    Wait,
    Reach,
    Die,
    LosePower,
    Rot(u32),
    Hang,
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        2 => (1u32..4).prop_map(Move::Assign),
        1 => Just(Move::Refuse),
        6 => prop::bool::weighted(0.8).prop_map(Move::Answer),
        2 => Just(Move::Wait),
        2 => Just(Move::Reach),
        2 => Just(Move::Die),
        2 => Just(Move::LosePower),
        1 => (1u32..4).prop_map(Move::Rot),
        1 => Just(Move::Hang),
    ]
}

proptest! {
    /// Whatever happens: only what was tested is started, what stays was heard, and without news the board comes to rest.
    #[test]
    fn only_what_was_tested_and_heard_stays(steps in prop::collection::vec(moves(), 0..60)) {
        let mut board = Board::new();
        let mut heard: Vec<Digest> = vec![];
        let mut generation = 0;
        for step in steps {
            match step {
                Move::Assign(n) => {
                    generation += 1;
                    board.assign(generation, Ok(program(n, "0.3.0")));
                }
                Move::Refuse => {
                    generation += 1;
                    board.assign(generation, Err(Refusal { reason: ReasonCode::ClassMismatch, detail: String::new() }));
                }
                Move::Answer(well) => {
                    board.answer(well);
                }
                Move::Wait => board.wait(),
                Move::Reach => {
                    heard.extend(board.runs);
                    board.tell(Event::ControllerReached);
                }
                Move::Die => board.start(),
                Move::LosePower => {
                    board.boot += 1;
                    board.start();
                }
                Move::Rot(n) => board.start_if(|file| *file != program(n, "").file.digest),
                Move::Hang => {
                    if let Some(runs) = board.runs {
                        let mut journal = Journal::decode(&board.disk).unwrap();
                        journal.overdue(runs, board.now);
                        board.disk = journal.encode();
                        board.start();
                    }
                }
            }
            let journal = Journal::decode(&board.disk).unwrap();
            prop_assert_eq!(journal.encode(), board.disk.clone());
            if let Some(committed) = journal.program().committed() {
                prop_assert!(heard.contains(&committed.file.digest));
            }
            // What a cut at this moment leaves gives the order again that is waited for.
            let awaited = match journal.program().step() {
                ProgramStep::Fetching { program, .. } => Some(Command::FetchProgram { file: program.file }),
                ProgramStep::Proving { program, .. } => Some(Command::ProveProgram { file: program.file }),
                ProgramStep::Idle | ProgramStep::Trying { .. } => None,
            };
            let mut again = Updater::restore(journal, Setup { program: board.runs, ..setup() }, board.now);
            again.handle(Event::ProcessStarted(Stop::Orderly), board.now).unwrap();
            let orders: Vec<Command> = core::iter::from_fn(|| again.poll_command()).collect();
            prop_assert!(awaited.iter().all(|awaited| orders.contains(awaited)), "{:?} is lost", awaited);
        }
        // The controller is never heard again, and every start ends at once: a bounded number of them leads to what stays.
        for _ in 0..=2 * CRASHES_MAX {
            board.start();
        }
        let state = board.updater.journal().program();
        let trying = matches!(state.step(), ProgramStep::Trying { .. });
        prop_assert!(!trying);
        prop_assert_eq!(board.runs, state.committed().map(|program| program.file.digest));
    }
}
