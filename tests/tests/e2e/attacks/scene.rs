//! On the broker, with every online key: what is replayed, and what is forged for a device. Then the same with a medium in
//! the device itself, with too few of the offline keys, and with a hand on its disk.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dunlin_agent::device::ARCH;
use dunlin_protocol::{
    Arch, Assignment, Bundle, Check, DeviceId, Digest, Down, RepoFiles, TaskAssignment, Topic,
};
use dunlin_tests::agent::Agent;
use dunlin_tests::attacker::Attacker;
use dunlin_tests::controller::Controller;
use dunlin_tests::operator::{push, train};
use dunlin_tests::small::Small;
use serde_json::Value;
use sqlx::SqlitePool;

use super::tells;

/// Memory that the device has and the bounds of its task do not allow, bytes.
const TOO_MUCH_RAM: u64 = 128 << 20;
/// Memory that no board gives to a model, bytes.
const UNHEARD_OF_RAM: u64 = 1 << 40;
/// The hardware class of other devices.
const OTHER_CLASS: &str = "jetson-orin-nano";
/// An agent that is newer than any.
const FUTURE_AGENT: &str = "9999.0.0";

/// The manifest of a release, approved or not.
pub(crate) async fn bundle(controller: &Controller, release: &str) -> Bundle {
    let mut view = controller.json(&["model", "show", release]).await.unwrap();
    serde_json::from_value(view["bundle"].take()).unwrap()
}

/// The same manifest as another release.
fn named(bundle: &Bundle, release: &str) -> Bundle {
    Bundle { release: release.parse().unwrap(), ..bundle.clone() }
}

/// The victim, the world around it, and who attacks.
pub(crate) struct Scene<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) world: &'a Small,
    pub(crate) attacker: &'a Attacker,
    pub(crate) database: &'a SqlitePool,
    pub(crate) victim: &'a DeviceId,
    /// What the victim was assigned before the attacks: a controller whose device fails may take its tasks away.
    pub(crate) assigned: Vec<TaskAssignment>,
}

impl Scene<'_> {
    /// Messages that were good once, or for somebody else, and bytes that are nothing.
    pub(crate) async fn replayed(&self, other: &DeviceId) {
        let (attacker, victim) = (self.attacker, self.victim);
        let sealed = attacker.seal_desired(victim, attacker.director_files(victim).unwrap()).unwrap();
        tells(self.database, victim, "envelope_replayed", async {
            let topic = Topic::down(victim, Down::Desired);
            attacker.publish(&topic, sealed.clone()).await?;
            attacker.publish(&topic, sealed.clone()).await
        })
        .await;
        let topic = Topic::down(other, Down::Desired);
        tells(self.database, other, "envelope_wrong_device", attacker.publish(&topic, sealed.clone())).await;
        let topic = Topic::down(other, Down::Cmd);
        let nothing = attacker.publish(&topic, b"\xff\x00 not cbor".to_vec());
        tells(self.database, other, "envelope_malformed", nothing).await;
    }

    /// Assignments that the director's keys signed.
    pub(crate) async fn forged(&self) {
        let (attacker, victim) = (self.attacker, self.victim);
        let foreign = attacker.forge(victim, |assignment| assignment.device = "pole-1".parse().unwrap());
        tells(self.database, victim, "wrong_device", attacker.push(victim, foreign.unwrap())).await;
        let empty = attacker.forge(victim, |assignment| {
            assignment.device = "pole-2".parse().unwrap();
            assignment.tasks.clear();
        });
        tells(self.database, victim, "wrong_device", attacker.push(victim, empty.unwrap())).await;
        let twice = attacker.forge(victim, |assignment| {
            assignment.generation += 1;
            assignment.tasks.push(assignment.tasks[0].clone());
        });
        tells(self.database, victim, "metadata_malformed", attacker.push(victim, twice.unwrap())).await;
        let approved = attacker.image_files().unwrap();
        let longer = attacker.forge_beside(
            &approved,
            victim,
            |assignment| assignment.generation += 2,
            |listed| {
                for entry in listed.as_object_mut().unwrap().values_mut() {
                    entry["length"] = (entry["length"].as_u64().unwrap() + 1).into();
                }
            },
        );
        tells(self.database, victim, "target_mismatch", attacker.push(victim, longer.unwrap())).await;
        let elsewhere = attacker.forge(victim, |assignment| {
            assignment.generation += 3;
            assignment.class = Some(OTHER_CLASS.parse().unwrap());
        });
        tells(self.database, victim, "class_mismatch", attacker.push(victim, elsewhere.unwrap())).await;
        let unapproved = attacker.forge(victim, |assignment| {
            assignment.generation += 3;
            assignment.tasks[0].lineup.champion = "meter-evil@1".parse().unwrap();
        });
        tells(self.database, victim, "not_approved", attacker.push(victim, unapproved.unwrap())).await;
    }

    /// Releases that only the stolen key of the `retrained` role vouches for: one with more than the task's policy allows,
    /// and one that keeps to it on paper but reads badly.
    pub(crate) async fn retrained(&self, base: &Bundle) {
        let mut greedy = named(base, "auto.meter.logistic@1");
        greedy.hard.ram_bytes = TOO_MUCH_RAM;
        let list = |bundle: &Bundle| {
            self.attacker.forge_image(None, Some(self.attacker.forge_retrained(&[bundle])?))
        };
        self.carried("retrained_out_of_bounds", list(&greedy).unwrap(), &[&greedy], 5).await;

        let (controller, job) = (&self.world.controller, self.folder.join("mislabelled"));
        let result = train(controller, &job, &self.world.mislabelled(), &["logistic"], 3).await.unwrap();
        let candidate = &result["candidates"][0];
        let bad =
            push(controller, &job, candidate["id"].as_str().unwrap(), "meter-bad", candidate).await.unwrap();
        let bad = named(&bundle(controller, &bad).await, "auto.meter.logistic@2");
        self.carried("anchor_score", list(&bad).unwrap(), &[&bad], 6).await;
    }

    /// One of three offline keys, where two must sign, and every online key.
    pub(crate) async fn too_few_signatures(&self, base: &Bundle) {
        let stolen = self.folder.join("stolen-from-one-signer");
        fs::create_dir(&stolen).unwrap();
        for prefix in ["image-root", "image-targets"] {
            let key = first_key(Path::new(&self.world.offline_keys()), prefix).unwrap();
            fs::copy(&key, stolen.join(key.file_name().unwrap())).unwrap();
        }
        let evil = named(base, "meter-evil@1");
        let targets = self.attacker.sign_targets(&[&evil], &stolen).unwrap();
        let lists = self.attacker.forge_image(Some(targets), None).unwrap();
        self.pushed("signature_threshold", lists, 4).await;
        let root = self.attacker.forge_root(&stolen, dunlin_controller::clock::wall_ms()).unwrap();
        self.pushed("signature_threshold", root, 4).await;
    }

    /// Releases that the owner approved, for other hardware or to stand alone; who holds the online keys assigns them here.
    pub(crate) async fn misfits(&self, base: &Bundle) {
        let foreign = [Arch::Riscv64, Arch::Aarch64].into_iter().find(|arch| *arch != ARCH).unwrap();
        let mut elsewhere = named(base, "meter-elsewhere@1");
        elsewhere.hard.arch = [foreign].into();
        let mut placed = named(base, "meter-placed@1");
        placed.hard.classes = [OTHER_CLASS.parse().unwrap()].into();
        let mut richer = named(base, "meter-richer@1");
        richer.hard.ops.insert("com.example/Unheard".to_owned());
        let mut hungry = named(base, "meter-hungry@1");
        hungry.hard.ram_bytes = UNHEARD_OF_RAM;
        let mut newer = named(base, "meter-newer@1");
        newer.hard.min_agent = FUTURE_AGENT.to_owned();
        let mut wider = named(base, "meter-wider@1");
        wider.signature.inputs[0].shape[1] += 1;
        let owner = PathBuf::from(self.world.offline_keys());
        let alone = [
            ("arch_mismatch", &elsewhere),
            ("class_mismatch", &placed),
            ("ops_missing", &richer),
            ("ram_exceeded", &hungry),
            ("agent_too_old", &newer),
        ];
        let approved: Vec<&Bundle> = alone.iter().map(|(_, bundle)| *bundle).chain([&wider]).collect();
        let targets = self.attacker.sign_targets(&approved, &owner).unwrap();
        // The list of retrained releases may not go back behind the forged one that the victim has seen.
        let retrained = self.attacker.forge_retrained(&[]).unwrap();
        let image = self.attacker.forge_image(Some(targets), Some(retrained)).unwrap();
        for (generation, (reason, bundle)) in (7..).zip(alone) {
            self.carried(reason, image.clone(), &[bundle], generation).await;
        }
        self.carried("lineup_conflict", image, &[base, &wider], 12).await;
    }

    /// A retrained release once the owner has closed the task to them.
    pub(crate) async fn closed(&self, base: &Bundle) {
        let file = self.folder.join("policy.json");
        let mut policy: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        policy.as_object_mut().unwrap().remove("retrained");
        fs::write(&file, policy.to_string()).unwrap();
        let (file, keys) = (file.display().to_string(), self.world.offline_keys());
        let controller = &self.world.controller;
        controller.json(&["model", "policy", "sign", "--file", &file, "--keys", &keys]).await.unwrap();
        let sound = named(base, "auto.meter.logistic@3");
        let targets = self.attacker.sign_targets(&[], Path::new(&keys)).unwrap();
        let retrained = self.attacker.forge_retrained(&[&sound]).unwrap();
        let image = self.attacker.forge_image(Some(targets), Some(retrained)).unwrap();
        self.carried("retrained_not_allowed", image, &[&sound], 13).await;
    }

    /// The victim gets these image files and an assignment of the manifests, the first as champion, on a medium, so that
    /// it has every file; it tells this reason.
    async fn carried(&self, reason: &str, image: RepoFiles, lineup: &[&Bundle], generation: u64) {
        let director = self.director(&image, lineup, generation);
        let check = Check { image, director };
        let medium = self.folder.join(format!("medium-{generation}"));
        self.attacker.medium(&medium, self.victim, &check, lineup, &self.anchor()).unwrap();
        let path = medium.display().to_string();
        tells(self.database, self.victim, reason, async {
            self.world.agents[0].run(&["install", &path]).await.map(drop)
        })
        .await;
    }

    /// The same over the broker, of what is refused as a whole.
    async fn pushed(&self, reason: &str, image: RepoFiles, generation: u64) {
        let director = self.director(&image, &[], generation);
        let check = Check { image, director };
        tells(self.database, self.victim, reason, self.attacker.push_check(self.victim, check)).await;
    }

    fn director(&self, image: &RepoFiles, lineup: &[&Bundle], generation: u64) -> RepoFiles {
        let assign = |assignment: &mut Assignment| {
            assignment.generation += generation;
            assignment.tasks.clone_from(&self.assigned);
            if let Some(champion) = lineup.first() {
                assignment.tasks[0].lineup.champion = champion.release.clone();
                assignment.tasks[0].lineup.fallback = lineup.get(1).map(|bundle| bundle.release.clone());
            }
        };
        self.attacker.forge_beside(image, self.victim, assign, |_| ()).unwrap()
    }

    /// The anchor set of the first policy.
    fn anchor(&self) -> Vec<Digest> {
        vec![dunlin_trust::sha256(&fs::read(self.folder.join("anchor.cbor")).unwrap())]
    }
}

/// Damage on the disk of a device that stands still: it shows in its next report, and what serves goes on serving.
pub(crate) async fn torn(agent: &mut Agent, database: &SqlitePool, device: &DeviceId) {
    let trust = agent.folder.join("state/trust");
    tells(database, device, "state_recovered", async {
        agent.stop().await?;
        let floors = fs::read(trust.join("floors.a"))?;
        fs::write(trust.join("floors.a"), &floors[..floors.len() / 2])?;
        agent.start().await
    })
    .await;
    tells(database, device, "state_recovered", async {
        agent.stop().await?;
        fs::write(agent.folder.join("state/identity/device.pem"), b"")?;
        agent.start().await
    })
    .await;
    tells(database, device, "floors_damaged", async {
        agent.stop().await?;
        for file in ["floors.a", "floors.b", "image.a", "image.b"] {
            fs::write(trust.join(file), b"")?;
        }
        agent.start().await
    })
    .await;
}

/// The first key file of a role in a folder, by name.
fn first_key(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
    };
    files.into_iter().find(named).with_context(|| format!("a key {prefix} in {}", folder.display()))
}
