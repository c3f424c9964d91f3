//! From ceremony to device, on real files: what the controller publishes is what a device accepts, and a copy
//! of the controller's data folder can not approve anything.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dunlin_controller::keys::{self, Addition, CeremonyOptions, KeyError, OnlineKeys, Request};
use dunlin_controller::repo::{Offline, RepoError, Repos};
use dunlin_protocol::{
    Assignment, Check, DeviceId, DeviceProfile, Now, ReasonCode, RepoVersions, TargetCustom, cbor,
};
use dunlin_trust::{Approved, Floors, RepoKind, TrustError, TrustedRepo, Verified, approve, update_both};
use serde_json::{Value, json};
use tempfile::TempDir;

const START_MS: u64 = 1_800_000_000_000;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

struct World {
    folder: TempDir,
    repos: Repos,
}

fn data(folder: &TempDir) -> std::path::PathBuf {
    folder.path().join("data")
}

impl World {
    fn new() -> Self {
        Self::with(1, 2)
    }

    fn with(threshold: u32, n: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let online = keys::create_online(&data(&folder)).unwrap();
        let options = CeremonyOptions { threshold, n, now_ms: START_MS };
        let made = keys::ceremony(&folder.path().join("safe"), &online, options).unwrap();
        let repos = Repos::open(&data(&folder)).unwrap();
        repos.import(&folder.path().join("safe/public"), START_MS).unwrap();
        assert_eq!(repos.pin(RepoKind::Image).unwrap(), made.image_root);
        assert_eq!(repos.pin(RepoKind::Director).unwrap(), made.director_root);
        Self { folder, repos }
    }

    fn safe(&self) -> std::path::PathBuf {
        self.folder.path().join("safe/private")
    }

    fn current_targets(&self) -> Vec<u8> {
        self.repos.image().unwrap().stored().targets.unwrap().0
    }

    fn approve(&self, request: &Request, now_ms: u64) -> Result<RepoVersions, RepoError> {
        let signed = keys::sign_targets(&self.current_targets(), request, &self.safe(), now_ms).unwrap();
        self.repos.publish_targets(&signed, now_ms)
    }

    fn release(&self, name: &str, content: &[u8]) -> Addition {
        let sha256 = self.repos.put_target(name, content).unwrap();
        Addition { name: name.to_owned(), length: content.len() as u64, sha256, custom: custom() }
    }

    fn reopen(&mut self) {
        self.repos = Repos::open(&data(&self.folder)).unwrap();
    }
}

fn offline(kind: RepoKind, root: Vec<u8>) -> Offline {
    match kind {
        RepoKind::Image => Offline { image_root: Some(root), ..Offline::default() },
        RepoKind::Director => Offline { director_root: Some(root), ..Offline::default() },
    }
}

fn custom() -> Value {
    let hard = json!({ "arch": [], "ops": [], "bundle_bytes": 10, "ram_bytes": 10, "min_agent": "" });
    let custom: TargetCustom = serde_json::from_value(json!({ "task": "meter", "hard": hard })).unwrap();
    json!(custom)
}

fn assignment(device: &str, generation: u64, champion: &str) -> Assignment {
    let probation = json!({
        "ms_min": 1, "requests_min": 1, "error_ppm_max": 1, "latency_percent_max": 200, "rss_bytes_max": 0, "disagree_ppm_max": 1
    });
    let task = json!({ "task": "meter", "lineup": { "champion": champion }, "probation": probation });
    serde_json::from_value(
        json!({ "device": device, "generation": generation, "correlation": "c", "tasks": [task] }),
    )
    .unwrap()
}

fn profile() -> DeviceProfile {
    serde_json::from_value(json!({
        "class": "pi", "arch": "aarch64", "cores": 4, "ram_bytes": 1_000_000, "agent": "0.1.0",
        "budgets": { "model_bytes_max": 1000, "model_ram_bytes_max": 2000, "latency_us_max": 1000 },
    }))
    .unwrap()
}

/// What an agent keeps.
struct Device {
    id: DeviceId,
    image: TrustedRepo,
    director: TrustedRepo,
    floors: Floors,
}

impl Device {
    fn enrol(world: &World, id: &str) -> Self {
        let pinned =
            |kind| TrustedRepo::pinned(kind, world.repos.first_root(kind).unwrap().as_slice()).unwrap();
        let (image, director) = (pinned(RepoKind::Image), pinned(RepoKind::Director));
        Self { id: id.parse().unwrap(), image, director, floors: Floors::default() }
    }

    fn ask(&self, world: &World, now_ms: u64) -> Check {
        world.repos.check(&self.id, self.image.versions(), self.director.versions(), now_ms).unwrap()
    }

    fn check(&mut self, world: &World, now_ms: u64) -> Result<Verified<Approved>, TrustError> {
        let check: Check = cbor::decode(&cbor::encode(&self.ask(world, now_ms)), 1 << 20).unwrap();
        update_both(&mut self.image, &mut self.director, &check, Now { mono_ms: 0, wall_ms: Some(now_ms) })?;
        let approved = approve(&self.image, &self.director, &self.id, &profile(), &self.floors)?;
        self.floors = approved.floors.clone();
        Ok(approved)
    }
}

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
    let late = world.repos.check(&device.id, image, director, START_MS + 366 * DAY_MS);
    assert!(matches!(late, Err(RepoError::Trust { source: TrustError::Expired { .. }, .. })));
}

#[test]
fn published_state_survives_a_restart() {
    let mut world = World::new();
    world
        .approve(&Request { add: vec![world.release("meter.1.json", b"1")], ..Request::default() }, START_MS)
        .unwrap();
    world.repos.publish_assignment(&assignment("pole-1", 1, "meter@1"), START_MS).unwrap();
    let mut device = Device::enrol(&world, "pole-1");
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
fn too_few_offline_signatures_publish_nothing() {
    let world = World::with(2, 2);
    let before = world.repos.image().unwrap().versions();
    let alone = world.folder.path().join("alone");
    fs::create_dir(&alone).unwrap();
    fs::copy(world.safe().join("image-targets-1.pem"), alone.join("image-targets-1.pem")).unwrap();
    let one = keys::sign_targets(&world.current_targets(), &Request::default(), &alone, START_MS).unwrap();
    let refused = world.repos.publish_targets(&one, START_MS).unwrap_err();
    assert!(matches!(refused, RepoError::Trust { source: TrustError::Threshold { .. }, .. }), "{refused}");
    assert_eq!(world.repos.image().unwrap().versions(), before);
    // The second holder signs the same file elsewhere.
    let both = keys::cosign(&one, "image-targets", &world.safe()).unwrap();
    world.repos.publish_targets(&both, START_MS).unwrap();
    // And it can not be published twice.
    assert!(world.repos.publish_targets(&both, START_MS).is_err());
}

/// A broken-into controller: with every file of the data folder, neither root nor image targets can be signed.
#[test]
fn a_copy_of_the_data_folder_can_approve_nothing() {
    let world = World::new();
    let stolen = data(&world.folder);
    assert!(matches!(
        keys::sign_targets(&world.current_targets(), &Request::default(), &stolen.join("keys"), START_MS),
        Err(KeyError::NoneFound { .. })
    ));
    // Under any name, the online keys are not those that count.
    let forged = world.folder.path().join("forged");
    fs::create_dir(&forged).unwrap();
    for (i, entry) in fs::read_dir(stolen.join("keys")).unwrap().enumerate() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            for role in ["image-targets", "image-root", "director-root"] {
                fs::copy(&path, forged.join(format!("{role}-{i}.pem"))).unwrap();
            }
        }
    }
    let targets =
        keys::sign_targets(&world.current_targets(), &Request::default(), &forged, START_MS).unwrap();
    let refused = world.repos.publish_targets(&targets, START_MS).unwrap_err();
    assert!(
        matches!(refused, RepoError::Trust { source: TrustError::Threshold { have: 0, .. }, .. }),
        "{refused}"
    );
    for kind in [RepoKind::Image, RepoKind::Director] {
        let root = world.repos.first_root(kind).unwrap();
        let root = keys::renew_root(kind, root.as_slice(), None, &forged, START_MS).unwrap();
        let refused = Repos::publish_offline(&stolen, &offline(kind, root), START_MS).unwrap_err();
        assert!(
            matches!(refused, RepoError::Trust { source: TrustError::Threshold { have: 0, .. }, .. }),
            "{refused}"
        );
    }
    keys::guard(&stolen).unwrap();
}

#[test]
fn the_guard_finds_an_offline_key_wherever_it_lies() {
    let world = World::new();
    let data = data(&world.folder);
    for (from, to) in [
        ("image-targets-1.pem", "notes.txt"),
        ("image-root-2.pem", "repo/targets/x"),
        ("director-root-1.pem", "keys/deep/er/backup.pem"),
    ] {
        let to = data.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let pem = fs::read_to_string(world.safe().join(from)).unwrap();
        fs::write(&to, format!("# kept here for convenience\n{pem}")).unwrap();
        assert!(matches!(keys::guard(&data), Err(KeyError::Guarded { path, .. }) if path == to), "{from}");
        fs::remove_file(&to).unwrap();
        keys::guard(&data).unwrap();
    }
}

#[test]
fn key_files_are_for_their_owner_alone() {
    let world = World::new();
    let key = world.safe().join("image-root-1.pem");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(world.safe()).unwrap().permissions().mode() & 0o777, 0o700);
    keys::load(&key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(keys::load(&key), Err(KeyError::Exposed { mode: 0o640, .. })));
    assert!(keys::write_new(&key).is_err(), "a key was replaced");
    let other = world.folder.path().join("other.pem");
    fs::write(&other, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(keys::load(&other), Err(KeyError::NoKey { .. })));
}

#[test]
fn a_ceremony_for_another_controller_is_refused() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    keys::create_online(&data(&folder)).unwrap();
    let other = Repos::open(&data(&folder)).unwrap();
    assert!(matches!(other.image(), Err(RepoError::NotSetUp)));
    let refused = other.import(&world.folder.path().join("safe/public"), START_MS).unwrap_err();
    assert!(matches!(refused, RepoError::ForeignKey(_)), "{refused}");
    assert!(matches!(
        world.repos.import(&world.folder.path().join("safe/public"), START_MS),
        Err(RepoError::AlreadySetUp)
    ));
}

#[test]
fn thresholds_without_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let online = keys::create_online(folder.path()).unwrap();
    for (threshold, n) in [(0, 1), (3, 2), (1, 17)] {
        let options = CeremonyOptions { threshold, n, now_ms: START_MS };
        assert!(matches!(
            keys::ceremony(&folder.path().join("o"), &online, options),
            Err(KeyError::Threshold { .. })
        ));
    }
}

#[test]
fn signers_are_kept_from_mistakes() {
    let world = World::new();
    world
        .approve(&Request { add: vec![world.release("meter.1.json", b"1")], ..Request::default() }, START_MS)
        .unwrap();
    let floors = |floor| Request { floors: [("meter".parse().unwrap(), floor)].into(), ..Request::default() };
    world.approve(&floors(3), START_MS).unwrap();
    assert!(world.repos.approvals().unwrap().is_empty(), "a release below its floor is no choice");
    let bad = [
        Request { add: vec![world.release("meter.1.json", b"other")], ..Request::default() },
        Request { remove: vec!["meter.9.json".to_owned()], ..Request::default() },
        floors(2),
    ];
    for request in bad {
        let refused = keys::sign_targets(&world.current_targets(), &request, &world.safe(), START_MS);
        assert!(matches!(refused, Err(KeyError::Request(_))));
    }
    world
        .approve(&Request { remove: vec!["meter.1.json".to_owned()], ..Request::default() }, START_MS)
        .unwrap();
    assert!(world.repos.image().unwrap().target("meter.1.json").is_none());
}

/// After a break-in: new online keys, named by both roots and by the targets; devices follow.
#[test]
fn online_keys_can_be_replaced() {
    let mut world = World::new();
    world
        .approve(&Request { add: vec![world.release("meter.1.json", b"1")], ..Request::default() }, START_MS)
        .unwrap();
    world.repos.publish_assignment(&assignment("pole-1", 1, "meter@1"), START_MS).unwrap();
    let mut device = Device::enrol(&world, "pole-1");
    device.check(&world, START_MS).unwrap();

    let keys_folder = data(&world.folder).join("keys");
    fs::rename(&keys_folder, world.folder.path().join("old-keys")).unwrap();
    let online = keys::create_online(&data(&world.folder)).unwrap();
    assert_eq!(OnlineKeys::read(&keys_folder.join("online.json")).unwrap(), online);
    assert!(matches!(Repos::open(&data(&world.folder)), Err(RepoError::ForeignKey(_))));
    let next = |kind| {
        let root = world.repos.first_root(kind).unwrap();
        keys::renew_root(kind, root.as_slice(), Some(&online), &world.safe(), START_MS).unwrap()
    };
    let roots = [next(RepoKind::Image), next(RepoKind::Director)];
    let retrained_key = Some(online.of(keys::OnlineRole::Retrained).declared().clone());
    let request = Request { retrained_key, ..Request::default() };
    let targets = keys::sign_targets(&world.current_targets(), &request, &world.safe(), START_MS).unwrap();
    let [image_root, director_root] = roots.map(Some);
    let half = Offline { image_root: image_root.clone(), ..Offline::default() };
    assert!(Repos::publish_offline(&data(&world.folder), &half, START_MS).is_err());
    let whole = Offline { image_root, director_root, targets: Some(targets) };
    Repos::publish_offline(&data(&world.folder), &whole, START_MS).unwrap();
    world.reopen();
    assert_eq!(world.repos.approvals().unwrap().len(), 1);
    device.check(&world, START_MS).unwrap();
    assert_eq!((device.image.versions().root, device.director.versions().root), (2, 2));
    world.repos.publish_assignment(&assignment("pole-1", 2, "meter@1"), START_MS).unwrap();
    assert_eq!(device.check(&world, START_MS).unwrap().assignment.generation, 2);
}

#[test]
fn a_root_is_renewed_with_the_same_keys() {
    let mut world = World::new();
    let mut device = Device::enrol(&world, "pole-1");
    device.check(&world, START_MS).unwrap();
    for kind in [RepoKind::Image, RepoKind::Director] {
        let root = world.repos.first_root(kind).unwrap();
        let root = keys::renew_root(kind, root.as_slice(), None, &world.safe(), START_MS + DAY_MS).unwrap();
        Repos::publish_offline(&data(&world.folder), &offline(kind, root), START_MS + DAY_MS).unwrap();
        world.reopen();
        device.check(&world, START_MS + DAY_MS).unwrap();
    }
    assert_eq!((device.image.versions().root, device.director.versions().root), (2, 2));
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
