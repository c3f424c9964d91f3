//! Releases are taken back for ever; assignments go back and forth.
use dunlin_controller::keys::Request;
use dunlin_protocol::ReasonCode;

use super::world::{Device, START_MS, World, assignment};

fn world() -> World {
    let world = World::new();
    let add = ["meter.1.json", "meter.2.json", "meter.3.json"]
        .map(|name| world.release(name, name.as_bytes()))
        .into();
    world.approve(&Request { add, ..Request::default() }, START_MS).unwrap();
    world
}

/// A fleet rollback is a new generation that names an older release, which is as approved as it ever was.
#[test]
fn a_rollback_to_an_older_approved_release_is_accepted() {
    let world = world();
    let mut device = Device::enrol(&world, "pole-1");
    for (generation, champion) in [(1, "meter@1"), (2, "meter@3"), (3, "meter@1"), (4, "meter@2")] {
        world.repos.publish_assignment(&assignment("pole-1", generation, champion), START_MS).unwrap();
        let approved = device.check(&world, START_MS).unwrap();
        assert_eq!(approved.tasks[0].1.as_ref().unwrap().champion.release.to_string(), champion);
    }
}

#[test]
fn a_withdrawn_release_is_refused_and_an_approved_one_beside_it_is_not() {
    let world = world();
    let mut device = Device::enrol(&world, "pole-1");
    world.repos.publish_assignment(&assignment("pole-1", 1, "meter@1"), START_MS).unwrap();
    assert!(device.check(&world, START_MS).unwrap().tasks[0].1.is_ok());
    let floors = [("meter".parse().unwrap(), 2)].into();
    world.approve(&Request { floors, ..Request::default() }, START_MS).unwrap();
    // The assignment did not change; the word of the offline keys did.
    let approved = device.check(&world, START_MS).unwrap();
    assert_eq!(approved.tasks[0].1.as_ref().unwrap_err().reason, ReasonCode::BelowReleaseFloor);
    world.repos.publish_assignment(&assignment("pole-1", 2, "meter@2"), START_MS).unwrap();
    assert!(device.check(&world, START_MS).unwrap().tasks[0].1.is_ok());
}

/// A release that is taken off the list is not approved any more, floor or not.
#[test]
fn a_release_off_the_list_is_refused() {
    let world = world();
    let mut device = Device::enrol(&world, "pole-1");
    world.repos.publish_assignment(&assignment("pole-1", 1, "meter@3"), START_MS).unwrap();
    world
        .approve(&Request { remove: vec!["meter.3.json".to_owned()], ..Request::default() }, START_MS)
        .unwrap();
    let approved = device.check(&world, START_MS).unwrap();
    assert_eq!(approved.tasks[0].1.as_ref().unwrap_err().reason, ReasonCode::NotApproved);
    assert!(world.repos.publish_assignment(&assignment("pole-1", 2, "meter@3"), START_MS).is_err());
}

/// "Nothing for you" is a statement about one device, too.
#[test]
fn an_empty_assignment_names_its_device() {
    let world = world();
    let mut device = Device::enrol(&world, "pole-1");
    let approved = device.check(&world, START_MS).unwrap();
    assert!(approved.tasks.is_empty());
    assert_eq!(approved.assignment.device.as_str(), "pole-1");
    let mut other = Device::enrol(&world, "pole-2");
    other.director = device.director.clone();
    let refused = dunlin_trust::approve(
        &device.image,
        &other.director,
        &other.id,
        &super::world::profile(),
        &other.floors,
    );
    assert_eq!(refused.unwrap_err().reason(), ReasonCode::WrongDevice);
}
