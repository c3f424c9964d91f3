//! Roles of single tasks: what their signers may approve, and what they can not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod forge;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dunlin_protocol::{Bytes, ReasonCode, RepoFiles, TaskId};
use dunlin_trust::write::{self, TargetSpec};
use dunlin_trust::{
    Approved, Ed25519Signer, Floors, RepoKind, Signer, TrustError, TrustedRepo, approve, held_roles,
    roles_digest, sha256,
};
use forge::{Forge, LATER_MS, custom, key, now, profile, role, sign, target};
use serde_json::{Value, json};

const GATE: &str = "task-gate";
const METER: &str = "task-meter";

/// What a role's file says.
#[derive(Clone)]
struct Team {
    key: Rc<Ed25519Signer>,
    version: u64,
    expires_ms: u64,
    listed: BTreeMap<String, TargetSpec>,
    custom: Value,
}

impl Team {
    fn new() -> Self {
        Self {
            key: key().into(),
            version: 1,
            expires_ms: LATER_MS,
            listed: BTreeMap::new(),
            custom: Value::Null,
        }
    }

    fn lists(mut self, name: &str, task: &str) -> Self {
        self.listed.insert(name.to_owned(), target(name.as_bytes(), custom(task)));
        self
    }

    fn value(&self) -> Value {
        write::targets(self.version, self.expires_ms, &self.listed, &[], self.custom.clone()).unwrap()
    }
}

/// An image repository that delegates two tasks, and a director that assigns one release of each.
struct World {
    image: Forge,
    director: Forge,
    teams: BTreeMap<&'static str, Team>,
}

impl World {
    fn new() -> Self {
        let (image, mut director) = (Forge::new(RepoKind::Image), Forge::new(RepoKind::Director));
        let gate = Team::new().lists("gate.1.json", "gate");
        let mut meter = Team::new().lists("meter.1.json", "meter").lists("meter.2.json", "meter");
        meter.listed.insert("policy.meter.json".to_owned(), target(b"policy", Value::Null));
        for name in ["gate.1.json", "gate.9.json", "meter.1.json", "meter.2.json"] {
            director.listed.insert(name.to_owned(), target(name.as_bytes(), Value::Null));
        }
        let mut world = Self { image, director, teams: BTreeMap::from([(GATE, gate), (METER, meter)]) };
        world.assign(1, "meter@1", "gate@1");
        world
    }

    fn assign(&mut self, generation: u64, meter: &str, gate: &str) {
        let probation = json!({
            "ms_min": 1, "requests_min": 1, "error_ppm_max": 1, "latency_percent_max": 200, "rss_bytes_max": 0,
            "disagree_ppm_max": 1
        });
        let task = |task: &str, champion: &str| json!({ "task": task, "lineup": { "champion": champion }, "probation": probation });
        self.director.custom = json!({
            "device": "pole-1", "generation": generation, "correlation": "c",
            "tasks": [task("meter", meter), task("gate", gate)],
        });
        self.director.bump();
    }

    fn team(&mut self, role: &str) -> &mut Team {
        self.teams.get_mut(role).unwrap()
    }

    /// Publishes what a team says next.
    fn publish(&mut self, role: &'static str, change: impl FnOnce(&mut Team)) {
        let team = self.team(role);
        team.version += 1;
        change(team);
        self.image.bump();
    }

    fn files(&self) -> RepoFiles {
        let mut files = self.image.files();
        let mut targets = self.image.targets_value();
        let mut roles = BTreeMap::from([
            ("targets".to_owned(), self.image.versions[3]),
            ("retrained".to_owned(), self.image.versions[4]),
        ]);
        for (name, team) in &self.teams {
            let task = name.strip_prefix("task-").unwrap();
            targets["delegations"]["keys"][team.key.key_id()] = team.key.key().declared().clone();
            let entry = json!({
                "name": name, "keyids": [team.key.key_id()], "threshold": 1, "terminating": true,
                "paths": [format!("policy.{task}.json"), format!("{task}.*.json")],
            });
            targets["delegations"]["roles"].as_array_mut().unwrap().push(entry);
            roles.insert((*name).to_owned(), team.version);
            files.delegated.insert((*name).to_owned(), Bytes(sign(&team.value(), &[&*team.key])));
        }
        files.targets = Some(Bytes(sign(&targets, &self.image.targets.iter().collect::<Vec<_>>())));
        let snapshot = write::snapshot(self.image.versions[2], LATER_MS, &roles).unwrap();
        files.snapshot = Some(Bytes(sign(&snapshot, &[&self.image.snapshot])));
        files
    }

    fn without(&self, role: &str) -> RepoFiles {
        let mut files = self.files();
        files.delegated.remove(role).unwrap();
        files
    }

    fn trusted(&self) -> TrustedRepo {
        let mut repo = self.image.pinned();
        repo.update(&self.files(), now()).unwrap();
        repo
    }

    fn judge(&self, image: &TrustedRepo) -> Approved {
        let device = "pole-1".parse().unwrap();
        let director = self.director.trusted();
        approve(image, &director, &device, &profile(), &Floors::default()).unwrap().into_inner()
    }

    /// What became of meter and gate.
    fn verdicts(&self, image: &TrustedRepo) -> [Option<ReasonCode>; 2] {
        let approved = self.judge(image);
        let of = |at: usize| approved.tasks[at].1.as_ref().err().map(|refusal| refusal.reason);
        [of(0), of(1)]
    }
}

#[test]
fn each_team_approves_its_own_task() {
    let world = World::new();
    let approved = world.judge(&world.trusted());
    for (task, verdict) in &approved.tasks {
        assert!(verdict.is_ok(), "{task}: {verdict:?}");
    }
    let meter = approved.tasks[0].1.as_ref().unwrap();
    assert_eq!(meter.policy.as_ref().unwrap().length, 6, "the policy is the team's to sign");
    assert!(!meter.champion.retrained);
    assert_eq!(approved.floors.roles, BTreeMap::from([(GATE.to_owned(), 1), (METER.to_owned(), 1)]));
}

#[test]
fn a_task_key_can_not_approve_another_tasks_release() {
    // By a name of its own: whatever it says that the release is for.
    let mut world = World::new();
    world.publish(METER, |team| *team = team.clone().lists("meter.3.json", "gate"));
    let name = "meter.3.json";
    world.director.listed.insert(name.to_owned(), target(name.as_bytes(), Value::Null));
    world.assign(2, "meter@1", "meter@3");
    assert_eq!(world.verdicts(&world.trusted()), [None, Some(ReasonCode::NotApproved)]);
    // By the other's name: the delegation does not cover it.
    world.publish(METER, |team| *team = team.clone().lists("gate.9.json", "gate"));
    world.assign(3, "meter@1", "gate@9");
    assert_eq!(world.verdicts(&world.trusted()), [None, Some(ReasonCode::NotApproved)]);
    assert!(world.trusted().target("gate.9.json").is_none());
    // By the other's policy.
    world.publish(METER, |team| {
        team.listed.insert("policy.gate.json".to_owned(), target(b"bent", Value::Null));
    });
    assert!(
        world.judge(&world.trusted()).tasks[1].1.as_ref().is_err_and(|e| e.reason == ReasonCode::NotApproved)
    );
    assert!(world.trusted().target("policy.gate.json").is_none());
    // By signing the other's file.
    let mut files = world.files();
    let forged = sign(&world.teams[GATE].value(), &[&*world.teams[METER].key]);
    files.delegated.insert(GATE.to_owned(), Bytes(forged));
    let refused = world.image.pinned().update(&files, now()).unwrap_err();
    assert_eq!(refused.reason(), ReasonCode::SignatureThreshold);
}

#[test]
fn a_task_key_can_not_delegate_to_a_role_that_counts_as_another_tasks() {
    let world = World::new();
    let mut files = world.files();
    let mut value = world.teams[METER].value();
    let own = key();
    let spec = write::DelegationSpec {
        name: "task-pump".to_owned(),
        role: role(&[&own], 1),
        paths: vec!["*".to_owned()],
        terminating: true,
    };
    value["delegations"] =
        write::targets(1, LATER_MS, &BTreeMap::new(), &[spec], Value::Null).unwrap()["delegations"].clone();
    files.delegated.insert(METER.to_owned(), Bytes(sign(&value, &[&*world.teams[METER].key])));
    let refused = world.image.pinned().update(&files, now()).unwrap_err();
    assert_eq!(refused.reason(), ReasonCode::MetadataMalformed, "{refused}");
}

#[test]
fn a_team_withdraws_its_own_releases_and_no_others() {
    let mut world = World::new();
    world.publish(METER, |team| team.custom = json!({ "floors": { "meter": 2, "gate": 5 } }));
    let approved = world.judge(&world.trusted());
    assert_eq!(approved.floors.releases, BTreeMap::from([("meter".parse().unwrap(), 2)]));
    assert_eq!(world.verdicts(&world.trusted()), [Some(ReasonCode::BelowReleaseFloor), None]);
    world.assign(2, "meter@2", "gate@1");
    assert_eq!(world.verdicts(&world.trusted()), [None, None]);
}

#[test]
fn the_digest_of_roles_is_about_names_and_versions_of_the_tasks_alone() {
    let versions = |meter, gate| BTreeMap::from([(METER.to_owned(), meter), (GATE.to_owned(), gate)]);
    let tasks = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<BTreeSet<TaskId>>();
    let both = roles_digest(&versions(1, 2), &tasks(&["meter", "gate"]));
    // The first digits of the SHA-256 of "task-gate 2\ntask-meter 1\n".
    assert_eq!(both, sha256(b"task-gate 2\ntask-meter 1\n").to_string()[..16]);
    assert_ne!(both, roles_digest(&versions(2, 1), &tasks(&["meter", "gate"])));
    let meter = roles_digest(&versions(1, 2), &tasks(&["meter", "pump"]));
    assert_eq!(meter, roles_digest(&versions(1, 9), &tasks(&["meter"])));
    assert_ne!(meter, roles_digest(&versions(2, 2), &tasks(&["meter"])));
    assert_eq!(roles_digest(&versions(1, 2), &tasks(&["pump"])), "");
    assert_eq!(roles_digest(&BTreeMap::new(), &tasks(&["meter"])), "");
    // A device says it of the tasks that it was assigned.
    let world = World::new();
    let mut director = world.director.pinned();
    assert_eq!(held_roles(&world.trusted(), &director), "", "it knows no task yet");
    director.update(&world.director.files(), now()).unwrap();
    assert_eq!(
        held_roles(&world.trusted(), &director),
        roles_digest(&versions(1, 1), &tasks(&["meter", "gate"]))
    );
}

#[test]
fn a_role_that_is_not_given_takes_its_own_task_away_and_no_other() {
    let mut world = World::new();
    let mut image = world.image.pinned();
    image.update(&world.without(METER), now()).unwrap();
    assert_eq!(world.verdicts(&image), [Some(ReasonCode::MetadataMismatch), None]);
    assert_eq!(image.role_versions(), BTreeMap::from([(GATE.to_owned(), 1)]));
    // It comes later, and is taken then.
    image.update(&world.files(), now()).unwrap();
    assert_eq!(world.verdicts(&image), [None, None]);
    // What is held already need not come again.
    image.update(&world.without(METER), now()).unwrap();
    assert_eq!(world.verdicts(&image), [None, None]);
    // A newer one that is held back does not leave the older one in force.
    world.publish(METER, |_| {});
    image.update(&world.without(METER), now()).unwrap();
    assert_eq!(world.verdicts(&image), [Some(ReasonCode::MetadataMismatch), None]);
    // A release that the owner lists does not run without the policy that the withheld file may hold.
    world.image.listed.insert("pump.1.json".to_owned(), target(b"pump", custom("meter")));
    world.image.bump();
    world.director.listed.insert("pump.1.json".to_owned(), target(b"pump", Value::Null));
    world.assign(2, "pump@1", "gate@1");
    image.update(&world.without(METER), now()).unwrap();
    assert_eq!(world.verdicts(&image), [Some(ReasonCode::MetadataMismatch), None]);
}

#[test]
fn a_team_that_lets_its_file_expire_holds_up_no_other() {
    let mut world = World::new();
    world.team(METER).expires_ms = forge::NOW_MS;
    assert_eq!(world.verdicts(&world.trusted()), [Some(ReasonCode::MetadataMismatch), None]);
}

#[test]
fn a_tasks_role_does_not_go_back() {
    let mut world = World::new();
    let old = world.files();
    world.publish(METER, |_| {});
    let mut image = world.trusted();
    let (stored, floors, roles) = (image.stored(), image.floors(), image.role_floors().clone());
    assert_eq!(roles[METER], 2);
    // The controller's own keys name the older file again, in a newer snapshot.
    world.team(METER).version = 1;
    world.image.bump();
    let back = world.files();
    assert_eq!(back.delegated[METER], old.delegated[METER]);
    assert!(matches!(image.update(&back, now()), Err(TrustError::Rollback { got: 1, floor: 2, .. })));
    // Nor after the cached files are gone: the floor is in the record.
    let bare = dunlin_trust::StoredFiles { root: stored.root.clone(), ..Default::default() };
    let restored = |stored| TrustedRepo::restore(RepoKind::Image, stored, &floors).unwrap();
    let mut again = restored(&bare).with_role_floors(&roles);
    assert!(matches!(again.update(&back, now()), Err(TrustError::Rollback { got: 1, floor: 2, .. })));
    // A cached file below the floor is dropped.
    let raised = BTreeMap::from([(METER.to_owned(), 3)]);
    let dropped = restored(&stored).with_role_floors(&raised);
    assert_eq!(dropped.role_versions(), BTreeMap::from([(GATE.to_owned(), 1)]));
    // With the snapshot's key goes what it drove up.
    world.image.snapshot = key();
    world.image.rotate(&[]);
    again.update(&world.files(), now()).unwrap();
    assert_eq!(again.role_floors()[METER], 1);
}

#[test]
fn another_key_for_a_task_takes_the_first_ones_word_away() {
    let mut world = World::new();
    let mut image = world.trusted();
    let stolen = world.teams[METER].key.clone();
    world.publish(METER, |team| team.key = key().into());
    let mut files = world.files();
    let bytes = sign(&world.teams[METER].value(), &[&*stolen]);
    let good = files.delegated.insert(METER.to_owned(), Bytes(bytes)).unwrap();
    assert_eq!(image.update(&files, now()).unwrap_err().reason(), ReasonCode::SignatureThreshold);
    files.delegated.insert(METER.to_owned(), good);
    image.update(&files, now()).unwrap();
    assert_eq!(world.verdicts(&image), [None, None]);
}
