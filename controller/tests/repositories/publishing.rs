//! What the controller publishes is what a device accepts.
use std::fs;
use std::path::Path;

use dunlin_controller::keys::{Addition, Request};
use dunlin_controller::repo::{RepoError, Repos};
use dunlin_protocol::{Now, ReasonCode, cbor};
use dunlin_trust::{RepoKind, TrustError, approve, update_both};
use serde_json::Value;

use super::world::{DAY_MS, Device, HOUR_MS, START_MS, World, assignment, data, profile};

#[test]
fn what_is_approved_and_assigned_reaches_the_device() {
    let world = World::new();
    let mut device = Device::enrol(&world, "pole-1");
    assert!(device.check(&world, START_MS).unwrap().tasks.is_empty());

    let manifest = world.release("meter.1.json", b"{}");
    let policy = world.release("policy.meter.json", b"[]");
    let policy = Addition { custom: Value::Null, ..policy };
    world.approve(&Request { add: vec![manifest.clone(), policy], ..Request::default() }, START_MS).unwrap();
    world.repos.publish_assignment(&assignment("pole-1", 1, "meter@1"), START_MS).unwrap();
    let approved = device.check(&world, START_MS).unwrap();
    let task = approved.tasks[0].1.as_ref().unwrap();
    assert_eq!(task.champion.manifest.sha256, manifest.sha256);
    assert!(task.policy.is_some());
    let file = format!("{}.meter.1.json", manifest.sha256);
    assert_eq!(world.repos.target_file(&file).unwrap().unwrap(), b"{}");

    let [only] = &world.repos.approvals().unwrap()[..] else { panic!("one release is approved") };
    assert_eq!(
        (only.release.to_string().as_str(), only.manifest, only.retrained),
        ("meter@1", manifest.sha256, false)
    );
}

#[test]
fn nothing_changed_is_answered_in_less_than_a_kibibyte() {
    let world = World::new();
    let mut device = Device::enrol(&world, "pole-1");
    device.check(&world, START_MS).unwrap();
    let check = device.ask(&world, START_MS + HOUR_MS);
    assert!(
        check.image.snapshot.is_none() && check.image.targets.is_none() && check.image.delegated.is_empty()
    );
    assert!(check.director.snapshot.is_none() && check.director.targets.is_none());
    // The rest of the kibibyte is for the heads of the request and of the answer.
    let bytes = cbor::encode(&check).len();
    assert!(bytes < 830, "{bytes}");
}

#[test]
fn retrained_releases_are_listed_by_the_controller_alone() {
    let world = World::new();
    let mut device = Device::enrol(&world, "pole-1");
    let policy = Addition { custom: Value::Null, ..world.release("policy.meter.json", b"[]") };
    world.approve(&Request { add: vec![policy], ..Request::default() }, START_MS).unwrap();
    let release = world.release("auto.meter.gbdt.1.json", b"{}");
    world.repos.publish_retrained(std::slice::from_ref(&release), START_MS).unwrap();
    world.repos.publish_assignment(&assignment("pole-1", 1, "auto.meter.gbdt@1"), START_MS).unwrap();
    let approved = device.check(&world, START_MS).unwrap();
    assert!(approved.tasks[0].1.as_ref().unwrap().champion.retrained);

    // A second one leaves the first in place.
    world.repos.publish_retrained(&[world.release("auto.meter.gbdt.2.json", b"{ }")], START_MS).unwrap();
    assert_eq!(world.repos.approvals().unwrap().len(), 2);
    let changed = Addition { length: 99, ..release };
    assert!(matches!(world.repos.publish_retrained(&[changed], START_MS), Err(RepoError::Immutable(_))));
    let foreign = world.release("meter.1.json", b"{}");
    assert!(matches!(world.repos.publish_retrained(&[foreign], START_MS), Err(RepoError::Name(_))));
}

#[test]
fn an_assignment_of_something_unapproved_is_not_published() {
    let world = World::new();
    let refused = world.repos.publish_assignment(&assignment("pole-1", 1, "meter@1"), START_MS);
    assert!(matches!(refused, Err(RepoError::NotApproved(_))));
    assert!(world.repos.assignment(&"pole-1".parse().unwrap()).unwrap().is_none());
}

#[test]
fn generations_rise_and_the_same_assignment_changes_nothing() {
    let world = World::new();
    let add = vec![world.release("meter.1.json", b"1"), world.release("meter.2.json", b"2")];
    world.approve(&Request { add, ..Request::default() }, START_MS).unwrap();
    let first = world.repos.publish_assignment(&assignment("pole-1", 4, "meter@1"), START_MS).unwrap();
    assert_eq!(world.repos.publish_assignment(&assignment("pole-1", 4, "meter@1"), START_MS).unwrap(), first);
    for generation in [3, 4] {
        let refused = world.repos.publish_assignment(&assignment("pole-1", generation, "meter@2"), START_MS);
        assert!(matches!(refused, Err(RepoError::Generation { have: 4, .. })));
    }
    world.repos.publish_assignment(&assignment("pole-1", 5, "meter@2"), START_MS).unwrap();
    assert_eq!(world.repos.assignment(&"pole-1".parse().unwrap()).unwrap().unwrap().generation, 5);
}

#[test]
fn a_device_accepts_no_other_devices_files() {
    let world = World::new();
    world
        .approve(&Request { add: vec![world.release("meter.1.json", b"1")], ..Request::default() }, START_MS)
        .unwrap();
    world.repos.publish_assignment(&assignment("pole-2", 1, "meter@1"), START_MS).unwrap();
    let mut device = Device::enrol(&world, "pole-1");
    let mut check = device.ask(&world, START_MS);
    check.director = Device::enrol(&world, "pole-2").ask(&world, START_MS).director;
    let now = Now { mono_ms: 0, wall_ms: Some(START_MS) };
    update_both(&mut device.image, &mut device.director, &check, now).unwrap();
    let refused =
        approve(&device.image, &device.director, &device.id, &profile(), &device.floors).unwrap_err();
    assert_eq!(refused.reason(), ReasonCode::WrongDevice);
}

#[test]
fn files_are_signed_anew_before_they_expire_and_only_then() {
    let mut world = World::new();
    let mut device = Device::enrol(&world, "pole-1");
    device.check(&world, START_MS).unwrap();
    let first = device.image.versions();
    device.check(&world, START_MS + HOUR_MS).unwrap();
    assert_eq!(device.image.versions(), first);
    for day in 1..200 {
        if day % 30 == 0 {
            world.reopen();
        }
        device.check(&world, START_MS + day * DAY_MS).unwrap();
    }
    let (image, director) = (device.image.versions(), device.director.versions());
    assert!(
        image.timestamp > 180 && image.snapshot < 80 && image.targets == 1 && image.retrained >= 2,
        "{image:?}"
    );
    assert!(director.timestamp > 180 && director.snapshot < 80 && director.targets >= 2, "{director:?}");
    let files = |folder: &str| fs::read_dir(data(&world.folder).join(folder)).unwrap().count();
    assert!(files("repo/director/pole-1") < 40 && files("repo/image") < 40, "old files pile up");
    // What is signed offline does expire, and then says so.
    let late = world.repos.check(&device.id, image, director, None, START_MS + 366 * DAY_MS);
    assert!(matches!(late, Err(RepoError::Trust { source: TrustError::Expired { .. }, .. })));
}

#[test]
fn published_state_survives_a_restart() {
    let (mut world, mut device) = World::with_device();
    let before = device.ask(&world, START_MS);
    world.reopen();
    assert_eq!(device.ask(&world, START_MS), before);
    device.check(&world, START_MS).unwrap();
}

#[test]
fn the_static_layout_serves_the_same_bytes() {
    let world = World::new();
    let device = Device::enrol(&world, "pole-1");
    let check = device.ask(&world, START_MS);
    let image = |name: &str| world.repos.image_file(name, START_MS).unwrap().unwrap();
    assert_eq!(image("timestamp.json"), check.image.timestamp.0);
    assert_eq!(image("1.snapshot.json"), check.image.snapshot.unwrap().0);
    assert_eq!(image("1.targets.json"), check.image.targets.unwrap().0);
    assert_eq!(image("1.retrained.json"), check.image.delegated["retrained"].0);
    assert_eq!(image("1.root.json"), world.repos.first_root(RepoKind::Image).unwrap().0);
    let director = |name: &str| world.repos.director_file(&device.id, name, START_MS).unwrap();
    assert_eq!(director("timestamp.json").unwrap(), check.director.timestamp.0);
    assert_eq!(director("1.targets.json").unwrap(), check.director.targets.unwrap().0);
    assert_eq!(director("1.root.json").unwrap(), world.repos.first_root(RepoKind::Director).unwrap().0);
    assert_eq!(director("2.root.json"), None);
    assert_eq!(director("../1.root.json"), None);
}

#[test]
fn a_damaged_repository_says_which_file() {
    let world = World::new();
    let path = data(&world.folder).join("repo/image/1.snapshot.json");
    fs::remove_file(&path).unwrap();
    let error = Repos::open(&data(&world.folder)).unwrap_err();
    assert!(matches!(&error, RepoError::Damaged { path: named } if named == &path), "{error}");
    assert!(Path::new(&path).parent().unwrap().exists());
}
