//! A sample of the cuts that `cargo xtask cuts` makes all of, and the control that shows that they bite.
use std::collections::BTreeMap;

use dunlin_tests::cuts::{Cuts, Kind};

/// Every so manieth call; a prime, so that no rhythm of calls is missed each time.
const STEP: u64 = 31;
/// Cuts of the control: early calls, of which each update has these.
const CONTROL_CUTS: u64 = 6;

#[tokio::test]
async fn an_update_comes_through_cuts_unless_nothing_is_synced() {
    let folder = tempfile::tempdir().unwrap();
    let mut cuts = Cuts::prepare(folder.path(), 3).await.unwrap();
    for kind in [Kind::Kill, Kind::Power] {
        let tally = cuts.sweep(kind, None, STEP, u64::MAX).await.unwrap();
        eprintln!("{kind:?}: {} cuts up to call {}", tally.cuts, tally.last);
        assert!(tally.cuts >= 6, "{tally:?}");
        assert_eq!(tally.bad, BTreeMap::new(), "{kind:?}");
    }
    cuts.not_blamed().await.unwrap();
    let control = cuts.sweep(Kind::PowerUnsynced, None, STEP, CONTROL_CUTS).await.unwrap();
    assert!(!control.bad.is_empty(), "an agent that syncs nothing comes through every cut: {control:?}");
    cuts.end().await.unwrap();
}
