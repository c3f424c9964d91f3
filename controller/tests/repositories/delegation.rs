//! Tasks with signers of their own: from the delegation to the device.
use std::fs;
use std::path::{Path, PathBuf};

use dunlin_controller::keys::{self, Delegation, KeyError, Keyring, OfflineRole, Request, RoleChange};
use dunlin_controller::repo::{Offline, RepoError};
use dunlin_protocol::{Now, ReasonCode, TaskId};
use dunlin_trust::{Signer, TrustError, approve, held_roles, task_role, update_both};
use serde_json::json;

use super::world::{Device, HOUR_MS, START_MS, World, assignment, data, profile};

const ROLE: &str = "task-meter";

pub(crate) fn task() -> TaskId {
    "meter".parse().unwrap()
}

/// Where the task's signers keep their keys.
pub(crate) fn team(world: &World) -> PathBuf {
    world.folder.path().join("team")
}

/// Gives the task `n` new keys and takes others away; `safe` holds the owner's.
pub(crate) fn delegate(
    world: &World,
    safe: &Path,
    n: u32,
    threshold: u32,
    revoked: Vec<String>,
    now_ms: u64,
) -> Offline {
    let task = task();
    let role = world.repos.image().unwrap().stored().delegated.remove(ROLE);
    let made = keys::make_keys(&team(world), &keys::task_prefix(&task), n, None).unwrap();
    let owners = Keyring::from(safe).signers(OfflineRole::ImageTargets.prefix()).unwrap();
    let folder = team(world);
    let holders = Keyring::from(&folder).signers(&keys::task_prefix(&task)).unwrap();
    let owners: Vec<&dyn Signer> = owners.iter().map(|signer| signer as &dyn Signer).collect();
    let holders: Vec<&dyn Signer> = holders.iter().map(|signer| signer as &dyn Signer).collect();
    let delegation = Delegation {
        task: task.clone(),
        lines: vec!["dial".parse().unwrap()],
        keys: RoleChange {
            add: made.iter().map(|signer| signer.key().clone()).collect(),
            drop: revoked,
            threshold: Some(threshold),
        },
    };
    let role = role.as_ref().map(|bytes| bytes.as_slice());
    let made =
        keys::delegate(&world.current_targets(), role, &delegation, &owners, &holders, now_ms).unwrap();
    Offline { targets: Some(made.targets), tasks: [(task, made.role)].into(), ..Offline::default() }
}

fn role_file(world: &World) -> Vec<u8> {
    world.repos.image().unwrap().stored().delegated.remove(ROLE).unwrap().0
}

fn sign(world: &World, request: &Request, now_ms: u64) -> Result<(), RepoError> {
    let signed = keys::sign_task(&task(), &role_file(world), request, &team(world), now_ms).unwrap();
    let folder = team(world);
    let holders = Keyring::from(&folder).signers(&keys::task_prefix(&task())).unwrap();
    let holders: Vec<&dyn Signer> = holders.iter().map(|signer| signer as &dyn Signer).collect();
    let with = keys::sign_task_with(&task(), &role_file(world), request, &holders, now_ms).unwrap();
    assert_eq!(with, signed, "wherever the keys are");
    world.repos.publish_task(&task(), &signed, now_ms)
}

fn add(world: &World, name: &str) -> Request {
    Request { add: vec![world.release(name, name.as_bytes())], ..Request::default() }
}

/// A task that had releases before it got signers of its own, and a device that runs one.
fn delegated() -> (World, Device) {
    let (mut world, mut device) = World::with_device();
    device.check(&world, START_MS).unwrap();
    let offline = delegate(&world, &world.safe(), 2, 1, vec![], START_MS);
    world.publish(&offline, START_MS).unwrap();
    (world, device)
}

#[test]
fn a_team_signs_releases_of_its_own_task_alone() {
    let (world, mut device) = delegated();
    // What it had is its own from now on, and still approved.
    assert!(!String::from_utf8(world.current_targets()).unwrap().contains("meter.1.json"));
    let approved = device.check(&world, START_MS + HOUR_MS).unwrap();
    assert!(approved.tasks[0].1.is_ok());
    assert_eq!(device.floors.roles[ROLE], 1);

    sign(&world, &add(&world, "dial.1.json"), START_MS).unwrap();
    sign(&world, &add(&world, "meter.2.json"), START_MS).unwrap();
    let releases = world.repos.approvals().unwrap();
    assert_eq!(
        releases.iter().map(|one| one.release.to_string()).collect::<Vec<_>>(),
        ["dial@1", "meter@1", "meter@2"]
    );
    assert!(releases.iter().all(|one| !one.retrained));
    world.repos.publish_assignment(&assignment("pole-1", 2, "meter@2"), START_MS).unwrap();
    let approved = device.check(&world, START_MS + 2 * HOUR_MS).unwrap();
    assert_eq!(approved.tasks[0].1.as_ref().unwrap().champion.release.to_string(), "meter@2");

    // Neither another task's release, nor a name that is not its own.
    let mut foreign = add(&world, "meter.3.json");
    foreign.add[0].custom["task"] = json!("gate");
    let refused = keys::sign_task(&task(), &role_file(&world), &foreign, &team(&world), START_MS);
    assert!(matches!(refused, Err(KeyError::Request(_))));
    let refused = sign(&world, &add(&world, "gate.1.json"), START_MS).unwrap_err();
    assert!(matches!(&refused, RepoError::Name(name) if name == "gate.1.json"), "{refused}");
    let floors = Request { floors: [("gate".parse().unwrap(), 2)].into(), ..Request::default() };
    assert!(matches!(sign(&world, &floors, START_MS), Err(RepoError::Name(_))));
    // A file that was published before is not published again, nor one of a task that has no signers.
    let again = role_file(&world);
    assert!(world.repos.publish_task(&task(), &again, START_MS).is_err());
    let gate = "gate".parse().unwrap();
    assert!(matches!(world.repos.publish_task(&gate, &again, START_MS), Err(RepoError::NotDelegated(_))));
    // Nor do the owner's keys sign for the team.
    assert!(keys::sign_task(&task(), &again, &Request::default(), &world.safe(), START_MS).is_err());
}

#[test]
fn a_team_withdraws_its_releases() {
    let (world, mut device) = delegated();
    let floors = Request { floors: [("meter".parse().unwrap(), 2)].into(), ..Request::default() };
    sign(&world, &floors, START_MS).unwrap();
    assert!(world.repos.approvals().unwrap().is_empty());
    assert_eq!(world.repos.release_floors().unwrap()[&"meter".parse().unwrap()], 2);
    let approved = device.check(&world, START_MS + HOUR_MS).unwrap();
    assert_eq!(approved.tasks[0].1.as_ref().unwrap_err().reason, ReasonCode::BelowReleaseFloor);
    assert_eq!(device.floors.releases[&"meter".parse().unwrap()], 2);
}

#[test]
fn a_second_signature_is_needed_where_the_delegation_says_so() {
    let (mut world, _) = World::with_device();
    let offline = delegate(&world, &world.safe(), 2, 2, vec![], START_MS);
    world.publish(&offline, START_MS).unwrap();
    let (prefix, one) = (keys::task_prefix(&task()), world.folder.path().join("one"));
    fs::create_dir(&one).unwrap();
    let first = format!("{prefix}-1.pem");
    fs::copy(team(&world).join(&first), one.join(&first)).unwrap();
    let request = add(&world, "meter.2.json");
    let alone = keys::sign_task(&task(), &role_file(&world), &request, &one, START_MS).unwrap();
    let refused = world.repos.publish_task(&task(), &alone, START_MS).unwrap_err();
    assert!(matches!(
        refused,
        RepoError::Trust { source: TrustError::Threshold { have: 1, need: 2, .. }, .. }
    ));
    let both = keys::cosign(&alone, &prefix, &team(&world)).unwrap();
    world.repos.publish_task(&task(), &both, START_MS).unwrap();
}

#[test]
fn the_owner_takes_a_stolen_key_of_a_team_away() {
    let (mut world, mut device) = delegated();
    let folder = team(&world);
    let stolen = keys::load(&folder.join("task-meter.key-1.pem"), None).unwrap();
    let thief = world.folder.path().join("thief");
    fs::create_dir(&thief).unwrap();
    fs::rename(folder.join("task-meter.key-1.pem"), thief.join("task-meter.key-1.pem")).unwrap();
    let offline = delegate(&world, &world.safe(), 0, 1, vec![stolen.key_id().to_owned()], START_MS);
    world.publish(&offline, START_MS).unwrap();
    let request = add(&world, "meter.2.json");
    let forged = keys::sign_task(&task(), &role_file(&world), &request, &thief, START_MS).unwrap();
    let refused = world.repos.publish_task(&task(), &forged, START_MS).unwrap_err();
    assert!(
        matches!(refused, RepoError::Trust { source: TrustError::Threshold { have: 0, .. }, .. }),
        "{refused}"
    );
    sign(&world, &request, START_MS).unwrap();
    device.check(&world, START_MS + HOUR_MS).unwrap();
    assert_eq!(device.image.role_versions()[ROLE], 3);
    // Another key for the retrained role leaves the team's alone.
    let online = keys::OnlineKeys::read(&data(&world.folder).join("keys/online.json")).unwrap();
    let key = online.of(keys::OnlineRole::Retrained).declared().clone();
    let request = Request { retrained_key: Some(key), ..Request::default() };
    world.approve(&request, START_MS).unwrap();
    device.check(&world, START_MS + 2 * HOUR_MS).unwrap();
    assert_eq!(world.repos.approvals().unwrap().len(), 2);
    // The controller does not run beside a team's key.
    fs::copy(folder.join("task-meter.key-2.pem"), data(&world.folder).join("spare.pem")).unwrap();
    assert!(matches!(keys::guard(&data(&world.folder)), Err(KeyError::Guarded { .. })));
}

#[test]
fn a_device_is_given_the_roles_of_its_own_tasks() {
    let (mut world, mut device) = delegated();
    assert_eq!(device.ask(&world, START_MS).image.delegated.keys().filter(|role| *role == ROLE).count(), 1);
    // Another device, without the task, is spared the file and judges all else.
    let mut other = Device::enrol(&world, "pole-2");
    assert!(!other.ask(&world, START_MS).image.delegated.contains_key(ROLE));
    other.check(&world, START_MS).unwrap();
    assert!(other.image.role_versions().is_empty());
    // When it gets the task it gets the file, though nothing of the image repository has changed.
    world.repos.publish_assignment(&assignment("pole-2", 1, "meter@1"), START_MS).unwrap();
    assert!(other.check(&world, START_MS).unwrap().tasks[0].1.is_ok());
    assert!(!other.ask(&world, START_MS).image.delegated.contains_key(ROLE), "it holds it already");
    // What is said is about its own tasks: when one of them is taken away, nothing is missing.
    let (image, director) = (other.image.versions(), other.director.versions());
    let held = held_roles(&other.image, &other.director);
    let ask = |said: &str| {
        let check = world.repos.check(&other.id, image, director, Some(said), START_MS).unwrap();
        check.image.delegated.contains_key(ROLE)
    };
    assert!(held.len() == 16 && !ask(&held) && ask("") && ask("0123456789abcdef"), "{held}");
    let mut none = assignment("pole-2", 2, "meter@1");
    none.tasks.clear();
    world.repos.publish_assignment(&none, START_MS).unwrap();
    other.check(&world, START_MS).unwrap();
    assert_eq!(held_roles(&other.image, &other.director), "");
    assert!(!other.ask(&world, START_MS).image.delegated.contains_key(ROLE));
    // An agent that does not say which it holds gets all of them.
    let (image, director) = (device.image.versions(), device.director.versions());
    let id = "pole-3".parse().unwrap();
    let all = world.repos.check(&id, image, director, None, START_MS).unwrap();
    assert!(all.image.delegated.contains_key(ROLE));
    // It lasts over a restart, and in the static layout.
    world.reopen();
    device.check(&world, START_MS + HOUR_MS).unwrap();
    let name = format!("1.{}.json", task_role(&task()));
    assert_eq!(world.repos.image_file(&name, START_MS).unwrap().unwrap(), role_file(&world));
    // Carried files have it too.
    let check = world.repos.export(&[device.id.clone()], 7, START_MS).unwrap().into_values().next().unwrap();
    let mut carried = Device::enrol(&world, "pole-1");
    let now = Now { mono_ms: 0, wall_ms: Some(START_MS) };
    update_both(&mut carried.image, &mut carried.director, &check, now).unwrap();
    let approved =
        approve(&carried.image, &carried.director, &carried.id, &profile(), &carried.floors).unwrap();
    assert!(approved.tasks[0].1.is_ok());
}

#[test]
fn names_with_a_meaning_of_their_own_are_not_delegated() {
    let world = World::new();
    for (name, line) in [("auto", "x"), ("policy", "x"), ("meter", "auto.meter.gbdt"), ("meter", "policy.x")]
    {
        let delegation = Delegation {
            task: name.parse().unwrap(),
            lines: vec![line.parse().unwrap()],
            keys: RoleChange::default(),
        };
        let refused = keys::delegate(&world.current_targets(), None, &delegation, &[], &[], START_MS);
        assert!(matches!(refused, Err(KeyError::Request(_))), "{name} {line}");
    }
}
