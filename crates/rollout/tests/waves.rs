//! Membership of waves, for any fleet.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::DeviceId;
use dunlin_rollout::{Inventory, Member, members, size};
use proptest::prelude::*;

fn fleet(classes: &[usize]) -> Inventory {
    let devices = classes.iter().enumerate().flat_map(|(class, count)| {
        (0..*count).map(move |i| {
            (
                format!("dev-{class}-{i}").parse().unwrap(),
                Member::idle(format!("class-{class}").parse().unwrap()),
            )
        })
    });
    Inventory { devices: devices.collect() }
}

fn classes_of(wave: &BTreeSet<DeviceId>, inventory: &Inventory) -> BTreeMap<String, usize> {
    let mut classes = BTreeMap::new();
    for device in wave {
        *classes.entry(inventory.devices[device].class.to_string()).or_default() += 1;
    }
    classes
}

proptest! {
    #[test]
    fn later_waves_hold_earlier_ones_and_counts_are_exact(
        classes in prop::collection::vec(1usize..40, 1..6),
        mut shares in prop::collection::vec(1u32..=1_000_000, 1..6),
        rollout in "[a-z0-9]{1,8}",
    ) {
        shares.sort_unstable();
        let inventory = fleet(&classes);
        let mut before = BTreeSet::new();
        for share in shares {
            let wave = members(&rollout, share, &inventory, &before);
            prop_assert!(before.is_subset(&wave));
            prop_assert_eq!(wave.len(), size(share, inventory.devices.len(), classes.len()));
            prop_assert_eq!(classes_of(&wave, &inventory).len(), classes.len(), "each class has a device in it");
            prop_assert_eq!(&wave, &members(&rollout, share, &inventory, &BTreeSet::new()), "history does not matter");
            before = wave;
        }
    }

    #[test]
    fn a_wave_is_in_proportion(classes in prop::collection::vec(1usize..60, 1..5), share in 1u32..=1_000_000) {
        let inventory = fleet(&classes);
        let wave = members("r", share, &inventory, &BTreeSet::new());
        let shares = classes_of(&wave, &inventory);
        for (class, count) in classes.iter().enumerate() {
            let fair = wave.len() as f64 * *count as f64 / inventory.devices.len() as f64;
            let got = shares[&format!("class-{class}")] as f64;
            // The first device of every class is given away before proportion counts.
            prop_assert!(got >= (fair - classes.len() as f64).floor() && got <= (fair + 1.0).ceil() + 1.0, "{got} of {fair}");
        }
    }

    #[test]
    fn late_joiners_push_nobody_out(first in 3usize..30, more in 1usize..30, share in 1u32..=1_000_000) {
        let before = members("r", share, &fleet(&[first]), &BTreeSet::new());
        let grown = fleet(&[first + more, 2]);
        let after = members("r", share, &grown, &before);
        prop_assert!(before.is_subset(&after));
        prop_assert_eq!(after.len(), size(share, first + more + 2, 2).max(before.len() + 1));
    }
}

#[test]
fn another_rollout_has_another_canary() {
    let inventory = fleet(&[200]);
    let canaries: BTreeSet<_> =
        (0..20).map(|i| members(&format!("r-{i}"), 1, &inventory, &BTreeSet::new())).collect();
    assert!(canaries.len() > 15, "{}", canaries.len());
}

#[test]
fn the_whole_fleet_is_the_last_wave() {
    let inventory = fleet(&[7, 1, 16]);
    let sizes = [10_000, 50_000, 250_000, 1_000_000]
        .map(|share| members("r", share, &inventory, &BTreeSet::new()).len());
    assert_eq!(sizes, [3, 3, 6, 24]);
}

#[test]
fn a_share_that_is_no_whole_number_of_devices_is_rounded_up() {
    // 6.25 devices of 25, and 1.01 of 101.
    for (classes, share, devices) in [(&[10, 8, 7][..], 250_000, 7), (&[101], 10_000, 2)] {
        let inventory = fleet(classes);
        assert_eq!(size(share, inventory.devices.len(), classes.len()), devices);
        assert_eq!(members("r", share, &inventory, &BTreeSet::new()).len(), devices);
    }
}
