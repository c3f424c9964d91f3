//! Journals and queues as this release keeps them: what lies in `golden/` is read for ever.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use dunlin_pipeline::{Entry, Queue, StepKind, Ticket};

#[test]
fn a_journal_is_read_and_written_as_ever() {
    let entries = [
        Entry::Started { step: StepKind::Pull, attempt: 1 },
        Entry::Done { step: StepKind::Pull, output: "rows".into() },
        Entry::Failed { step: StepKind::Search, attempt: 2, error: "out of memory".into(), fatal: false },
        Entry::NoGain { step: StepKind::Compare, output: "p = 0.4".into() },
        Entry::Cancelled { by: "ann".into() },
        Entry::Restarted { by: "bob".into() },
    ];
    let kept: Vec<&str> = include_str!("golden/journal.jsonl").lines().collect();
    assert_eq!(kept.len(), entries.len());
    for (line, entry) in kept.into_iter().zip(&entries) {
        assert_eq!(serde_json::from_str::<Entry>(line).unwrap(), *entry);
        assert_eq!(serde_json::to_string(entry).unwrap(), line);
    }
}

#[test]
fn a_queue_is_read_and_written_as_ever() {
    let mut queue = Queue::default();
    for (run, task) in [("run-1", "meter"), ("run-2", "valve")] {
        queue.offer(Ticket { run: run.into(), task: task.into(), owner: "ann".into() }).unwrap();
    }
    let kept = include_str!("golden/queue.json").trim_end();
    assert_eq!(serde_json::from_str::<Queue>(kept).unwrap(), queue);
    assert_eq!(serde_json::to_string(&queue).unwrap(), kept);
}
