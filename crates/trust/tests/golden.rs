//! The floors record as the agent of this release keeps it: `golden/floors.bin` is read for ever.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
use std::collections::BTreeMap;

use dunlin_protocol::{Digest, RepoVersions};
use dunlin_trust::floors::{self, CountedBy, Floors, Recovery};

const KEPT: &[u8] = include_bytes!("golden/floors.bin");

fn record() -> Floors {
    let versions = |n| RepoVersions { root: 1, timestamp: n, snapshot: n, targets: n, retrained: 2 };
    Floors {
        image: versions(5),
        director: versions(9),
        roles: BTreeMap::new(),
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
    let found = floors::recover(Some(KEPT), Some(KEPT)).unwrap();
    assert_eq!(found, Recovery::Known { floors: record(), write: 6, repair: false });
    assert_eq!(floors::encode(&record(), 6), KEPT);
}
