//! TUF metadata and director documents. What is bent is signed by the right keys afterwards as well, so that what lies
//! behind the signatures is reached, as by an attacker who holds them.
use std::collections::BTreeMap;
use std::sync::OnceLock;

use data_encoding::HEXLOWER;
use dunlin_protocol::{Bytes, DeviceProfile, Digest, Now, RepoFiles};
use dunlin_trust::metadata::{Kind, Root, Snapshot, Targets, Timestamp};
use dunlin_trust::write::{self, DelegationSpec, RoleSpec, RootSpec, TargetSpec};
use dunlin_trust::{
    Ed25519Signer, Floors, Lookup, RepoKind, Signed, Signer, TrustError, TrustedRepo, approve,
};
use serde_json::{Value, json};

use super::{causes, told_apart};

/// The time at which all of it is judged, Unix milliseconds.
const NOW_MS: u64 = 1_800_000_000_000;
const LATER_MS: u64 = NOW_MS + 86_400_000;
/// The device that judges.
const DEVICE: &str = "pole-1";
/// A release that both repositories list.
const RELEASE: &str = "meter.1.json";
/// The role of another task's own signers, and what it may list.
const TEAM: &str = "task-gate";
const TEAM_PATHS: [&str; 2] = ["policy.gate.json", "gate.*.json"];
/// A release that they list.
const TEAM_RELEASE: &str = "gate.1.json";
/// Public keys of the types that others sign with.
const FOREIGN_KEYS: [(&str, &str, &str); 2] = [
    ("rsa", "rsassa-pss-sha256", include_str!("../../../crates/trust/tests/keys/rsa.pub.pem")),
    ("ecdsa", "ecdsa-sha2-nistp256", include_str!("../../../crates/trust/tests/keys/p256.pub.pem")),
];

/// Good files of one repository, and the key that signs every role.
struct Files {
    key: Ed25519Signer,
    root: Vec<u8>,
    next_root: Value,
    timestamp: Value,
    snapshot: Value,
    targets: Value,
    delegated: Value,
    team: Value,
}

/// The key that signs everything here, as PKCS#8: a fixed one, so that the same input is the same file every time. Its
/// secret half is 32 times the byte 2a.
const KEY: &str = "3053020101300506032b6570042204202a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a\
     a123032100197f6b23e16c8532c6abc838facd5ea789be0c76b2920334039bfa8b3d368d61";

fn key() -> Result<Ed25519Signer, TrustError> {
    Ed25519Signer::from_pkcs8(&HEXLOWER.decode(KEY.as_bytes()).expect("hexadecimal"))
}

impl Files {
    fn new(kind: RepoKind) -> Result<Self, TrustError> {
        let key = key()?;
        let role = RoleSpec { keys: vec![key.key().clone()], threshold: 1 };
        let spec = RootSpec {
            root: role.clone(),
            timestamp: role.clone(),
            snapshot: role.clone(),
            targets: role.clone(),
        };
        let delegation = |name: &str, paths: &[&str]| DelegationSpec {
            name: name.to_owned(),
            role: role.clone(),
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            terminating: true,
        };
        let image = kind == RepoKind::Image;
        let delegations = [delegation("retrained", &["auto.*"]), delegation(TEAM, &TEAM_PATHS)];
        let delegations = if image { &delegations[..] } else { &[] };
        let roles: &[&str] = if image { &["targets", "retrained", TEAM] } else { &["targets"] };
        let hard = json!({
            "arch": ["aarch64"], "classes": ["pi"], "ops": [], "bundle_bytes": 10, "ram_bytes": 10, "min_agent": "0.1.0"
        });
        let of_team = json!({ "task": "gate", "hard": hard });
        let custom = if image { json!({ "task": "meter", "hard": hard }) } else { Value::Null };
        let listed =
            BTreeMap::from([(RELEASE.to_owned(), TargetSpec { length: 3, sha256: Digest([7; 32]), custom })]);
        let about = if image { json!({ "floors": { "meter": 1 } }) } else { assignment() };
        Ok(Self {
            root: write::sign(&write::root(1, LATER_MS, &spec)?, &[&key as &dyn Signer])?,
            next_root: write::root(2, LATER_MS, &spec)?,
            timestamp: write::timestamp(1, LATER_MS, 1)?,
            snapshot: write::snapshot(
                1,
                LATER_MS,
                &roles.iter().map(|role| ((*role).to_owned(), 1)).collect(),
            )?,
            targets: write::targets(1, LATER_MS, &listed, delegations, about)?,
            delegated: write::targets(1, LATER_MS, &BTreeMap::new(), &[], Value::Null)?,
            team: write::targets(
                1,
                LATER_MS,
                &BTreeMap::from([(
                    TEAM_RELEASE.to_owned(),
                    TargetSpec { length: 3, sha256: Digest([8; 32]), custom: of_team },
                )]),
                &[],
                json!({ "floors": { "gate": 1 } }),
            )?,
            key,
        })
    }

    fn sign(&self, value: &Value) -> Result<Vec<u8>, TrustError> {
        write::sign(value, &[&self.key as &dyn Signer])
    }

    fn update(&self, kind: RepoKind) -> Result<RepoFiles, TrustError> {
        let delegated = match kind {
            RepoKind::Image => BTreeMap::from([
                ("retrained".to_owned(), Bytes(self.sign(&self.delegated)?)),
                (TEAM.to_owned(), Bytes(self.sign(&self.team)?)),
            ]),
            RepoKind::Director => BTreeMap::new(),
        };
        Ok(RepoFiles {
            roots: vec![],
            timestamp: Bytes(self.sign(&self.timestamp)?),
            snapshot: Some(Bytes(self.sign(&self.snapshot)?)),
            targets: Some(Bytes(self.sign(&self.targets)?)),
            delegated,
        })
    }
}

/// Both repositories, made once.
fn files() -> &'static (Files, Files) {
    static FILES: OnceLock<(Files, Files)> = OnceLock::new();
    FILES.get_or_init(|| {
        let make = |kind| Files::new(kind).expect("a good repository can be signed");
        (make(RepoKind::Image), make(RepoKind::Director))
    })
}

fn assignment() -> Value {
    let probation = json!({
        "ms_min": 1, "requests_min": 1, "error_ppm_max": 1, "latency_percent_max": 200, "rss_bytes_max": 0, "disagree_ppm_max": 1
    });
    let task = json!({ "task": "meter", "lineup": { "champion": "meter@1", "fallback": "meter@1" }, "probation": probation });
    json!({ "device": DEVICE, "class": "pi", "generation": 3, "correlation": "c", "tasks": [task] })
}

fn now() -> Now {
    Now { mono_ms: 0, wall_ms: Some(NOW_MS) }
}

/// The first byte from which on the file of a task's own signers is bent.
const TEAM_FROM: u8 = 200;

/// Which file the first byte of an input chooses, and whether the rest is what is signed in it, and not the whole file.
fn chosen(first: u8) -> (u8, bool) {
    if first >= TEAM_FROM { (5, first.is_multiple_of(2)) } else { (first % 5, first % 10 < 5) }
}

/// See [`chosen`].
pub(crate) fn metadata_seeds() -> Vec<Vec<u8>> {
    let (image, _) = files();
    let [foreign_root, foreign_targets] =
        [(&image.next_root, "/keys"), (&image.targets, "/delegations/keys")]
            .map(|(value, keys)| with_foreign_keys(value, keys));
    let values = [
        (0, &image.next_root),
        (1, &image.timestamp),
        (2, &image.snapshot),
        (3, &image.targets),
        (4, &image.delegated),
        (TEAM_FROM, &image.team),
        (0, &foreign_root),
        (3, &foreign_targets),
    ];
    let signed = values.iter().map(|(at, value)| [&[*at], value.to_string().as_bytes()].concat());
    let whole = values.iter().filter_map(|(at, value)| {
        let at = if *at == TEAM_FROM { TEAM_FROM + 1 } else { at + 5 };
        Some([&[at], &image.sign(value).ok()?[..]].concat())
    });
    signed.chain(whole).collect()
}

/// What is signed, with keys of other types beside its own, which sign nothing here.
fn with_foreign_keys(value: &Value, keys: &str) -> Value {
    let mut value = value.clone();
    if let Some(keys) = value.pointer_mut(keys).and_then(Value::as_object_mut) {
        for (keytype, scheme, public) in FOREIGN_KEYS {
            let key = json!({ "keytype": keytype, "scheme": scheme, "keyval": { "public": public } });
            keys.insert(keytype.to_owned(), key);
        }
    }
    value
}

/// Targets about as long as they may be, and longer: the largest file there is.
pub(crate) fn metadata_large() -> Vec<Vec<u8>> {
    let (image, _) = files();
    let entry = image.targets["targets"][RELEASE].clone();
    let each = entry.to_string().len() + "\"meter.100000.json\":,".len();
    let listing = |n: usize| {
        let mut targets = image.targets.clone();
        targets["targets"] = (1..=n).map(|i| (format!("meter.{i}.json"), entry.clone())).collect();
        [&[3], targets.to_string().as_bytes()].concat()
    };
    let most = Targets::BYTES_MAX / each;
    vec![listing(most - most / 16), listing(most + most / 16)]
}

/// Laws: nothing panics; what is refused changes nothing; a delegated role lists nothing outside its paths; a task's own
/// signers list nothing of another's.
pub(crate) fn metadata(input: &[u8]) -> u64 {
    let Some((&which, rest)) = input.split_first() else { return 0 };
    let (image, _) = files();
    let (file, is_signed) = chosen(which);
    let bent = if is_signed {
        let Some(file) = serde_json::from_slice(rest).ok().and_then(|value: Value| image.sign(&value).ok())
        else {
            return 1;
        };
        file
    } else {
        rest.to_vec()
    };
    let parsed = parse_all(&bent);
    let mut offered = image.update(RepoKind::Image).expect("good values can be signed");
    match file {
        0 => offered.roots.push(Bytes(bent)),
        1 => offered.timestamp = Bytes(bent),
        2 => offered.snapshot = Some(Bytes(bent)),
        3 => offered.targets = Some(Bytes(bent)),
        4 => drop(offered.delegated.insert("retrained".to_owned(), Bytes(bent))),
        _ => drop(offered.delegated.insert(TEAM.to_owned(), Bytes(bent))),
    }
    let mut repo = TrustedRepo::pinned(RepoKind::Image, &image.root).expect("the pinned root is good");
    let state = |repo: &TrustedRepo| (repo.versions(), repo.floors(), repo.role_floors().clone());
    let before = state(&repo);
    let outcome = match repo.update(&offered, now()) {
        Ok(()) => {
            for name in
                [RELEASE, TEAM_RELEASE, "auto.meter.x.1.json", "policy.meter.json", "policy.gate.json", ""]
            {
                if let Lookup::Found { role, .. } = repo.lookup(name) {
                    assert!(role != "retrained" || repo.target_names().contains(name));
                    // The delegation itself is bent along with the targets.
                    assert!(role != TEAM || file == 3 || name.contains("gate."), "{role} lists {name}");
                }
            }
            let restored = TrustedRepo::restore(RepoKind::Image, &repo.stored(), &repo.floors());
            assert_eq!(
                restored.map(|again| again.versions()).ok(),
                Some(repo.versions()),
                "what was kept is not taken up"
            );
            0
        }
        Err(error) => {
            assert_eq!(state(&repo), before, "a refused update changed something");
            (error.reason() as u64) << 10 | told_apart(&causes(&error))
        }
    };
    outcome << 8 | parsed << 4 | u64::from(file << 1) | u64::from(is_signed)
}

/// As which kinds a file parses.
fn parse_all(file: &[u8]) -> u64 {
    fn reads<T: Kind>(file: &[u8]) -> u64 {
        u64::from(Signed::<T>::parse("fuzzed", file).is_ok())
    }
    reads::<Root>(file)
        | reads::<Timestamp>(file) << 1
        | reads::<Snapshot>(file) << 2
        | reads::<Targets>(file) << 3
}

/// The first byte chooses: the assignment within the director's targets, or these targets themselves.
pub(crate) fn director_seeds() -> Vec<Vec<u8>> {
    let (_, director) = files();
    let mut elsewhere = assignment();
    elsewhere["class"] = "pole".into();
    let mut of_team = assignment();
    of_team["tasks"][0]["task"] = "gate".into();
    of_team["tasks"][0]["lineup"] = json!({ "champion": "gate@1" });
    let empty = json!({ "device": DEVICE, "generation": 0, "correlation": "", "tasks": [] });
    vec![
        [&[0], assignment().to_string().as_bytes()].concat(),
        [&[0], empty.to_string().as_bytes()].concat(),
        [&[0], elsewhere.to_string().as_bytes()].concat(),
        [&[0], of_team.to_string().as_bytes()].concat(),
        [&[1], director.targets.to_string().as_bytes()].concat(),
    ]
}

/// An assignment of more tasks than any device has.
pub(crate) fn director_large() -> Vec<Vec<u8>> {
    let mut many = assignment();
    let task = many["tasks"][0].clone();
    let n = Targets::BYTES_MAX / task.to_string().len();
    let tasks = (0..n - n / 16).map(|i| {
        let mut task = task.clone();
        task["task"] = format!("meter-{i}").into();
        task
    });
    many["tasks"] = tasks.collect();
    vec![[&[0], many.to_string().as_bytes()].concat()]
}

/// Laws: an approved assignment names this device, rises, and every approved release is one that both sides list.
pub(crate) fn director(input: &[u8]) -> u64 {
    let Some((&which, rest)) = input.split_first() else { return 0 };
    let Ok(bent) = serde_json::from_slice::<Value>(rest) else { return 1 };
    let (image, director) = files();
    let mut targets = director.targets.clone();
    if which % 2 == 0 {
        targets["custom"] = bent;
    } else {
        targets = bent;
    }
    let Ok(file) = director.sign(&targets) else { return 2 };
    let mut offered = director.update(RepoKind::Director).expect("good values can be signed");
    offered.targets = Some(Bytes(file));
    let good = image.update(RepoKind::Image).expect("good values can be signed");
    let pinned = |kind, root: &[u8]| TrustedRepo::pinned(kind, root).expect("the pinned root is good");
    let (mut known, mut told) =
        (pinned(RepoKind::Image, &image.root), pinned(RepoKind::Director, &director.root));
    known.update(&good, now()).expect("the image repository is good");
    if let Err(error) = told.update(&offered, now()) {
        return 3 << 24 | told_apart(&causes(&error)) << 8 | error.reason() as u64;
    }
    let device = DEVICE.parse().expect("an id");
    let floors = Floors { generation: 2, ..Floors::default() };
    match approve(&known, &told, &device, &profile(), &floors) {
        Ok(approved) => {
            assert_eq!(approved.assignment.device, device);
            assert!(
                approved.floors.generation >= 2
                    && approved.floors.generation == approved.assignment.generation
            );
            let released = approved.tasks.iter().filter_map(|(_, verdict)| verdict.as_ref().ok());
            for task in released {
                assert_eq!(task.champion.manifest.name, RELEASE);
                assert_eq!(task.champion.manifest.sha256, Digest([7; 32]));
            }
            let refused = approved.tasks.iter().filter_map(|(_, verdict)| verdict.as_ref().err());
            5 << 24
                | refused
                    .fold(0, |sum, refusal| sum ^ told_apart(&refusal.detail) << 8 ^ refusal.reason as u64)
        }
        Err(error) => 4 << 24 | told_apart(&causes(&error)) << 8 | error.reason() as u64,
    }
}

fn profile() -> DeviceProfile {
    serde_json::from_value(json!({
        "class": "pi", "arch": "aarch64", "cores": 4, "ram_bytes": 1_000_000, "agent": "0.1.0", "ops": [],
        "budgets": { "model_bytes_max": 1000, "model_ram_bytes_max": 2000, "latency_us_max": 1000 },
    }))
    .expect("a profile")
}
