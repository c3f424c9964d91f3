//! What a power cut, a bad card or an old backup leaves of the trust folder: never less than the known floor, and never
//! a device that stays dead.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dunlin_protocol::{AckRange, Bytes, ModelName, RepoFiles};
use dunlin_trust::{Ed25519Signer, Signer, envelope};
use rustix::io::Errno;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

// The repository whose every file can be bent, as the tests of `dunlin-trust` use it.
#[path = "../../../../crates/trust/tests/forge/mod.rs"]
mod forge;

mod idle;
mod time;

pub(crate) use forge::profile;
use forge::{Forge, LATER_MS, NOW_MS, custom, now, sign, target};

const DEVICE: &str = "pole-1";
/// The role of a task's own signers.
const ROLE: &str = "task-gate";
/// Everything that a device keeps of trust, in the order in which [`Trusted::accept`] and [`Trusted::approve`] write it.
const FILES: [&str; 6] = ["image.a", "image.b", "director.a", "director.b", "floors.a", "floors.b"];

pub(crate) struct World {
    image: Forge,
    director: Forge,
    /// The key of a task's own signers, and the version of their file.
    team: (Ed25519Signer, u64),
}

impl World {
    pub(crate) fn new() -> Self {
        let (mut image, mut director) = (Forge::new(RepoKind::Image), Forge::new(RepoKind::Director));
        image.listed.insert("meter.2.json".to_owned(), target(b"manifest 2", custom("meter")));
        image.custom = json!({ "floors": { "meter": 2 } });
        director.listed.insert("meter.2.json".to_owned(), target(b"manifest 2", Value::Null));
        let mut world = Self { image, director, team: (forge::key(), 1) };
        world.assign(1);
        world
    }

    pub(crate) fn assign(&mut self, generation: u64) {
        let tasks: Vec<Value> = vec![];
        self.director.custom =
            json!({ "device": DEVICE, "generation": generation, "correlation": "c", "tasks": tasks });
    }

    /// Signs an assignment that names another device or class than this one.
    pub(crate) fn assign_for(&mut self, part: &str, other: &str) {
        self.director.custom[part] = other.into();
    }

    /// Withdraws what lies below this version of the one model.
    pub(crate) fn withdraw_below(&mut self, floor: u32) {
        self.image.custom = json!({ "floors": { "meter": floor } });
    }

    /// The next release of everything.
    pub(crate) fn bump(&mut self, generation: u64) {
        self.image.bump();
        self.director.bump();
        self.team.1 += 1;
        self.assign(generation);
    }

    pub(crate) fn check(&self) -> Check {
        Check { image: self.image_files(), director: self.director.files() }
    }

    /// The image files, with those of a role of a single task.
    fn image_files(&self) -> RepoFiles {
        let (mut files, mut targets) = (self.image.files(), self.image.targets_value());
        let (key, version) = &self.team;
        targets["delegations"]["keys"][key.key_id()] = key.key().declared().clone();
        let delegation = json!({
            "name": ROLE, "keyids": [key.key_id()], "threshold": 1, "terminating": true, "paths": ["gate.*.json"],
        });
        targets["delegations"]["roles"].as_array_mut().unwrap().push(delegation);
        let [_, _, snapshot, of_targets, retrained] = self.image.versions;
        let roles = [("targets", of_targets), ("retrained", retrained), (ROLE, *version)];
        let roles = roles.map(|(role, version)| (role.to_owned(), version)).into();
        let snapshot = dunlin_trust::write::snapshot(snapshot, LATER_MS, &roles).unwrap();
        let own =
            dunlin_trust::write::targets(*version, LATER_MS, &BTreeMap::new(), &[], Value::Null).unwrap();
        files.targets = Some(Bytes(sign(&targets, &self.image.targets.iter().collect::<Vec<_>>())));
        files.snapshot = Some(Bytes(sign(&snapshot, &[&self.image.snapshot])));
        files.delegated.insert(ROLE.to_owned(), Bytes(sign(&own, &[key])));
        files
    }

    pub(crate) fn open(&self, dir: &Path) -> Trusted {
        let device = DEVICE.parse().unwrap();
        Trusted::open(dir, device, profile(), &self.image.roots[0], &self.director.roots[0]).unwrap()
    }

    /// The same on a medium.
    fn open_on(
        &self,
        dir: &Path,
        read: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
    ) -> Result<Trusted, TrustedError> {
        let (device, roots) = (DEVICE.parse().unwrap(), [&self.image.roots[0], &self.director.roots[0]]);
        Trusted::open_with(dir, device, profile(), roots[0], roots[1], read)
    }
}

pub(crate) fn take(trusted: &mut Trusted, check: &Check) -> Result<u64, ReasonCode> {
    trusted.accept(check, now()).unwrap().map_err(|error| error.reason())?;
    let approved = trusted.approve().unwrap().map_err(|error| error.reason())?;
    Ok(approved.assignment.generation)
}

/// The files of a folder, by name.
type Files = std::collections::BTreeMap<String, Vec<u8>>;

fn read(dir: &Path) -> Files {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
        .collect()
}

fn write(files: &Files) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
    dir
}

/// Three releases were taken one after the other; the folder after each, and what was offered.
struct History {
    world: World,
    checks: [Check; 3],
    folders: [Files; 3],
    floors: [Floors; 3],
}

impl History {
    fn new() -> Self {
        let (mut world, dir) = (World::new(), tempfile::tempdir().unwrap());
        let taken = [1, 2, 3].map(|generation| {
            if generation > 1 {
                world.bump(generation);
            }
            let check = world.check();
            let mut trusted = world.open(dir.path());
            assert_eq!(take(&mut trusted, &check), Ok(generation));
            (check, read(dir.path()), trusted.floors().clone())
        });
        let [(a, x, i), (b, y, j), (c, z, k)] = taken;
        Self { world, checks: [a, b, c], folders: [x, y, z], floors: [i, j, k] }
    }

    /// Opens such a folder: its floors are those of release `least` or above, an older release is refused, and the
    /// newest one is taken.
    #[track_caller]
    fn survives(&self, files: &Files, least: usize, what: &str) {
        let dir = write(files);
        let mut trusted = self.world.open(dir.path());
        let known = self.floors[least].clone();
        let held = trusted.floors().clone();
        let of_roles =
            known.roles.iter().all(|(role, floor)| held.roles.get(role).is_some_and(|held| held >= floor));
        assert!(
            of_roles
                && known.roles.contains_key(ROLE)
                && held.image.timestamp >= known.image.timestamp
                && held.director.timestamp >= known.director.timestamp
                && held.generation >= known.generation
                && held.releases >= known.releases,
            "{what}: {held:?}"
        );
        for older in &self.checks[..least] {
            let refused = take(&mut trusted, older);
            assert!(
                matches!(refused, Err(ReasonCode::MetadataRollback | ReasonCode::GenerationRollback)),
                "{what}: {refused:?}"
            );
        }
        assert_eq!(take(&mut trusted, &self.checks[2]), Ok(3), "{what}");
        let again = self.world.open(dir.path());
        assert_eq!((again.found(), again.floors().generation), (FloorsFound::Whole, 3), "{what}");
        assert_eq!(again.floors().roles[ROLE], 3, "{what}");
    }
}

/// Every write of an update is cut at every byte, on a file system that renames before the data is there, and on one
/// that writes in place; every hundredth state is led through a whole refusal and recovery, all are opened.
#[test]
fn every_write_cut_at_every_byte_leaves_the_known_floors() {
    let history = History::new();
    let [_, before, after] = &history.folders;
    let mut state = before.clone();
    let mut cuts = 0;
    for name in FILES {
        let (old, new) =
            (before.get(name).cloned().unwrap_or_default(), after.get(name).cloned().unwrap_or_default());
        if old == new {
            continue;
        }
        for cut in 0..new.len() {
            let short = new[..cut].to_vec();
            let over_old = [&new[..cut], old.get(cut..).unwrap_or_default()].concat();
            // The small record in both ways at every byte; the caches, which are longer, in turns.
            let both = name.starts_with("floors");
            let ways = [(short, both || cut % 2 == 0), (over_old, both || cut % 2 == 1)];
            for torn in ways.into_iter().filter_map(|(torn, wanted)| wanted.then_some(torn)) {
                state.insert(name.to_owned(), torn);
                cuts += 1;
                if cuts % 100 == 0 {
                    history.survives(&state, 1, &format!("{name} cut at {cut}"));
                } else {
                    let dir = write(&state);
                    let trusted = history.world.open(dir.path());
                    let held = trusted.floors();
                    let numbers = [held.generation, held.image.targets, held.roles[ROLE]];
                    assert!(numbers.iter().all(|number| *number >= 2), "{name} cut at {cut}: {held:?}");
                    assert_ne!(trusted.found(), FloorsFound::Lost, "{name} cut at {cut}");
                }
            }
        }
        state.insert(name.to_owned(), new);
    }
    assert!(cuts > 1_000, "{cuts} cuts");
    history.survives(after, 2, "after the last write");
}

#[test]
fn a_file_emptied_halved_lost_or_swapped_costs_nothing_that_was_known() {
    let history = History::new();
    let newest = &history.folders[2];
    for name in FILES {
        let whole = &newest[name];
        let flipped: Vec<u8> = whole.iter().map(|byte| !byte).collect();
        for bent in [Some(vec![]), Some(whole[..whole.len() / 2].to_vec()), Some(flipped), None] {
            let mut files = newest.clone();
            match bent.clone() {
                Some(bytes) => drop(files.insert(name.to_owned(), bytes)),
                None => drop(files.remove(name)),
            }
            history.survives(&files, 2, &format!("{name} bent to {:?} bytes", bent.map(|bytes| bytes.len())));
        }
        for other in FILES {
            let mut files = newest.clone();
            files.insert(name.to_owned(), newest[other].clone());
            files.insert(other.to_owned(), whole.clone());
            // A floors record in the place of another file leaves one copy where it belongs, and the other way round.
            history.survives(&files, 2, &format!("{name} and {other} swapped"));
        }
        // One file of an older day.
        let mut files = newest.clone();
        files.insert(name.to_owned(), history.folders[0][name.replace(".b", ".a").as_str()].clone());
        history.survives(&files, 2, &format!("{name} of an older day"));
    }
}

/// Only the caches were restored: the floors do not follow them down.
#[test]
fn older_caches_are_dropped_below_newer_floors() {
    let history = History::new();
    let mut files = history.folders[0].clone();
    for name in ["floors.a", "floors.b"] {
        files.insert(name.to_owned(), history.folders[2][name].clone());
    }
    history.survives(&files, 2, "old caches");
    files.retain(|name, _| name.starts_with("floors"));
    history.survives(&files, 2, "no caches");
}

/// Only the floors were restored: the caches, which verify, raise them again.
#[test]
fn older_floors_are_raised_by_newer_caches() {
    let history = History::new();
    let mut files = history.folders[2].clone();
    for name in ["floors.a", "floors.b"] {
        files.insert(name.to_owned(), history.folders[0][name].clone());
    }
    let dir = write(&files);
    let mut trusted = history.world.open(dir.path());
    for older in &history.checks[..2] {
        assert_eq!(take(&mut trusted, older), Err(ReasonCode::MetadataRollback));
    }
    assert_eq!(take(&mut trusted, &history.checks[2]), Ok(3));
}

/// Both copies of the floors are gone, the caches are not: they say as much.
#[test]
fn lost_floors_are_rebuilt_from_whole_caches() {
    let history = History::new();
    for bent in [None, Some(vec![]), Some(b"DUNFLR1\n and noise".to_vec())] {
        let mut files = history.folders[2].clone();
        for name in ["floors.a", "floors.b"] {
            match &bent {
                Some(bytes) => drop(files.insert(name.to_owned(), bytes.clone())),
                None => drop(files.remove(name)),
            }
        }
        let dir = write(&files);
        assert_eq!(history.world.open(dir.path()).found(), FloorsFound::Rebuilt);
        history.survives(&files, 2, "floors lost");
    }
}

/// What content that is damaged does, a bad sector below it does too. A wrong owner loses nothing and stays an error.
#[test]
fn a_bad_sector_under_any_file_is_told_and_mended_as_bad_content_is() {
    let history = History::new();
    let floors = |name: &str| name.starts_with("floors");
    for bad in FILES {
        let dir = write(&history.folders[2]);
        let wrong_owner = damage::reading(Errno::ACCESS, |name| name == bad);
        assert!(matches!(history.world.open_on(dir.path(), &wrong_owner), Err(TrustedError::Io { .. })));
        assert_eq!(read(dir.path()), history.folders[2], "{bad}");

        let bad_sector = damage::reading(Errno::IO, |name| name == bad);
        let trusted = history.world.open_on(dir.path(), &bad_sector).unwrap();
        let found = if floors(bad) { FloorsFound::Repaired } else { FloorsFound::Whole };
        assert_eq!((trusted.found(), trusted.floors().generation), (found, 3), "{bad}");
        drop(trusted);
        history.survives(&read(dir.path()), 2, bad);
    }
    let dir = write(&history.folders[2]);
    let trusted = history.world.open_on(dir.path(), &damage::reading(Errno::IO, floors)).unwrap();
    assert_eq!(trusted.found(), FloorsFound::Rebuilt);
    let dir = write(&history.folders[2]);
    let trusted = history.world.open_on(dir.path(), &damage::reading(Errno::IO, |_| true)).unwrap();
    assert_eq!(trusted.found(), FloorsFound::Lost, "never as if the device were new");
}

/// Floors and a cache are gone: nothing is accepted any more, whatever it is, until a person enrols the device anew.
#[test]
fn floors_that_can_not_be_known_are_never_taken_for_none() {
    let history = History::new();
    for cache in ["image", "director"] {
        for torn in [None, Some(vec![0; 100])] {
            let mut files = history.folders[2].clone();
            files.retain(|name, _| !name.starts_with("floors"));
            for side in [".a", ".b"] {
                match &torn {
                    Some(bytes) => drop(files.insert(format!("{cache}{side}"), bytes.clone())),
                    None => drop(files.remove(&format!("{cache}{side}"))),
                }
            }
            let dir = write(&files);
            for _start in 0..2 {
                let mut trusted = history.world.open(dir.path());
                assert_eq!(trusted.found(), FloorsFound::Lost);
                for check in &history.checks {
                    assert_eq!(take(&mut trusted, check), Err(ReasonCode::FloorsDamaged));
                }
                assert!(!trusted.not_behind(9, None).unwrap());
            }
            let trust = dir.path().to_path_buf();
            Trusted::begin_anew(&trust).unwrap();
            assert_eq!(take(&mut history.world.open(&trust), &history.checks[2]), Ok(3));
            Trusted::begin_anew(&trust).unwrap();
            fs::remove_dir_all(trust.with_extension("old")).unwrap();
        }
    }
}

/// The whole folder of an older day is whole by itself. What was not restored with it, the update journal, tells.
#[test]
fn a_whole_folder_of_an_older_day_shows_by_the_journal() {
    let history = History::new();
    let dir = write(&history.folders[0]);
    let mut trusted = history.world.open(dir.path());
    assert_eq!((trusted.found(), trusted.floors().generation), (FloorsFound::Whole, 1));
    assert!(trusted.not_behind(3, None).unwrap() && !trusted.not_behind(3, None).unwrap());
    assert_eq!(take(&mut trusted, &history.checks[1]), Err(ReasonCode::GenerationRollback));
    assert_eq!(take(&mut trusted, &history.checks[2]), Ok(3));
}

#[test]
fn floors_that_the_disk_did_not_take_are_not_gone_on_with() {
    let mut world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let mut trusted = world.open(dir.path());
    assert_eq!(take(&mut trusted, &world.check()), Ok(1));
    world.bump(2);
    let held = trusted.floors().clone();
    // A folder where the file is written first.
    let in_the_way = dir.path().join("floors.a.new");
    fs::create_dir(&in_the_way).unwrap();
    for _ in 0..2 {
        assert!(trusted.accept(&world.check(), now()).is_err());
        assert!(trusted.approve().is_err());
        assert_eq!(*trusted.floors(), held);
    }
    fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(take(&mut trusted, &world.check()), Ok(2));
    assert_eq!(world.open(dir.path()).floors().generation, 2);
}

/// Whoever signs assignments could else keep a device on a release by one that is void: the metadata around it is honest.
#[test]
fn a_withdrawal_is_kept_whatever_becomes_of_the_assignment_beside_it() {
    let voids =
        [("device", "pole-2", ReasonCode::WrongDevice), ("class", "gantry", ReasonCode::ClassMismatch)];
    for (part, other, reason) in voids {
        let (mut world, dir) = (World::new(), tempfile::tempdir().unwrap());
        assert_eq!(take(&mut world.open(dir.path()), &world.check()), Ok(1));
        world.bump(2);
        world.withdraw_below(3);
        world.assign_for(part, other);
        let mut trusted = world.open(dir.path());
        assert_eq!(take(&mut trusted, &world.check()), Err(reason));
        // It is on the disk as well.
        let again = world.open(dir.path());
        let model: ModelName = "meter".parse().unwrap();
        for floors in [trusted.floors(), again.floors()] {
            assert_eq!((floors.releases[&model], floors.generation), (3, 1), "{part}");
        }
    }
}

/// Somebody with the director's online keys drives every number up; the owner takes the keys away. Whatever byte the power
/// is cut at while the device follows, what the thief counted is gone afterwards, and what the owner signs is taken.
#[test]
fn numbers_that_stolen_keys_drove_up_go_with_the_keys() {
    let (mut world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let far = u64::MAX >> 1;
    world.director.versions = [1, far, far, far, 1];
    world.assign(far);
    let mut trusted = world.open(dir.path());
    assert_eq!(take(&mut trusted, &world.check()), Ok(far));
    let old_key = std::mem::replace(&mut world.director.timestamp, forge::key());
    let sealed = |signer: &dunlin_trust::Ed25519Signer, seq| {
        let (device, boot) = (DEVICE.parse().unwrap(), BootId([0; 16]));
        let (exp, body) = (Some(forge::LATER_MS), Bytes(vec![]));
        let header = Header { v: dunlin_protocol::SCHEMA, kind: Kind::Cmd, device, boot, seq, exp, body };
        envelope::seal_down(&header, signer).unwrap()
    };
    trusted.open_down(&sealed(&old_key, u64::MAX), now()).unwrap();
    assert_eq!(trusted.open_down(&sealed(&old_key, 9), now()), Err(ReasonCode::EnvelopeReplayed));
    drop(trusted);
    let before = read(dir.path());

    world.director.snapshot = forge::key();
    world.director.targets = vec![forge::key(), forge::key()];
    world.director.versions = [1, 2, 2, 2, 1];
    world.assign(2);
    world.director.rotate(&[]);
    let check = world.check();
    let mut trusted = world.open(dir.path());
    assert_eq!(take(&mut trusted, &check), Ok(2));
    trusted.open_down(&sealed(&world.director.timestamp, 9), now()).unwrap();
    assert_eq!(trusted.open_down(&sealed(&old_key, 10), now()), Err(ReasonCode::EnvelopeSignature));
    // The journal is behind for as long as the machine was not told.
    assert!(!trusted.not_behind(far, trusted_before(&before, &world)).unwrap());
    let after = read(dir.path());
    for cut in 0..=FILES.len() {
        let mut files = before.clone();
        let written = FILES[..cut].iter().filter_map(|name| after.get_key_value(*name));
        files.extend(written.map(|(name, bytes)| (name.clone(), bytes.clone())));
        let dir = write(&files);
        let mut trusted = world.open(dir.path());
        assert_eq!(take(&mut trusted, &check), Ok(2), "cut after {cut} files");
        trusted.open_down(&sealed(&world.director.timestamp, 9), now()).unwrap_or_else(|reason| {
            assert!(cut >= 5 && reason == ReasonCode::EnvelopeReplayed, "cut after {cut} files: {reason}");
            trusted.open_down(&sealed(&world.director.timestamp, 10), now()).unwrap()
        });
    }
}

/// The keys that counted in a folder as it was.
fn trusted_before(files: &Files, world: &World) -> Option<CountedBy> {
    let dir = write(files);
    world.open(dir.path()).floors().counted_by
}
