use std::collections::BTreeMap;

use dunlin_protocol::cbor;
use dunlin_update::{CRASHES_MAX, JOURNAL_FORMAT, Program, Stop, Strikes};
use serde::Serialize;

use super::*;

#[test]
fn the_built_in_model_answers() {
    let model = Model::load(MODEL, None).unwrap();
    assert_eq!(model.run_f32(&[-3.0, 0.5, 7.0, -0.0], 2).unwrap(), [0.0, 0.5, 7.0, 0.0]);
}

#[test]
fn who_was_started_knows_by_whom_and_takes_the_rest_for_its_command_line() {
    let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
    let digest = "07".repeat(32);
    let (rest, by) = split(words(&format!("dunlin-agent started-by {digest} /usr/bin/agent run --json")));
    assert_eq!(rest, words("dunlin-agent run --json"));
    assert_eq!(by, Some((Digest([7; 32]), "/usr/bin/agent".into())));
    for own in ["dunlin-agent", "dunlin-agent run --config a.toml", "dunlin-agent started-by x y run"] {
        assert_eq!(split(words(own)), (words(own), None));
    }
}

fn stored(content: &[u8]) -> (tempfile::TempDir, Store, Blob) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 0).unwrap();
    let blob = Blob { digest: dunlin_trust::sha256(content), length: content.len() as u64 };
    store.put(&blob, content).unwrap();
    (dir, store, blob)
}

#[test]
fn only_who_says_that_it_is_sound_and_ends_well_passes() {
    for (script, expected) in [
        ("#!/bin/sh\necho 'dunlin-agent: sound'\n", None),
        ("#!/bin/sh\nexit 0\n", Some(ReasonCode::ProofCrashed)),
        ("#!/bin/sh\necho 'dunlin-agent: sound'\nexit 1\n", Some(ReasonCode::ProofCrashed)),
        ("no program at all", Some(ReasonCode::ProofCrashed)),
    ] {
        let (dir, store, blob) = stored(script.as_bytes());
        let proved = prove(&store, &blob);
        assert_eq!(proved.as_ref().err().map(|(reason, _)| *reason), expected, "{script}: {proved:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }
}

/// A journal with a program on trial that was started last in `boot`.
fn on_trial(dir: &Path, boot: &str, strikes: Strikes) -> Vec<u8> {
    #[derive(Serialize)]
    struct State {
        judged: u64,
        committed: Option<Program>,
        step: ProgramStep,
    }
    #[derive(Serialize)]
    struct Written {
        format: u32,
        generation: u64,
        tasks: BTreeMap<String, u8>,
        known_bad: [u8; 0],
        outbox: [u8; 0],
        next_seq: u64,
        program: State,
    }
    let program = Program {
        release: "agent.x86-64-unknown-linux-musl@1".parse().unwrap(),
        file: Blob { digest: Digest([7; 32]), length: 9 },
        agent: crate::VERSION.to_owned(),
        reach_ms: 60_000,
        generation: 1,
        correlation: String::new(),
    };
    let step = ProgramStep::Trying { program, strikes, boot: boot.to_owned() };
    let bytes = cbor::encode(&Written {
        format: JOURNAL_FORMAT,
        generation: 1,
        tasks: BTreeMap::new(),
        known_bad: [],
        outbox: [],
        next_seq: 1,
        program: State { judged: 1, committed: None, step },
    });
    Twin::open(dir, "journal").unwrap().0.save(&bytes).unwrap();
    bytes
}

#[test]
fn deaths_of_a_program_on_trial_are_not_laid_to_the_models_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let boot = fs::read_to_string(KERNEL_BOOT).unwrap();
    on_trial(dir.path(), boot.trim(), Strikes { crashes: CRASHES_MAX - 1, resets: 0 });
    // As the program on trial left it when it died.
    Marker::set(dir.path()).unwrap();
    launch_from(dir.path(), false).unwrap();
    let (_, journal) = read_journal(dir.path()).unwrap().unwrap();
    assert_eq!(*journal.program().step(), ProgramStep::Idle);
    assert_eq!(Marker::set(dir.path()).unwrap().1, Stop::Orderly);
}

#[test]
fn a_trial_that_is_held_back_is_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let written = on_trial(dir.path(), "", Strikes::default());
    launch_from(dir.path(), true).unwrap();
    assert_eq!(Twin::open(dir.path(), "journal").unwrap().1.body.unwrap(), written);
}

#[test]
fn what_rotted_is_not_even_started() {
    let (_dir, store, blob) = stored(b"#!/bin/sh\ntouch started\n");
    fs::write(store.path(&blob.digest), b"#!/bin/sh\ntouch spoiled\n").unwrap();
    assert_eq!(prove(&store, &blob).unwrap_err().0, ReasonCode::DigestMismatch);
}

#[test]
fn a_program_that_does_not_fit_is_not_fetched() {
    let (dir, store, blob) = stored(b"a program");
    assert_eq!(admits(&store, &blob), Ok(()), "it is here already");
    let next = Blob { digest: Digest([1; 32]), length: 9 };
    let full = Store::open(dir.path(), u64::MAX).unwrap();
    let refused = admits(&full, &next).unwrap_err();
    assert!(matches!(refused, Fault::Passing { reason: ReasonCode::NoSpace, .. }), "{refused:?}");
}
