//! Releases that were retrained without the owner's signature, and the policy that bounds them.
use alloc::vec;

use dunlin_protocol::{Phase, ReasonCode};

use super::world::{World, digest, goal, task, under};
use crate::{Command, Event, Proof};

#[test]
fn a_retrained_release_must_keep_to_every_signed_bound_while_it_is_proved() {
    let good = Proof { latency_us: 50, peak_bytes: 10, anchor_ppm: 900_000 };
    for (proof, reason) in [
        (Proof { anchor_ppm: 899_999, ..good }, ReasonCode::AnchorScore),
        (Proof { peak_bytes: 11, ..good }, ReasonCode::RamExceeded),
        (Proof { latency_us: 51, ..good }, ReasonCode::LatencyExceeded),
    ] {
        let mut world = World::new();
        world.assign(1, vec![("meter", goal(1, "auto.meter.mlp@1", None))]);
        world.until(Phase::Proving);
        let Some(Command::Prove { task, pack, .. }) = world.open.pop() else { panic!("a proof is due") };
        assert!(
            pack.blobs.iter().any(|blob| blob.digest == digest("anchor")),
            "the anchor set is fetched with it"
        );
        world.tell(Event::Proved { task, manifest: pack.manifest.digest, proof });
        assert_eq!(world.phases().last(), Some(&(Phase::Failed, reason)));
        assert_eq!(world.serving("meter"), None);
    }
}

/// The owner may change the bounds at any time, also under a release that serves.
#[test]
fn a_retrained_release_that_serves_is_held_to_a_new_policy() {
    let retrained = |generation| goal(generation, "auto.meter.mlp@1", None);
    for (policy, last, serves, proofs) in [
        ("closed", (Phase::Failed, ReasonCode::RetrainedNotAllowed), "m@1", 0),
        ("strict", (Phase::Failed, ReasonCode::LatencyExceeded), "m@1", 1),
        ("another", (Phase::Committed, ReasonCode::Ok), "auto.meter.mlp@1", 1),
    ] {
        let mut world = World::new();
        world.assign(1, vec![("meter", goal(1, "m@1", None))]);
        world.settle();
        world.assign(2, vec![("meter", retrained(2))]);
        world.settle();
        world.log.clear();
        world.assign(3, vec![("meter", under(policy, retrained(3)))]);
        world.settle();
        assert_eq!(world.phases().last(), Some(&last), "{policy}");
        assert_eq!(world.serving("meter").unwrap(), serves, "{policy}");
        let proved = |world: &World| {
            world.log.iter().filter(|command| matches!(command, Command::Prove { .. })).count()
        };
        assert_eq!(proved(&world), proofs, "{policy}");
        if serves != "m@1" {
            world.assign(4, vec![("meter", under(policy, retrained(4)))]);
            world.settle();
            assert_eq!(proved(&world), proofs, "under the policy that it was proved by it stands");
        }
    }
}

#[test]
fn a_retrained_predecessor_goes_with_the_policy_that_allowed_it() {
    for policy in ["closed", "another"] {
        let mut world = World::new();
        world.assign(1, vec![("meter", goal(1, "auto.meter.mlp@1", None))]);
        world.settle();
        world.assign(2, vec![("meter", goal(2, "m@2", None))]);
        world.settle();
        world.assign(3, vec![("meter", under(policy, goal(3, "m@2", None)))]);
        world.settle();
        assert_eq!(world.serving("meter").unwrap(), "m@2");
        assert!(!world.tell(Event::OperatorRollback { task: task("meter") }), "{policy}");
    }
}
