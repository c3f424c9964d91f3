//! Programs: the owner's own targets approve one for hardware of its kind, and nobody else does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod forge;

use std::collections::BTreeMap;

use dunlin_protocol::{Bytes, DeviceId, ReasonCode, RepoFiles};
use dunlin_trust::write::{self, TargetSpec};
use dunlin_trust::{ApprovedProgram, Floors, RepoKind, Signer, TrustError, TrustedRepo, approve, sha256};
use forge::{Forge, LATER_MS, key, now, profile, sign, target};
use serde_json::{Value, json};

const NAME: &str = "agent.aarch64-unknown-linux-musl.3.bin";
const RELEASE: &str = "agent.aarch64-unknown-linux-musl@3";
const PROGRAM: &[u8] = b"a program";

fn said() -> Value {
    json!({ "triple": "aarch64-unknown-linux-musl", "arch": "aarch64", "agent": "0.2.0", "schemas": [1] })
}

fn listed(custom: Value) -> TargetSpec {
    target(PROGRAM, custom)
}

struct World {
    image: Forge,
    director: Forge,
}

impl World {
    /// Both repositories name the program; what the image repository says of it is `custom`.
    fn new(custom: Value) -> Self {
        let (mut image, mut director) = (Forge::new(RepoKind::Image), Forge::new(RepoKind::Director));
        image.listed.insert(NAME.to_owned(), listed(custom));
        director.listed.insert(NAME.to_owned(), listed(Value::Null));
        director.custom = json!({
            "device": "pole-1", "generation": 1, "correlation": "c", "tasks": [],
            "program": { "release": RELEASE, "reach_ms": 60_000 },
        });
        Self { image, director }
    }

    fn judge_beside(&self, image: &TrustedRepo) -> Result<ApprovedProgram, ReasonCode> {
        let device: DeviceId = "pole-1".parse().unwrap();
        let approved = approve(image, &self.director.trusted(), &device, &profile(), &Floors::default());
        approved.unwrap().into_inner().program.unwrap().map_err(|refusal| refusal.reason)
    }

    fn judge(&self) -> Result<ApprovedProgram, ReasonCode> {
        self.judge_beside(&self.image.trusted())
    }
}

#[test]
fn what_the_owner_lists_and_the_director_names_is_approved() {
    let approved = World::new(said()).judge().unwrap();
    assert_eq!((approved.release.to_string().as_str(), approved.agent.as_str()), (RELEASE, "0.2.0"));
    assert_eq!((approved.file.digest, approved.file.length), (sha256(PROGRAM), PROGRAM.len() as u64));
    assert_eq!(approved.reach_ms, 60_000);
}

#[test]
fn an_assignment_without_a_program_asks_for_none() {
    let mut world = World::new(said());
    world.director.custom = json!({ "device": "pole-1", "generation": 1, "tasks": [] });
    let device: DeviceId = "pole-1".parse().unwrap();
    let (image, director) = (world.image.trusted(), world.director.trusted());
    let approved = approve(&image, &director, &device, &profile(), &Floors::default()).unwrap();
    assert!(approved.program.is_none());
}

/// Both sides grow: what a later controller says beside the program, and of it, is kept and ignored.
#[test]
fn what_a_later_release_says_changes_nothing() {
    let mut custom = said();
    custom["of_a_later_release"] = json!({ "any": ["thing"] });
    custom["schemas"] = json!([1, 2]);
    let mut world = World::new(custom);
    world.director.custom["of_a_later_release"] = json!(7);
    world.director.custom["program"]["of_a_later_release"] = json!("x");
    assert_eq!(world.judge().unwrap(), World::new(said()).judge().unwrap());
}

#[test]
fn wrong_hardware_and_other_schemas_have_their_reasons() {
    let with = |key: &str, value: Value| {
        let mut custom = said();
        custom[key] = value;
        World::new(custom).judge().unwrap_err()
    };
    assert_eq!(with("arch", json!("x86_64")), ReasonCode::ArchMismatch);
    assert_eq!(with("classes", json!(["orin"])), ReasonCode::ClassMismatch);
    assert_eq!(with("schemas", json!([2])), ReasonCode::SchemaUnknown);
    assert_eq!(World::new(Value::Null).judge().unwrap_err(), ReasonCode::NotApproved);
    assert_eq!(World::new(forge::custom("meter")).judge().unwrap_err(), ReasonCode::NotApproved);
    let mut for_two = said();
    for_two["classes"] = json!(["orin", "pi"]);
    World::new(for_two).judge().unwrap();
}

#[test]
fn a_withdrawn_one_is_refused() {
    let mut world = World::new(said());
    world.image.custom = json!({ "floors": { "agent.aarch64-unknown-linux-musl": 4 } });
    assert_eq!(world.judge().unwrap_err(), ReasonCode::BelowReleaseFloor);
}

#[test]
fn the_director_alone_approves_nothing_and_changes_no_byte() {
    let mut world = World::new(said());
    world.image.listed.clear();
    assert_eq!(world.judge().unwrap_err(), ReasonCode::NotApproved);
    let mut world = World::new(said());
    world.director.listed.insert(NAME.to_owned(), target(b"another program", Value::Null));
    assert_eq!(world.judge().unwrap_err(), ReasonCode::TargetMismatch);
    world.director.listed.clear();
    assert_eq!(world.judge().unwrap_err(), ReasonCode::TargetMismatch);
}

#[test]
fn the_retrained_role_can_not_list_one() {
    let mut world = World::new(said());
    let entry = world.image.listed.remove(NAME).unwrap();
    world.image.retrained_listed.insert(NAME.to_owned(), entry.clone());
    assert_eq!(world.judge().unwrap_err(), ReasonCode::NotApproved);
    // Nor under a name that its delegation covers: it is no line of programs.
    let name = "auto.agent.gbdt.1.bin";
    world.image.retrained_listed.insert(name.to_owned(), entry);
    world.director.listed.insert(name.to_owned(), listed(Value::Null));
    world.director.custom["program"]["release"] = "auto.agent.gbdt@1".into();
    assert_eq!(world.judge().unwrap_err(), ReasonCode::NotApproved);
}

/// Files in which the owner delegates every name to this role, which lists the program.
fn delegated(world: &World, role: &str) -> RepoFiles {
    let team = key();
    let mut targets = world.image.targets_value();
    targets["delegations"]["keys"][team.key_id()] = team.key().declared().clone();
    let entry = json!({ "name": role, "keyids": [team.key_id()], "threshold": 1, "terminating": true, "paths": ["*"] });
    targets["delegations"]["roles"].as_array_mut().unwrap().push(entry);
    let roles = BTreeMap::from([
        ("targets".to_owned(), world.image.versions[3]),
        ("retrained".to_owned(), world.image.versions[4]),
        (role.to_owned(), 1),
    ]);
    let own = BTreeMap::from([(NAME.to_owned(), listed(said()))]);
    let own = write::targets(1, LATER_MS, &own, &[], Value::Null).unwrap();
    let mut files = world.image.files();
    files.delegated.insert(role.to_owned(), Bytes(sign(&own, &[&team])));
    files.targets = Some(Bytes(sign(&targets, &world.image.targets.iter().collect::<Vec<_>>())));
    let snapshot = write::snapshot(world.image.versions[2], LATER_MS, &roles).unwrap();
    files.snapshot = Some(Bytes(sign(&snapshot, &[&world.image.snapshot])));
    files
}

#[test]
fn no_delegated_role_can_list_one_whatever_names_it_covers() -> Result<(), TrustError> {
    for role in ["task-meter", "team"] {
        let mut world = World::new(said());
        world.image.listed.clear();
        let mut image = world.image.pinned();
        image.update(&delegated(&world, role), now())?;
        assert_eq!(image.target(NAME).unwrap().role, role, "it is found, and still is not enough");
        assert_eq!(world.judge_beside(&image).unwrap_err(), ReasonCode::NotApproved);
    }
    Ok(())
}
