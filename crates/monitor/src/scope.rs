//! Where drift is: one device (its sensor is suspect), a group (a new environment), or the whole fleet (the world
//! changed). Retraining helps against the last two and must not learn from the first.
use alloc::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::{DeviceId, GroupId};
use serde::{Deserialize, Serialize};

/// When a set of devices counts as drifted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Least share of judged devices that drifted.
    pub share_min: f64,
    /// Least number of judged devices; with fewer a device can not be told from its environment.
    pub devices_min: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { share_min: 0.5, devices_min: 3 }
    }
}

/// A device that had enough samples to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Groups it belongs to.
    pub groups: BTreeSet<GroupId>,
    /// Whether its inputs drifted.
    pub drifted: bool,
}

/// Where drift is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub enum Scope {
    /// Nowhere.
    Nowhere,
    /// In single devices while their peers are well: suspect their sensors, keep their data out of training.
    Devices {
        /// The suspects.
        suspects: BTreeSet<DeviceId>,
    },
    /// In whole groups: their environment changed.
    Groups {
        /// The groups.
        groups: BTreeSet<GroupId>,
        /// Drifted devices outside those groups, suspects like above.
        suspects: BTreeSet<DeviceId>,
    },
    /// In the fleet: the world changed.
    Fleet,
    /// Somewhere, but too few devices were judged to tell a sensor from the world.
    Unclear {
        /// The drifted devices.
        devices: BTreeSet<DeviceId>,
    },
}

/// Locates drift from one judgement per device. Devices without enough samples are left out; judge their group's
/// pooled counts instead.
pub fn locate(devices: &BTreeMap<DeviceId, Judged>, limits: &Limits) -> Scope {
    let drifted: BTreeSet<&DeviceId> =
        devices.iter().filter(|(_, judged)| judged.drifted).map(|(id, _)| id).collect();
    if drifted.is_empty() {
        return Scope::Nowhere;
    }
    if devices.len() < limits.devices_min {
        return Scope::Unclear { devices: drifted.into_iter().cloned().collect() };
    }
    let mut by_group: BTreeMap<&GroupId, (usize, usize)> = BTreeMap::new();
    for judged in devices.values() {
        for group in &judged.groups {
            let (bad, all) = by_group.entry(group).or_default();
            *bad += usize::from(judged.drifted);
            *all += 1;
        }
    }
    let many =
        |bad: usize, all: usize| all >= limits.devices_min && bad as f64 >= limits.share_min * all as f64;
    let groups: BTreeSet<&GroupId> =
        by_group.iter().filter(|&(_, &(bad, all))| many(bad, all)).map(|(&group, _)| group).collect();
    let judgeable = by_group.values().filter(|(_, all)| *all >= limits.devices_min).count();
    // One drifted group among healthy ones is a group's matter, however many of the fleet's devices it holds.
    if many(drifted.len(), devices.len()) && groups.len() == judgeable {
        return Scope::Fleet;
    }
    let inside = |id: &DeviceId| {
        devices.get(id).is_some_and(|judged| judged.groups.iter().any(|group| groups.contains(group)))
    };
    let suspects: BTreeSet<DeviceId> = drifted.into_iter().filter(|id| !inside(id)).cloned().collect();
    if groups.is_empty() {
        Scope::Devices { suspects }
    } else {
        Scope::Groups { groups: groups.into_iter().cloned().collect(), suspects }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use proptest::prelude::*;

    /// Five devices in each of the groups north and south; `bad` of each are drifted.
    fn fleet(bad_north: usize, bad_south: usize) -> BTreeMap<DeviceId, Judged> {
        let mut devices = BTreeMap::new();
        for (group, bad) in [("north", bad_north), ("south", bad_south)] {
            for i in 0..5 {
                let groups = BTreeSet::from([group.parse().unwrap()]);
                devices.insert(format!("{group}-{i}").parse().unwrap(), Judged { groups, drifted: i < bad });
            }
        }
        devices
    }

    #[test]
    fn sensor_environment_and_world_are_told_apart() {
        let limits = Limits::default();
        let scope = |north, south| locate(&fleet(north, south), &limits);
        let ids = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect::<BTreeSet<DeviceId>>();
        assert_eq!(scope(0, 0), Scope::Nowhere);
        assert_eq!(scope(1, 0), Scope::Devices { suspects: ids(&["north-0"]) });
        let north = BTreeSet::from(["north".parse().unwrap()]);
        assert_eq!(scope(5, 0), Scope::Groups { groups: north.clone(), suspects: ids(&[]) });
        assert_eq!(scope(4, 1), Scope::Groups { groups: north, suspects: ids(&["south-0"]) });
        assert_eq!(scope(4, 3), Scope::Fleet);
    }

    #[test]
    fn two_devices_can_not_tell_a_sensor_from_the_world() {
        let mut two = fleet(2, 0);
        two.retain(|id, _| ["north-0", "north-1"].contains(&id.as_str()));
        assert!(matches!(locate(&two, &Limits::default()), Scope::Unclear { .. }));
    }

    #[test]
    fn a_fleet_without_groups_is_judged_as_one() {
        let mut devices = fleet(4, 4);
        devices.values_mut().for_each(|judged| judged.groups.clear());
        assert_eq!(locate(&devices, &Limits::default()), Scope::Fleet);
    }

    proptest! {
        #[test]
        fn every_drifted_device_is_accounted_for(north in 0usize..6, south in 0usize..6) {
            match locate(&fleet(north, south), &Limits::default()) {
                Scope::Nowhere => prop_assert_eq!(north + south, 0),
                Scope::Devices { suspects } => prop_assert_eq!(suspects.len(), north + south),
                Scope::Groups { groups, suspects } => {
                    prop_assert_eq!(groups.len(), 1);
                    prop_assert_eq!(suspects.len(), north.min(south));
                }
                Scope::Fleet => prop_assert!(north >= 3 && south >= 3),
                Scope::Unclear { .. } => prop_assert!(false, "ten devices are enough"),
            }
        }
    }
}
