//! Which program each device is to run as its agent: a pure function from orders and outcomes to what is told.
//!
//! An order is for a group, or for every device, and the narrower one counts. Its first devices take the release before all
//! others; then at most as many try it at a time as have committed to it. So one that stays silent takes a place, and a device
//! that failed with it holds it back from every device that has not been told yet: the order waits until an operator has
//! that device try again, or gives another one.
use std::collections::BTreeMap;

use dunlin_protocol::{DeviceId, Phase, ProgramAssignment, ReasonCode, ReleaseId};

use super::DeviceOutcome;
use crate::repo::ProgramApproval;
use crate::store::{DeviceRow, ProgramOrder, ProgramRow};

/// What is known of programs.
#[derive(Debug)]
pub(super) struct Programs {
    orders: Vec<ProgramOrder>,
    approved: BTreeMap<ReleaseId, ProgramApproval>,
    /// How the last try of a release ended, by device.
    ends: BTreeMap<(DeviceId, ReleaseId), (Phase, ReasonCode)>,
}

/// What follows from orders and outcomes.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// What each device is to be told, of those that are to be told of a program at all.
    pub(super) told: BTreeMap<DeviceId, ProgramAssignment>,
    /// Releases that are held back, and the first device that failed with each.
    pub(super) held: BTreeMap<ReleaseId, DeviceId>,
}

impl Programs {
    /// From orders, approved programs without those that were `taken` in here with other bytes, and outcomes of these, oldest
    /// first.
    pub(super) fn new(
        orders: Vec<ProgramOrder>,
        approved: BTreeMap<ReleaseId, ProgramApproval>,
        taken: &[ProgramRow],
        outcomes: Vec<DeviceOutcome>,
    ) -> Self {
        let mut approved = approved;
        for program in taken {
            approved.retain(|release, approval| *release != program.release || approval.is_of(program));
        }
        let end =
            |outcome: DeviceOutcome| ((outcome.device, outcome.release), (outcome.phase, outcome.reason));
        Self { orders, approved, ends: outcomes.into_iter().map(end).collect() }
    }

    /// What each device is to be told.
    pub(super) fn wanted<'a>(
        &self,
        devices: &[DeviceRow],
        told: impl Fn(&DeviceId) -> Option<&'a ProgramAssignment>,
    ) -> Wanted {
        let mut wanted = Wanted::default();
        let mut members: Vec<Vec<&DeviceRow>> = self.orders.iter().map(|_| Vec::new()).collect();
        for device in devices {
            let before = told(&device.id).filter(|told| self.approved.contains_key(&told.release));
            wanted.told.extend(before.map(|before| (device.id.clone(), before.clone())));
            let orders = self.orders.iter().enumerate().filter(|(_, order)| self.fits(order, device));
            if let Some((at, _)) = orders.max_by_key(|(_, order)| (order.group.is_some(), order.made_ms)) {
                members[at].push(device);
            }
        }
        for (order, mut members) in self.orders.iter().zip(members) {
            // Who was given a newer one with its image is no failure of this one, and has no use for it.
            members.retain(|device| {
                self.end(device, order).is_none_or(|(_, why)| why != ReasonCode::ProgramOlder)
            });
            let phase = |device: &DeviceRow| self.end(device, order).map(|(phase, _)| phase);
            let failed =
                members.iter().find(|device| phase(device).is_some_and(|end| end != Phase::Committed));
            wanted.held.extend(failed.map(|device| (order.release.clone(), device.id.clone())));
            let committed = members.iter().filter(|device| phase(device) == Some(Phase::Committed)).count();
            let room = match usize::try_from(order.canaries).unwrap_or(usize::MAX) {
                0 => usize::MAX,
                first => first.max(committed),
            };
            let has = |wanted: &Wanted, device: &DeviceRow| {
                wanted.told.get(&device.id).is_some_and(|told| told.release == order.release)
            };
            let mut open =
                members.iter().filter(|device| has(&wanted, device) && phase(device).is_none()).count();
            let held = failed.is_some();
            // Who is there can say what becomes of it; among equals the order is by id.
            members.sort_by_key(|device| !device.online);
            for device in members {
                let has = has(&wanted, device);
                if !has && (held || open >= room) {
                    continue;
                }
                open += usize::from(!has);
                let (release, reach_ms) = (order.release.clone(), order.reach_ms);
                wanted.told.insert(device.id.clone(), ProgramAssignment { release, reach_ms });
            }
        }
        wanted
    }

    fn end(&self, device: &DeviceRow, order: &ProgramOrder) -> Option<(Phase, ReasonCode)> {
        self.ends.get(&(device.id.clone(), order.release.clone())).copied()
    }

    fn fits(&self, order: &ProgramOrder, device: &DeviceRow) -> bool {
        let custom = self.approved.get(&order.release).map(|approval| &approval.custom).filter(|custom| {
            custom.arch == device.profile.arch
                && (custom.classes.is_empty() || custom.classes.contains(&device.profile.class))
        });
        custom.is_some() && order.group.as_ref().is_none_or(|group| device.groups.contains(group))
    }
}

#[cfg(test)]
mod tests {
    use dunlin_protocol::{Arch, Blob, Budgets, DeviceProfile, Digest, ProgramCustom};

    use super::*;
    use crate::store::DeviceState;

    const LINE: &str = "agent.aarch64-unknown-linux-musl";

    fn release(version: u32) -> ReleaseId {
        format!("{LINE}@{version}").parse().unwrap()
    }

    fn device(id: &str, class: &str, group: &str) -> DeviceRow {
        let budgets = Budgets { model_bytes_max: 1, model_ram_bytes_max: 1, latency_us_max: 1 };
        DeviceRow {
            id: id.parse().unwrap(),
            state: DeviceState::Active,
            profile: DeviceProfile {
                class: class.parse().unwrap(),
                arch: Arch::Aarch64,
                cores: 1,
                ram_bytes: 1,
                budgets,
                ops: Default::default(),
                agent: "0.1.0".into(),
            },
            groups: [group.parse().unwrap()].into(),
            key_id: String::new(),
            enrolled_ms: 0,
            online: true,
            epoch: 1,
            agent: "0.1.0".into(),
            seen_ms: 1,
            generation: 1,
        }
    }

    fn custom(classes: &[&str]) -> ProgramCustom {
        ProgramCustom {
            triple: "aarch64-unknown-linux-musl".into(),
            arch: Arch::Aarch64,
            classes: classes.iter().map(|class| class.parse().unwrap()).collect(),
            agent: "0.2.0".into(),
            schemas: vec![1],
        }
    }

    fn order(version: u32, group: Option<&str>, canaries: u32) -> ProgramOrder {
        ProgramOrder {
            release: release(version),
            group: group.map(|group| group.parse().unwrap()),
            canaries,
            reach_ms: 9,
            made_by: "ann".into(),
            made_ms: u64::from(version),
        }
    }

    fn ended(device: &str, phase: Phase) -> DeviceOutcome {
        DeviceOutcome {
            device: device.parse().unwrap(),
            release: release(1),
            generation: 1,
            phase,
            reason: ReasonCode::Ok,
            received_ms: 1,
        }
    }

    fn fleet() -> Vec<DeviceRow> {
        vec![device("a", "pi", "north"), device("b", "pi", "north"), device("c", "orin", "south")]
    }

    fn told(programs: &Programs, before: &BTreeMap<DeviceId, ProgramAssignment>) -> String {
        let wanted = programs.wanted(&fleet(), |device| before.get(device));
        let words: Vec<String> = wanted
            .told
            .iter()
            .map(|(device, program)| format!("{device}{}", program.release.version))
            .collect();
        words.join(" ")
    }

    fn approval(content: u8, classes: &[&str]) -> ProgramApproval {
        ProgramApproval { digest: Digest([content; 32]), custom: custom(classes) }
    }

    fn programs(orders: &[ProgramOrder], outcomes: Vec<DeviceOutcome>) -> Programs {
        let approved = [(release(1), approval(1, &[])), (release(2), approval(2, &["orin"]))].into();
        Programs::new(orders.to_vec(), approved, &[], outcomes)
    }

    #[test]
    fn the_first_device_goes_alone_and_as_many_follow_at_a_time_as_have_committed() {
        let orders = [order(1, None, 1)];
        let nothing = BTreeMap::new();
        let first = programs(&orders, vec![]).wanted(&fleet(), |_| None).told;
        assert_eq!(told(&programs(&orders, vec![]), &nothing), "a1");
        assert_eq!(told(&programs(&orders, vec![]), &first), "a1", "one that is silent takes a place");
        let committed = vec![ended("a", Phase::Committed)];
        let second = programs(&orders, committed.clone()).wanted(&fleet(), |device| first.get(device)).told;
        assert_eq!(told(&programs(&orders, committed), &first), "a1 b1");
        let committed = vec![ended("a", Phase::Committed), ended("b", Phase::Committed)];
        assert_eq!(told(&programs(&orders, committed), &second), "a1 b1 c1");
        assert_eq!(told(&programs(&[order(1, None, 0)], vec![]), &nothing), "a1 b1 c1");
        assert_eq!(told(&programs(&[], vec![]), &nothing), "");
    }

    #[test]
    fn devices_that_are_there_go_before_those_that_are_not() {
        let mut fleet = fleet();
        fleet[0].online = false;
        let wanted = programs(&[order(1, None, 1)], vec![]).wanted(&fleet, |_| None);
        assert!(wanted.told.keys().map(DeviceId::as_str).eq(["b"]));
    }

    #[test]
    fn a_failure_holds_it_back_from_those_that_were_not_told() {
        let orders = [order(1, None, 1)];
        for phase in [Phase::RolledBack, Phase::Failed, Phase::Rejected] {
            let before = programs(&orders, vec![]).wanted(&fleet(), |_| None).told;
            let failed = programs(&orders, vec![ended("a", phase)]);
            assert_eq!(told(&failed, &before), "a1");
            let held = failed.wanted(&fleet(), |device| before.get(device)).held;
            assert_eq!(held, [(release(1), "a".parse().unwrap())].into());
        }
        let all = programs(&[order(1, None, 0)], vec![]).wanted(&fleet(), |_| None).told;
        let failed = vec![ended("a", Phase::Committed), ended("b", Phase::RolledBack)];
        assert_eq!(told(&programs(&orders, failed.clone()), &all), "a1 b1 c1", "what was told stays");
        assert_eq!(told(&programs(&orders, failed), &BTreeMap::new()), "");
    }

    #[test]
    fn an_image_that_brings_a_newer_one_is_no_failure() {
        let mut older = ended("a", Phase::RolledBack);
        older.reason = ReasonCode::ProgramOlder;
        assert_eq!(told(&programs(&[order(1, None, 1)], vec![older]), &BTreeMap::new()), "b1");
    }

    #[test]
    fn a_group_comes_before_everybody_and_hardware_before_both() {
        let nothing = BTreeMap::new();
        let orders = [order(1, None, 0), order(2, Some("south"), 0)];
        assert_eq!(told(&programs(&orders, vec![]), &nothing), "a1 b1 c2");
        let orders = [order(2, Some("north"), 0)];
        assert_eq!(told(&programs(&orders, vec![]), &nothing), "", "it is approved for another class");
    }

    #[test]
    fn what_is_approved_no_more_is_told_no_more() {
        let before = programs(&[order(1, None, 0)], vec![]).wanted(&fleet(), |_| None).told;
        let withdrawn = Programs::new(vec![order(1, None, 0)], BTreeMap::new(), &[], vec![]);
        assert_eq!(told(&withdrawn, &before), "");
    }

    #[test]
    fn a_number_under_which_other_bytes_were_approved_is_not_told() {
        let taken = |content| ProgramRow {
            release: release(1),
            blob: Blob { digest: Digest([content; 32]), length: 1 },
            custom: custom(&[]),
            created_by: "ann".into(),
            created_ms: 1,
        };
        for (content, expected) in [(1, "a1 b1 c1"), (7, "")] {
            let approved = [(release(1), approval(1, &[]))].into();
            let programs = Programs::new(vec![order(1, None, 0)], approved, &[taken(content)], vec![]);
            assert_eq!(told(&programs, &BTreeMap::new()), expected);
        }
    }
}
