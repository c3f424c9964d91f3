//! Metadata that is carried: good for as long as it says, in any order with other carried and fetched files.
use dunlin_controller::keys::Request;
use dunlin_protocol::{Check, Now, ReasonCode};
use dunlin_trust::{TrustError, approve, update_both};

use super::world::{DAY_MS, Device, HOUR_MS, START_MS, World, assignment, profile};

fn world() -> World {
    let world = World::new();
    let add = ["meter.1.json", "meter.2.json", "meter.3.json"]
        .map(|name| world.release(name, name.as_bytes()))
        .into();
    world.approve(&Request { add, ..Request::default() }, START_MS).unwrap();
    world
}

fn export(world: &World, device: &str, days: u64, now_ms: u64) -> Check {
    let device = device.parse().unwrap();
    world.repos.export(&[device], days, now_ms).unwrap().into_values().next().unwrap()
}

/// Takes carried files as fetched ones are taken; the generation then in force.
fn install(device: &mut Device, check: &Check, now_ms: u64) -> Result<u64, TrustError> {
    update_both(&mut device.image, &mut device.director, check, Now { mono_ms: 0, wall_ms: Some(now_ms) })?;
    let approved = approve(&device.image, &device.director, &device.id, &profile(), &device.floors)?;
    device.floors = approved.floors.clone();
    Ok(approved.assignment.generation)
}

#[test]
fn carried_metadata_is_taken_for_as_long_as_it_says_and_no_longer() {
    let world = world();
    world.repos.publish_assignment(&assignment("pole-1", 1, "meter@1"), START_MS).unwrap();
    let check = export(&world, "pole-1", 14, START_MS);
    let new = || Device::enrol(&world, "pole-1");
    assert_eq!(install(&mut new(), &check, START_MS + 13 * DAY_MS).unwrap(), 1);
    // The same medium again changes nothing.
    let mut device = new();
    for hour in 0..3 {
        assert_eq!(install(&mut device, &check, START_MS + hour * HOUR_MS).unwrap(), 1);
    }
    let late = install(&mut new(), &check, START_MS + 14 * DAY_MS).unwrap_err();
    assert_eq!(late.reason(), ReasonCode::MetadataExpired);
    let other = install(&mut Device::enrol(&world, "pole-2"), &check, START_MS).unwrap_err();
    assert_eq!(other.reason(), ReasonCode::WrongDevice);
}

/// Three media and the network, in every order: the newest wins, older ones are refused without harm, and the network is
/// always taken in the end.
#[test]
fn media_and_network_mix_in_any_order_without_locking_a_device_out() {
    let world = world();
    let mut media = Vec::new();
    for generation in 1..=3 {
        let champion = format!("meter@{generation}");
        world.repos.publish_assignment(&assignment("pole-1", generation, &champion), START_MS).unwrap();
        media.push(export(&world, "pole-1", 14, START_MS));
        // Other devices' exports and ordinary publishing lie between.
        export(&world, "pole-2", 14, START_MS);
        world.approve(&Request::default(), START_MS).unwrap();
    }
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in orders {
        for online_at in 0..=3 {
            let mut device = Device::enrol(&world, "pole-1");
            let mut highest = 0;
            for (step, medium) in order.into_iter().enumerate() {
                if step == online_at {
                    assert_eq!(device.check(&world, START_MS).unwrap().assignment.generation, 3);
                    highest = 4;
                }
                let offered = medium as u64 + 1;
                match install(&mut device, &media[medium], START_MS) {
                    Ok(generation) => {
                        assert!(generation == offered && offered >= highest, "{order:?} {online_at}");
                        highest = offered;
                    }
                    Err(error) => {
                        assert!(offered < highest, "{order:?} {online_at}: {error}");
                        assert_eq!(error.reason(), ReasonCode::MetadataRollback);
                    }
                }
            }
            assert_eq!(
                device.check(&world, START_MS + HOUR_MS).unwrap().assignment.generation,
                3,
                "{order:?}"
            );
            assert_eq!(
                device.check(&world, START_MS + 20 * DAY_MS).unwrap().assignment.generation,
                3,
                "{order:?}"
            );
        }
    }
}

#[test]
fn an_export_beside_a_publication_takes_nothing_of_it_back() {
    let world = world();
    let published = |generation| {
        world.repos.publish_assignment(&assignment("pole-1", generation, "meter@1"), START_MS).unwrap();
    };
    published(1);
    let mut device = Device::enrol(&world, "pole-1");
    std::thread::scope(|scope| {
        for generation in 2..12 {
            let exports = scope.spawn(|| (0..4).for_each(|_| drop(export(&world, "pole-1", 1, START_MS))));
            published(generation);
            exports.join().unwrap();
            let approved = device.check(&world, START_MS).unwrap();
            assert_eq!(approved.assignment.generation, generation);
        }
    });
}
