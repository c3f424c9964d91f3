//! Who belongs to a wave.
//!
//! Devices are put in one order, and a wave is a prefix of it. Within a class the order is by
//! `hash(rollout, device)`, so another rollout has other canaries. Across classes it is that of Sainte-Laguë:
//! the device of rank `r` in a class of `k` stands at `(r + ½)/k`, after the first device of every class.
//! Prefixes of one order are nested whatever their length, which quota methods are not (Alabama paradox).
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{ClassName, DeviceId};

use crate::Inventory;

/// Devices of a wave of this share: `max(one per class, ceil(share · n))`.
pub fn size(share_ppm: u32, devices: usize, classes: usize) -> usize {
    let share_ppm = if weaken::off(Defence::Waves) { 1_000_000 } else { share_ppm };
    let share = (devices as u128 * u128::from(share_ppm)).div_ceil(1_000_000);
    usize::try_from(share).unwrap_or(devices).max(classes).min(devices)
}

/// The devices of a wave: those that were in the wave before, and as many more as the share asks for.
///
/// A device that joined the fleet late enters by the same order when the next wave opens; those that are in
/// stay in, so a wave may be larger than its share but never loses a device that still exists.
pub fn members(
    rollout: &str,
    share_ppm: u32,
    inventory: &Inventory,
    before: &BTreeSet<DeviceId>,
) -> BTreeSet<DeviceId> {
    let mut classes: BTreeMap<&ClassName, Vec<(u64, &DeviceId)>> = BTreeMap::new();
    for (device, member) in &inventory.devices {
        classes.entry(&member.class).or_default().push((hash(rollout, device), device));
    }
    let wanted = size(share_ppm, inventory.devices.len(), classes.len());
    let mut order = Vec::with_capacity(inventory.devices.len());
    for devices in classes.values_mut() {
        // Those who are in come first, so that a class that has a device in the wave is not given another
        // "first" one before its turn.
        devices.sort_unstable_by_key(|(key, device)| (!before.contains(*device), *key, *device));
        let of = devices.len() as u128;
        for (rank, (key, device)) in devices.iter().enumerate() {
            let place = ((2 * rank as u128 + 1) << 64) / (2 * of);
            order.push((!before.contains(*device), rank > 0, place, *key, *device));
        }
    }
    order.sort_unstable();
    order
        .into_iter()
        .enumerate()
        .filter(|(index, (is_new, not_first, ..))| *index < wanted || !is_new || !not_first)
        .map(|(_, (.., device))| device.clone())
        .collect()
}

/// FNV-1a over the rollout and the device, finished by the mixer of SplitMix64 (Steele, Lea, Flood 2014), as
/// FNV alone leaves ids that differ in the last digit close together.
fn hash(rollout: &str, device: &DeviceId) -> u64 {
    let bytes = rollout.bytes().chain([0]).chain(device.as_str().bytes());
    let mut h =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}
