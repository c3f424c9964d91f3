//! What the agent of this release keeps on disk: `golden/` holds a slot record and a journal, which are read for ever.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dunlin_protocol::{Blob, Conduct, Digest, ReleaseId, TaskId};
use dunlin_update::{Designation, Journal, Line, Pack, Proof, Record, Slot};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.cbor"))
}

fn pack(release: &str, byte: u8) -> Pack {
    let blob = |byte| Blob { digest: Digest([byte; 32]), length: 100 };
    Pack {
        release: release.parse::<ReleaseId>().unwrap(),
        manifest: blob(byte),
        blobs: vec![blob(byte + 1), blob(byte + 2)],
        retrained: byte > 100,
    }
}

fn record() -> Record {
    let line = |release, byte, generation| {
        Designation::Line(Line {
            generation,
            champion: pack(release, byte),
            fallback: Some(pack("meter-small@1", 40)),
            members: vec![],
            conduct: Conduct::default(),
            proof: Proof { latency_us: 120, peak_bytes: 5 << 20, anchor_ppm: 940_000 },
            policy: Some(Digest([9; 32])),
        })
    };
    let slot = Slot {
        policy: Some(Blob { digest: Digest([9; 32]), length: 700 }),
        serving: line("auto.meter.mlp@3", 120, 7),
        previous: line("meter-first@1", 10, 4),
    };
    let baseline = Slot { policy: None, serving: Designation::Baseline, previous: Designation::Baseline };
    let tasks: [(TaskId, Slot); 2] = [("meter".parse().unwrap(), slot), ("valve".parse().unwrap(), baseline)];
    Record { format: 1, generation: 7, tasks: BTreeMap::from(tasks) }
}

#[test]
fn a_slot_record_is_read_and_written_as_ever() {
    let kept = std::fs::read(file("slot")).unwrap();
    assert_eq!(Record::decode(&kept).unwrap(), record());
    assert_eq!(record().encode(), kept);
}

#[test]
fn a_journal_is_read_and_written_as_ever() {
    let kept = std::fs::read(file("journal")).unwrap();
    assert_eq!(Journal::decode(&kept).unwrap(), Journal::adopt(record()));
    assert_eq!(Journal::adopt(record()).encode(), kept);
}
