//! The match of director and image repository.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod forge;

use std::collections::BTreeMap;

use dunlin_protocol::{DeviceId, LineUp, ReasonCode};
use dunlin_trust::{Approved, Floors, RepoKind, TrustError, Verified, approve};
use forge::{Forge, custom, now, profile, target};
use serde_json::{Value, json};

const MANIFEST: &str = "meter.2.json";
const RETRAINED: &str = "auto.meter.gbdt.1.json";

struct World {
    image: Forge,
    director: Forge,
    floors: Floors,
}

fn assignment(generation: u64, champions: &[(&str, &str)]) -> Value {
    let probation = json!({
        "ms_min": 1, "requests_min": 1, "error_ppm_max": 1, "latency_percent_max": 200, "rss_bytes_max": 0, "disagree_ppm_max": 1
    });
    let task = |(task, release): &(&str, &str)| json!({ "task": task, "lineup": { "champion": release }, "probation": probation });
    json!({ "device": "pole-1", "generation": generation, "correlation": "c", "tasks": champions.iter().map(task).collect::<Vec<_>>() })
}

impl World {
    fn new() -> Self {
        let mut image = Forge::new(RepoKind::Image);
        let mut director = Forge::new(RepoKind::Director);
        image.listed.insert(MANIFEST.to_owned(), target(b"manifest 2", custom("meter")));
        image.listed.insert("policy.meter.json".to_owned(), target(b"policy", Value::Null));
        image.listed.insert("gate.1.json".to_owned(), target(b"gate 1", custom("gate")));
        image.retrained_listed.insert(RETRAINED.to_owned(), target(b"retrained 1", custom("meter")));
        image.custom = json!({ "floors": { "meter": 2 } });
        for (name, content) in
            [(MANIFEST, &b"manifest 2"[..]), ("gate.1.json", b"gate 1"), (RETRAINED, b"retrained 1")]
        {
            director.listed.insert(name.to_owned(), target(content, Value::Null));
        }
        director.custom = assignment(1, &[("meter", "meter@2"), ("gate", "gate@1")]);
        Self { image, director, floors: Floors::default() }
    }

    fn judge(&self) -> Result<Verified<Approved>, TrustError> {
        let device: DeviceId = "pole-1".parse().unwrap();
        approve(&self.image.trusted(), &self.director.trusted(), &device, &profile(), &self.floors)
    }

    /// Publishes another assignment and judges it.
    fn assign(&mut self, custom: Value) -> Result<Verified<Approved>, TrustError> {
        self.director.custom = custom;
        self.director.bump();
        self.judge()
    }

    #[track_caller]
    fn refuses(&self, reason: ReasonCode) {
        let approved = self.judge().unwrap();
        let (task, verdict) = &approved.tasks[0];
        let refusal = verdict.as_ref().unwrap_err();
        assert_eq!((task.as_str(), refusal.reason), ("meter", reason), "{refusal}");
        // A bad model for one task never blocks another.
        for (_, verdict) in &approved.tasks[1..] {
            assert!(verdict.is_ok());
        }
    }
}

#[test]
fn what_both_name_alike_is_approved() {
    let approved = World::new().judge().unwrap();
    assert_eq!(approved.tasks.len(), 2);
    let task = approved.tasks[0].1.as_ref().unwrap();
    assert_eq!(task.champion.manifest.sha256, dunlin_trust::sha256(b"manifest 2"));
    assert!(!task.champion.retrained);
    assert_eq!(task.policy.as_ref().unwrap().length, 6);
    assert!(approved.tasks[1].1.as_ref().unwrap().policy.is_none());
    assert_eq!(approved.floors.generation, 1);
    assert_eq!(approved.floors.wall_ms, forge::NOW_MS);
    assert_eq!(approved.floors.releases, BTreeMap::from([("meter".parse().unwrap(), 2)]));
    assert_eq!((approved.floors.image.targets, approved.floors.director.targets), (1, 1));
}

#[test]
fn an_assignment_for_another_device_is_void_even_if_empty() {
    let mut world = World::new();
    for tasks in [json!([]), world.director.custom["tasks"].clone()] {
        let mut foreign = assignment(3, &[]);
        foreign["device"] = "pole-2".into();
        foreign["tasks"] = tasks;
        assert_eq!(world.assign(foreign).unwrap_err().reason(), ReasonCode::WrongDevice);
    }
}

#[test]
fn generations_only_rise() {
    let mut world = World::new();
    world.director.custom = assignment(5, &[("meter", "meter@2")]);
    world.floors = world.judge().unwrap().into_inner().floors;
    // Signed anew, with the same content: the same assignment.
    world.assign(assignment(5, &[("meter", "meter@2")])).unwrap();
    assert_eq!(world.assign(assignment(5, &[])).unwrap_err().reason(), ReasonCode::GenerationRollback);
    assert_eq!(
        world.assign(assignment(4, &[("meter", "meter@2")])).unwrap_err().reason(),
        ReasonCode::GenerationRollback
    );
    assert_eq!(world.assign(assignment(6, &[])).unwrap().floors.generation, 6);
}

/// What stolen keys counted goes with them, and does not come back with the root that named them.
#[test]
fn generations_count_anew_under_other_keys_and_never_under_older_ones() {
    let mut world = World::new();
    world.director.custom = assignment(u64::MAX >> 1, &[]);
    world.floors = world.judge().unwrap().into_inner().floors;
    let old = world.director.trusted();
    assert_eq!(world.assign(assignment(2, &[])).unwrap_err().reason(), ReasonCode::GenerationRollback);
    world.director.targets = vec![forge::key(), forge::key()];
    world.director.rotate(&[]);
    world.floors = world.judge().unwrap().into_inner().floors;
    assert_eq!((world.floors.generation, world.floors.counted_by.unwrap().root), (2, 2));
    assert_eq!(world.assign(assignment(1, &[])).unwrap_err().reason(), ReasonCode::GenerationRollback);
    let device = "pole-1".parse().unwrap();
    let back = approve(&world.image.trusted(), &old, &device, &profile(), &world.floors).unwrap_err();
    assert_eq!(back.reason(), ReasonCode::MetadataRollback);
    // A root that names the same keys again lets the count go on.
    world.director.rotate(&[]);
    assert_eq!(world.assign(assignment(1, &[])).unwrap_err().reason(), ReasonCode::GenerationRollback);
    assert_eq!(world.assign(assignment(3, &[])).unwrap().floors.counted_by.unwrap().root, 2);
}

/// The same generation must not be filled with another file by listing other digests.
#[test]
fn the_same_generation_with_other_targets_is_refused() {
    let mut world = World::new();
    world.floors = world.judge().unwrap().into_inner().floors;
    world.director.listed.insert(MANIFEST.to_owned(), target(b"other", Value::Null));
    world.director.bump();
    assert_eq!(world.judge().unwrap_err().reason(), ReasonCode::GenerationRollback);
}

#[test]
fn what_is_no_assignment_is_void() {
    let mut world = World::new();
    let mut twice = assignment(2, &[("meter", "meter@2"), ("meter", "meter@2")]);
    assert_eq!(world.assign(twice.clone()).unwrap_err().reason(), ReasonCode::MetadataMalformed);
    twice["tasks"] = vec![twice["tasks"][0].clone(); 65].into();
    assert_eq!(world.assign(twice).unwrap_err().reason(), ReasonCode::MetadataMalformed);
    assert_eq!(world.assign(Value::Null).unwrap_err().reason(), ReasonCode::MetadataMalformed);
}

#[test]
fn what_the_image_repository_does_not_hold_is_refused() {
    let mut world = World::new();
    world.image.listed.remove(MANIFEST);
    world.refuses(ReasonCode::NotApproved);
}

#[test]
fn what_is_approved_for_another_task_is_refused() {
    let mut world = World::new();
    world.image.listed.insert(MANIFEST.to_owned(), target(b"manifest 2", custom("gate")));
    world.refuses(ReasonCode::NotApproved);
}

#[test]
fn both_must_name_the_same_bytes() {
    let mut world = World::new();
    for content in [&b"manifest 3"[..], b"manifest 22"] {
        world.director.listed.insert(MANIFEST.to_owned(), target(content, Value::Null));
        world.refuses(ReasonCode::TargetMismatch);
    }
    world.director.listed.remove(MANIFEST);
    world.refuses(ReasonCode::TargetMismatch);
}

#[test]
fn a_withdrawn_release_is_refused_for_ever() {
    let mut world = World::new();
    world.image.custom = json!({ "floors": { "meter": 3 } });
    world.refuses(ReasonCode::BelowReleaseFloor);
    // Taking the floor back does not help: the highest value seen stays.
    world.floors = world.judge().unwrap().into_inner().floors;
    world.image.custom = json!({ "floors": {} });
    world.image.bump();
    world.director.bump();
    world.refuses(ReasonCode::BelowReleaseFloor);
}

/// Running a release never forbids an older one: a fleet rollback is a new generation.
#[test]
fn installing_raises_no_release_floor() {
    let mut world = World::new();
    world.image.listed.insert("meter.8.json".to_owned(), target(b"manifest 8", custom("meter")));
    world.director.listed.insert("meter.8.json".to_owned(), target(b"manifest 8", Value::Null));
    world.floors = world.assign(assignment(2, &[("meter", "meter@8")])).unwrap().into_inner().floors;
    let back = world.assign(assignment(3, &[("meter", "meter@2")])).unwrap();
    assert!(back.tasks[0].1.is_ok());
}

#[test]
fn hard_constraints_are_judged_before_anything_is_fetched() {
    let cases = [
        ("classes", json!(["jetson"]), ReasonCode::ClassMismatch),
        ("arch", json!(["x86_64"]), ReasonCode::ArchMismatch),
        ("ops", json!(["ai.onnx/Gemm", "ai.onnx/Loop"]), ReasonCode::OpsMissing),
        ("ram_bytes", json!(2001), ReasonCode::RamExceeded),
        ("bundle_bytes", json!(1001), ReasonCode::SizeExceeded),
        ("min_agent", json!("0.2.0"), ReasonCode::AgentTooOld),
    ];
    for (path, value, reason) in cases {
        let mut world = World::new();
        let mut bent = custom("meter");
        bent["hard"][path] = value;
        world.image.listed.insert(MANIFEST.to_owned(), target(b"manifest 2", bent));
        world.refuses(reason);
    }
}

#[test]
fn an_assignment_and_a_release_are_for_the_hardware_class_they_name() {
    let mut world = World::new();
    let mut bent = custom("meter");
    bent["hard"]["classes"] = json!(["jetson", "pi"]);
    world.image.listed.insert(MANIFEST.to_owned(), target(b"manifest 2", bent));
    let mut named = assignment(2, &[("meter", "meter@2")]);
    named["class"] = "pi".into();
    assert!(world.assign(named.clone()).unwrap().tasks[0].1.is_ok());
    named["class"] = "jetson".into();
    assert_eq!(world.assign(named).unwrap_err().reason(), ReasonCode::ClassMismatch);
}

#[test]
fn signers_may_approve_a_manifest_for_fewer_classes_and_not_for_more() {
    let classes = |names: &[&str]| dunlin_protocol::Hard {
        classes: names.iter().map(|name| name.parse().unwrap()).collect(),
        ..forge::hard()
    };
    for (signed, manifest, approves) in [
        (&[][..], &[][..], true),
        (&["pi"], &[], true),
        (&["pi"], &["pi"], true),
        (&["pi"], &["pi", "jetson"], true),
        (&["pi", "jetson"], &["pi"], false),
        (&[], &["pi"], false),
        (&["jetson"], &["pi"], false),
    ] {
        assert_eq!(classes(signed).approves(&classes(manifest)), approves, "{signed:?} {manifest:?}");
    }
    let other = dunlin_protocol::Hard { ram_bytes: 1, ..classes(&["pi"]) };
    assert!(!other.approves(&classes(&[])));
}

/// Each of them fits, and the budget for one model is kept: what a thief of the director keys would assign to bring a
/// device down.
#[test]
fn approved_releases_that_need_more_memory_together_than_there_is_are_refused() {
    let verdicts = |world: &World, ram_bytes: u64| -> Vec<Result<(), ReasonCode>> {
        let device = dunlin_protocol::DeviceProfile { ram_bytes, ..profile() };
        let id: DeviceId = "pole-1".parse().unwrap();
        let (image, director) = (world.image.trusted(), world.director.trusted());
        let approved = approve(&image, &director, &id, &device, &world.floors).unwrap().into_inner();
        let told = approved.tasks.into_iter();
        told.map(|(_, verdict)| verdict.map_err(|refusal| refusal.reason).map(drop)).collect()
    };
    let mut world = World::new();
    // Two tasks of 2000 bytes each.
    assert_eq!(verdicts(&world, 4000), [Ok(()), Ok(())]);
    world.director.custom["tasks"][0]["lineup"]["fallback"] = "auto.meter.gbdt@1".into();
    assert_eq!(verdicts(&world, 6000), [Ok(()), Ok(())]);
    assert_eq!(verdicts(&world, 4000), [Ok(()), Err(ReasonCode::LineupConflict)]);
    assert_eq!(verdicts(&world, 3000), [Err(ReasonCode::LineupConflict), Ok(())]);
    let lineup = &mut world.director.custom["tasks"][0]["lineup"];
    lineup["members"] = json!([{ "release": lineup["fallback"], "role": "bigger" }]);
    lineup["fallback"] = Value::Null;
    assert_eq!(verdicts(&world, 6000), [Ok(()), Ok(())]);
    assert_eq!(verdicts(&world, 4000), [Ok(()), Err(ReasonCode::LineupConflict)], "members count too");
}

#[test]
fn a_bad_fallback_is_named_as_such() {
    let mut world = World::new();
    world.director.custom["tasks"][0]["lineup"]["fallback"] = "meter@1".into();
    world.refuses(ReasonCode::NotApproved);
    world.director.custom["tasks"][0]["lineup"]["fallback"] =
        RETRAINED.strip_suffix(".1.json").map(|line| format!("{line}@1")).into();
    let approved = world.judge().unwrap();
    assert!(approved.tasks[0].1.as_ref().unwrap().fallback.as_ref().unwrap().retrained);
}

#[test]
fn a_member_is_approved_like_any_release_or_the_task_is_refused() {
    let mut world = World::new();
    let voter =
        |release: &str| json!([{ "release": release, "role": { "voter": { "weight_ppm": 1_000_000 } } }]);
    world.director.custom["tasks"][0]["lineup"]["members"] = voter("meter@9");
    world.refuses(ReasonCode::NotApproved);
    // The director alone can not bring one in, and one of another task is none.
    world.director.listed.insert("meter.9.json".to_owned(), target(b"manifest 9", Value::Null));
    world.refuses(ReasonCode::NotApproved);
    world.director.custom["tasks"][0]["lineup"]["members"] = voter("gate@1");
    world.refuses(ReasonCode::NotApproved);

    world.director.custom["tasks"][0]["lineup"]["members"] = voter("auto.meter.gbdt@1");
    let approved = world.judge().unwrap();
    let task = approved.tasks[0].1.as_ref().unwrap();
    assert_eq!(task.members.len(), 1);
    assert!(task.members[0].retrained, "and is bound by the policy like any other");
    assert_eq!(task.releases().count(), 2);
}

#[test]
fn line_ups_read_and_write_as_signed_documents_have_them() {
    let plain = json!({ "champion": "m@1", "fallback": "base@1" });
    let member = |release: &str, role: Value| json!({ "release": release, "role": role });
    let full = json!({
        "champion": "m@1",
        "members": [
            { "release": "v@1", "role": { "voter": { "weight_ppm": 500_000 } }, "limit_us": 5_000 },
            member("c@1", json!({ "challenger": { "share_ppm": 50_000 } })),
            member("s@1", json!({ "shadow": { "cpu_ppm": 1, "ram_bytes": 2, "battery_ppm_min": 3 } })),
            member("t@1", "smaller".into()),
            member("x@1", "meta".into()),
        ],
        "conduct": {
            "rule": "stack",
            "context": [{ "signal": "link", "enter": 0, "leave": 1, "dwell_ms": 60_000 }],
        },
    });
    for document in [plain, full] {
        let lineup: LineUp = serde_json::from_value(document.clone()).unwrap();
        lineup.check().unwrap();
        lineup.conduct.check(&lineup.members).unwrap();
        assert_eq!(serde_json::to_value(&lineup).unwrap(), document, "and nothing is added");
    }
}

#[test]
fn a_line_up_over_its_bounds_is_refused() {
    let mut world = World::new();
    let bigger = |release: &str| json!({ "release": release, "role": "bigger" });
    world.director.custom["tasks"][0]["lineup"]["members"] = json!([bigger("meter@2")]);
    world.refuses(ReasonCode::LineupConflict);
    let many: Vec<Value> = (10..20).map(|n| bigger(&format!("meter@{n}"))).collect();
    world.director.custom["tasks"][0]["lineup"]["members"] = many.into();
    world.refuses(ReasonCode::LineupConflict);
}

#[test]
fn retrained_releases_need_their_tasks_policy_and_line() {
    let mut world = World::new();
    world.director.custom = assignment(1, &[("meter", "auto.meter.gbdt@1")]);
    let approved = world.judge().unwrap();
    assert!(approved.tasks[0].1.as_ref().unwrap().champion.retrained);

    // The controller's key can make neither a policy nor a release of another line.
    let policy = world.image.listed.remove("policy.meter.json").unwrap();
    world.image.retrained_listed.insert("policy.meter.json".to_owned(), policy);
    world.refuses(ReasonCode::RetrainedNotAllowed);

    let mut world = World::new();
    let foreign = "auto.gate.gbdt.1.json";
    world.image.retrained_listed.insert(foreign.to_owned(), target(b"f", custom("meter")));
    world.director.listed.insert(foreign.to_owned(), target(b"f", Value::Null));
    world.director.custom = assignment(1, &[("meter", "auto.gate.gbdt@1")]);
    world.refuses(ReasonCode::RetrainedNotAllowed);

    let mut world = World::new();
    world.image.retrained_listed.insert("meter.9.json".to_owned(), target(b"n", custom("meter")));
    world.director.listed.insert("meter.9.json".to_owned(), target(b"n", Value::Null));
    world.director.custom = assignment(1, &[("meter", "meter@9")]);
    world.refuses(ReasonCode::NotApproved);
}

#[test]
fn before_the_first_update_nothing_is_approved() {
    let world = World::new();
    let device = "pole-1".parse().unwrap();
    let (image, director) = (world.image.trusted(), world.director.trusted());
    for (image, director) in [(&world.image.pinned(), &director), (&image, &world.director.pinned())] {
        let error = approve(image, director, &device, &profile(), &Floors::default()).unwrap_err();
        assert_eq!(error.reason(), ReasonCode::MetadataMismatch);
    }
}

#[test]
fn both_repositories_move_together_or_not_at_all() {
    let world = World::new();
    let (mut image, mut director) = (world.image.pinned(), world.director.pinned());
    let good = dunlin_protocol::Check { image: world.image.files(), director: world.director.files() };
    let mut bad = good.clone();
    bad.director.targets = None;
    assert!(dunlin_trust::update_both(&mut image, &mut director, &bad, now()).is_err());
    assert_eq!((image.versions().timestamp, director.versions().timestamp), (0, 0));
    dunlin_trust::update_both(&mut image, &mut director, &good, now()).unwrap();
    assert_eq!((image.versions().timestamp, director.versions().timestamp), (1, 1));
}
