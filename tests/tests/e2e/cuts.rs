//! A sample of the cuts that `cargo xtask cuts` makes all of, and the control that shows that they bite.
use std::collections::BTreeMap;

use dunlin_tests::cuts::{Cuts, Kind};

/// Every so manieth call; a prime, so that no rhythm of calls is missed each time.
const STEP: u64 = 31;
/// Cuts of the control: early calls, of which each update has these.
const CONTROL_CUTS: u64 = 6;
/// What a cut takes of an agent that syncs nothing, as its outcome begins; one that is late is none of these.
const LOST: [&str; 3] = ["the floors are gone", "the floors are not readable", "a floor is lower"];

#[tokio::test]
async fn an_update_comes_through_cuts_unless_nothing_is_synced() {
    let folder = tempfile::tempdir().unwrap();
    let mut cuts = Cuts::prepare(folder.path(), 3).await.unwrap();
    let mut resumed = 0;
    for kind in [Kind::Kill, Kind::Power] {
        let tally = cuts.sweep(kind, None, STEP, u64::MAX).await.unwrap();
        eprintln!("{kind:?}: {} cuts up to call {}, {} resumed", tally.cuts, tally.last, tally.resumed);
        assert!(tally.cuts >= 6, "{tally:?}");
        assert_eq!(tally.bad, BTreeMap::new(), "{kind:?}");
        resumed += tally.resumed;
    }
    // Not of each: few calls of an update come after the first sync of its download and before the end of it.
    assert!(resumed > 0, "no download was taken up where it was");
    cuts.not_blamed().await.unwrap();
    let control = cuts.sweep(Kind::PowerUnsynced, None, STEP, CONTROL_CUTS).await.unwrap();
    let lost = control.bad.values().any(|why| LOST.iter().any(|lost| why.starts_with(lost)));
    assert!(lost, "an agent that syncs nothing loses nothing: {control:?}");
    cuts.end().await.unwrap();
}
