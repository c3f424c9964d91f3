//! The floors record as the agent of this release keeps it: `golden/floors.bin` is read for ever.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dunlin_protocol::{Digest, RepoVersions};
use dunlin_trust::floors::{self, CountedBy, Floors, Recovery};

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/floors.bin")
}

fn record() -> Floors {
    let versions = |n| RepoVersions { root: 1, timestamp: n, snapshot: n, targets: n, retrained: 2 };
    Floors {
        image: versions(5),
        director: versions(9),
        generation: 4,
        assignment: Some(Digest([7; 32])),
        counted_by: Some(CountedBy { root: 1, keys: Digest([8; 32]) }),
        wall_ms: 1_790_000_000_000,
        releases: BTreeMap::from([("meter".parse().unwrap(), 3)]),
        down_seq: 1_790_000_000_001,
        heard_from: Some(CountedBy { root: 1, keys: Digest([9; 32]) }),
    }
}

#[test]
fn the_floors_record_is_read_and_written_as_ever() {
    let kept = std::fs::read(file()).unwrap();
    let found = floors::recover(Some(&kept), Some(&kept)).unwrap();
    assert_eq!(found, Recovery::Known { floors: record(), write: 6, repair: false });
    assert_eq!(floors::encode(&record(), 6), kept);
}

/// For a new format alone: a file that is there stays as it is.
#[test]
#[ignore = "writes a file that is not there yet into the source tree"]
fn write_what_is_missing() {
    std::fs::create_dir_all(file().parent().unwrap()).unwrap();
    if !file().exists() {
        std::fs::write(file(), floors::encode(&record(), 6)).unwrap();
    }
}
