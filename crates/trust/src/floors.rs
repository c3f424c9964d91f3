//! The floors record: the highest of everything a device has seen, which nothing may fall below. It lies apart
//! from the cached metadata, because a power cut leaves those files torn, and a torn file must not read as
//! "nothing seen yet".
//!
//! The shell keeps two copies and writes each record to both, one after the other, syncing in between. A cut
//! at any byte then leaves one whole copy, with the old record or the new one.
use std::collections::BTreeMap;

use dunlin_protocol::{Digest, ModelName, Now, RepoVersions, cbor};
use serde::{Deserialize, Serialize};

use crate::TrustError;
use crate::key::sha256;

/// The keys under which something was counted. Who steals them counts as far as numbers go; when a root names others, counting
/// begins anew (as specification §5.3.11 has it for metadata versions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedBy {
    /// Version of the root that was trusted when they were first seen.
    pub root: u64,
    /// Digest over their ids.
    pub keys: Digest,
}

/// What a device never goes back behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Floors {
    /// Versions of the image repository.
    pub image: RepoVersions,
    /// Versions of the director repository.
    pub director: RepoVersions,
    /// Versions of the image repository's roles of single tasks, by name; none in records of agents before this field.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<String, u64>,
    /// Generation of the last accepted assignment.
    pub generation: u64,
    /// Digest of that assignment and of what the director said about its targets, so that the same generation
    /// is accepted again only with the same content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assignment: Option<Digest>,
    /// The director's targets keys that signed it; `None` in records of agents before this field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted_by: Option<CountedBy>,
    /// Latest wall time at which metadata was judged fresh, Unix milliseconds.
    pub wall_ms: u64,
    /// Release floors by model line, from offline-signed metadata alone.
    pub releases: BTreeMap<ModelName, u32>,
    /// Number of the last accepted down-message.
    pub down_seq: u64,
    /// The director's timestamp keys, of which one signed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_from: Option<CountedBy>,
}

/// How far a hint may move the time beyond what is known, milliseconds: as long as a device may lie in a drawer and be
/// expected back. A hint beyond that is a mistake, or a stolen key.
pub const HINT_AHEAD_MS_MAX: u64 = 5 * 365 * 24 * 60 * 60 * 1000;

impl Floors {
    /// Whether nothing here lies below what was there `before`.
    pub fn not_below(&self, before: &Self) -> bool {
        let versions = |of: &RepoVersions| [of.root, of.timestamp, of.snapshot, of.targets, of.retrained];
        let numbers = |of: &Self| {
            [versions(&of.image), versions(&of.director), [of.generation, of.wall_ms, of.down_seq, 0, 0]]
                .concat()
        };
        let releases = before.releases.iter().all(|(name, floor)| self.releases.get(name) >= Some(floor));
        let roles = before.roles.iter().all(|(role, floor)| self.roles.get(role) >= Some(floor));
        releases && roles && numbers(before).iter().zip(numbers(self)).all(|(before, now)| *before <= now)
    }

    /// The time to judge by: the clock's, or the latest at which metadata was judged fresh if the clock lies before it.
    /// Time does not run backwards, and who can set the clock back could as well set it to that time; refusing to judge
    /// would only keep a device with a bad battery from its updates.
    ///
    /// # Errors
    /// [`TrustError::ClockUnknown`].
    pub fn check_clock(&self, now: Now) -> Result<u64, TrustError> {
        Ok(now.wall_ms.ok_or(TrustError::ClockUnknown)?.max(self.wall_ms))
    }

    /// Whether a time that the director signed may set the clock: it must not lie before `known_ms`, nor more than
    /// [`HINT_AHEAD_MS_MAX`] after that or after the latest time at which metadata was judged fresh. It may lie before
    /// the latter, so that a hint that was ahead can be corrected; [`Floors::check_clock`] judges by the later of the
    /// two. The hint is never kept: only what metadata was judged fresh at raises the floor, and no online key can
    /// raise it past the expiry of what the offline keys signed.
    pub fn admits_hint(&self, hint_ms: u64, known_ms: u64) -> bool {
        let latest = self.wall_ms.max(known_ms).saturating_add(HINT_AHEAD_MS_MAX);
        (known_ms..=latest).contains(&hint_ms)
    }
}

/// How far the latest verified time may run ahead of what is on disk, milliseconds. A timestamp lives for a day and is
/// judged every few minutes; writing each of these times would be most of what an idle device writes.
pub const UNKEPT_MS_MAX: u64 = 60 * 60 * 1000;

impl Floors {
    /// Whether these may wait in memory where `kept` is on disk: nothing else rose than the time, by less than
    /// [`UNKEPT_MS_MAX`], and the number of the last message, which is kept on its own where it matters.
    pub fn may_wait(&self, kept: &Self) -> bool {
        let rest = Self {
            wall_ms: self.wall_ms,
            down_seq: self.down_seq,
            heard_from: self.heard_from,
            ..kept.clone()
        };
        rest == *self && self.wall_ms.saturating_sub(kept.wall_ms) < UNKEPT_MS_MAX
    }
}

/// First bytes of a record; the digit is the format number.
const MAGIC: &[u8; 8] = b"DUNFLR1\n";
/// Bytes before the body: magic, number of the write (u64, big-endian), length of the body (u32, big-endian).
const HEADER_BYTES: usize = MAGIC.len() + 8 + 4;
/// SHA-256 over all before it.
const CHECKSUM_BYTES: usize = 32;
/// Largest body: some thousand model lines.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// The record as one file. `write` counts the writes and tells the newer of two copies.
pub fn encode(floors: &Floors, write: u64) -> Vec<u8> {
    let body = cbor::encode(floors);
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len() + CHECKSUM_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&write.to_be_bytes());
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(&body);
    let checksum = sha256(&out);
    out.extend_from_slice(&checksum.0);
    out
}

fn decode(file: &[u8]) -> Option<(u64, Floors)> {
    let (content, checksum) = file.split_last_chunk::<CHECKSUM_BYTES>()?;
    let rest = content.strip_prefix(MAGIC)?;
    let (write, rest) = rest.split_first_chunk::<8>()?;
    let (length, body) = rest.split_first_chunk::<4>()?;
    let whole = u32::from_be_bytes(*length) as usize == body.len() && sha256(content).0 == *checksum;
    let floors = whole.then(|| cbor::decode(body, BODY_BYTES_MAX).ok())??;
    Some((u64::from_be_bytes(*write), floors))
}

/// What was found where the record should be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one is made at each start, and taken apart at once")]
pub enum Recovery {
    /// Neither file exists: the device was never enrolled.
    Fresh,
    /// The newest whole copy.
    Known {
        /// The floors.
        floors: Floors,
        /// Number of its write; the next one is higher.
        write: u64,
        /// Whether the copies differ, or one is torn or absent, so that both should be written anew.
        repair: bool,
    },
}

/// Reads both copies; `None` stands for a file that does not exist, not for one that can not be read.
///
/// # Errors
/// A copy exists and none is whole. Nothing may be accepted then.
pub fn recover(a: Option<&[u8]>, b: Option<&[u8]>) -> Result<Recovery, TrustError> {
    if a.is_none() && b.is_none() {
        return Ok(Recovery::Fresh);
    }
    let repair = a != b;
    let newest = [a, b].into_iter().flatten().filter_map(decode).max_by_key(|(write, _)| *write);
    let (write, floors) = newest.ok_or(TrustError::FloorsDamaged)?;
    Ok(Recovery::Known { floors, write, repair })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn floors(n: u64) -> Floors {
        let image = RepoVersions { root: n, timestamp: n * 3, snapshot: n * 2, targets: n, retrained: n };
        let releases =
            BTreeMap::from([("meter".parse().unwrap(), n as u32), ("auto.meter.gbdt".parse().unwrap(), 1)]);
        Floors {
            image,
            generation: n,
            wall_ms: n * 1000,
            releases,
            assignment: Some(Digest([7; 32])),
            ..Floors::default()
        }
    }

    #[test]
    fn a_record_without_floors_of_task_roles_reads_as_before() {
        let old = cbor::encode(&floors(4));
        assert!(
            !old.windows(5).any(|bytes| bytes == b"roles"),
            "an older agent is given what it does not know"
        );
        assert_eq!(cbor::decode::<Floors>(&old, BODY_BYTES_MAX).unwrap(), floors(4));
        let new = Floors { roles: BTreeMap::from([("task-meter".to_owned(), 7)]), ..floors(4) };
        assert_eq!(decode(&encode(&new, 1)), Some((1, new)));
    }

    #[test]
    fn nothing_at_all_is_fresh_and_only_that() {
        assert_eq!(recover(None, None).unwrap(), Recovery::Fresh);
        for (a, b) in [(Some(&b""[..]), None), (None, Some(&b"DUNFLR1\n"[..])), (Some(b""), Some(b""))] {
            assert!(matches!(recover(a, b), Err(TrustError::FloorsDamaged)));
        }
    }

    /// A write goes to both copies in turn; whatever byte the power is cut at, and whether the rest of the
    /// file is old, missing or noise, the floors are the old or the new ones.
    #[test]
    fn a_cut_at_every_byte_of_a_write_leaves_the_old_or_the_new_floors() {
        let (old, new) = (encode(&floors(4), 8), encode(&floors(5), 9));
        let known = |a: &[u8], b: &[u8]| match recover(Some(a), Some(b)) {
            Ok(Recovery::Known { floors, .. }) => floors,
            other => panic!("{other:?}"),
        };
        for cut in 0..=new.len() {
            let short = new[..cut].to_vec();
            let over_old = [&new[..cut], old.get(cut..).unwrap_or_default()].concat();
            let noise = [&new[..cut], &vec![0xff; new.len() - cut]].concat();
            for torn in [short, over_old, noise] {
                let first = known(&torn, &old);
                assert!(first == floors(5) || first == floors(4), "first copy cut at {cut}");
                assert_eq!(first == floors(5), torn == new, "first copy cut at {cut}");
                assert_eq!(known(&new, &torn), floors(5), "second copy cut at {cut}");
            }
        }
    }

    #[test]
    fn an_absent_copy_is_repaired_from_the_other() {
        let file = encode(&floors(2), 3);
        let found = recover(None, Some(&file)).unwrap();
        assert_eq!(found, Recovery::Known { floors: floors(2), write: 3, repair: true });
    }

    #[test]
    fn any_number_that_went_down_lies_below() {
        let before = Floors { roles: BTreeMap::from([("task-meter".to_owned(), 7)]), ..floors(4) };
        assert!(before.not_below(&before));
        assert!(Floors { down_seq: 1, ..before.clone() }.not_below(&before));
        for lower in [
            Floors { generation: 3, ..before.clone() },
            Floors { wall_ms: 0, ..before.clone() },
            Floors { image: floors(3).image, ..before.clone() },
            Floors { roles: BTreeMap::new(), ..before.clone() },
            Floors { releases: BTreeMap::new(), ..before.clone() },
        ] {
            assert!(!lower.not_below(&before), "{lower:?}");
        }
    }

    #[test]
    fn only_time_may_wait_and_not_for_long() {
        let kept = floors(4);
        let later = |ms| Floors { wall_ms: kept.wall_ms + ms, ..kept.clone() };
        assert!(kept.may_wait(&kept) && later(UNKEPT_MS_MAX - 1).may_wait(&kept));
        assert!(!later(UNKEPT_MS_MAX).may_wait(&kept));
        assert!(Floors { down_seq: 9, ..later(1) }.may_wait(&kept));
        for higher in [
            Floors { image: floors(5).image, ..kept.clone() },
            Floors { director: floors(5).image, ..kept.clone() },
            Floors { roles: BTreeMap::from([("task-meter".to_owned(), 7)]), ..kept.clone() },
            Floors { generation: 5, ..kept.clone() },
            Floors { assignment: None, ..kept.clone() },
            Floors { counted_by: Some(CountedBy { root: 1, keys: Digest([1; 32]) }), ..kept.clone() },
            Floors { releases: floors(5).releases, ..kept.clone() },
        ] {
            assert!(!higher.may_wait(&kept), "{higher:?}");
        }
    }

    #[test]
    fn time_does_not_run_backwards() {
        let floors = floors(5);
        let at = |wall_ms| floors.check_clock(Now { mono_ms: 0, wall_ms });
        assert!(matches!(at(None), Err(TrustError::ClockUnknown)));
        assert_eq!(at(Some(4_999)).unwrap(), 5_000);
        assert_eq!(at(Some(5_000)).unwrap(), 5_000);
        assert_eq!(at(Some(5_001)).unwrap(), 5_001);
    }

    #[test]
    fn a_hint_sets_the_clock_within_its_bound() {
        let floors = floors(5);
        for (hint, known, admitted) in [
            (4_999, 0, true),
            (5_000 + HINT_AHEAD_MS_MAX, 0, true),
            (5_001 + HINT_AHEAD_MS_MAX, 0, false),
            (u64::MAX, 0, false),
            (8_999, 9_000, false),
            (9_000 + HINT_AHEAD_MS_MAX, 9_000, true),
        ] {
            assert_eq!(floors.admits_hint(hint, known), admitted, "{hint} {known}");
        }
    }

    proptest! {
        #[test]
        fn one_changed_bit_anywhere_is_noticed(bit in 0usize..2400) {
            let whole = encode(&floors(3), 1);
            let mut torn = whole.clone();
            let bit = bit % (torn.len() * 8);
            torn[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(recover(Some(&torn), None).is_err());
            let found = recover(Some(&torn), Some(&whole)).unwrap();
            prop_assert_eq!(found, Recovery::Known { floors: floors(3), write: 1, repair: true });
        }

        #[test]
        fn random_bytes_never_panic(a in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(recover(Some(&a), None).is_err());
            let headed = [&MAGIC[..], &a].concat();
            prop_assert!(recover(Some(&headed), None).is_err());
        }
    }
}
