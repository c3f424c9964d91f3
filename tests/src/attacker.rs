//! Attacks from where attackers are: on the broker, behind HTTPS, in the artifact store, with stolen online keys.
//!
//! An attacker of this module holds a copy of the controller's data folder, as somebody who broke in would.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dunlin_controller::broker::link::{ChallengeAnswer, Proof, client, options, tls};
use dunlin_controller::identity::{CONTROLLER, Identity};
use dunlin_controller::keys::{OnlineRole, OnlineSigners};
use dunlin_protocol::{
    Assignment, BootId, Bytes, Check, Desired, DeviceId, Down, Header, Kind, RepoFiles, SCHEMA, Topic, cbor,
};
use dunlin_trust::{envelope, write};
use rumqttc::mqttbytes::QoS;
use rumqttc::{Event, Incoming, PublishOptions};
use rustls::RootCertStore;
use serde_json::{Map, Value, json};

mod image;

/// How long a stolen message claims to be valid, milliseconds.
const LIFE_MS: u64 = 600_000;
/// How long an attack on the broker may take.
const ATTACK_LIMIT: Duration = Duration::from_secs(30);
/// How often an attack on the broker is tried: on a busy machine the controller is back within a moment.
const ATTACKS_MAX: usize = 5;
/// How far forged versions lie above the true ones, and each forgery above the one before.
const VERSION_LEAP: u64 = 1000;
/// Forgeries that fit below the highest version.
const FORGERIES_LEFT: u64 = 1000;

/// Somebody with the controller's data folder and a way to the broker.
#[derive(Debug)]
pub struct Attacker {
    data: PathBuf,
    /// A copy of the data folder whose online keys this is about.
    keys: PathBuf,
    broker: std::net::SocketAddr,
    forgeries: std::cell::Cell<u64>,
}

impl Attacker {
    /// Steals `data`, and reaches the broker at `broker`.
    pub fn new(data: &Path, broker: std::net::SocketAddr) -> Self {
        Self { data: data.into(), keys: data.into(), broker, forgeries: std::cell::Cell::new(0) }
    }

    /// The same with the online keys of another folder, such as one that was stolen before the keys were changed.
    pub fn with_keys(self, folder: &Path) -> Self {
        Self { keys: folder.into(), ..self }
    }

    /// The same with versions as far ahead as they go, but for a few more forgeries.
    pub fn at_the_end(self) -> Self {
        self.forgeries.set((u64::MAX >> 1) / VERSION_LEAP - FORGERIES_LEFT);
        self
    }

    fn online(&self) -> Result<OnlineSigners> {
        Ok(OnlineSigners::load(&self.keys)?)
    }

    /// The director files of a device as they are served.
    pub fn director_files(&self, device: &DeviceId) -> Result<RepoFiles> {
        let folder = self.data.join("repo/director").join(device.as_str());
        let timestamp = std::fs::read(folder.join("timestamp.json")).context("a director timestamp")?;
        let snapshot_version =
            write::signed_value(&timestamp)?["meta"]["snapshot.json"]["version"].to_string();
        let snapshot = std::fs::read(folder.join(format!("{snapshot_version}.snapshot.json")))?;
        let targets_version = write::signed_value(&snapshot)?["meta"]["targets.json"]["version"].to_string();
        let targets = std::fs::read(folder.join(format!("{targets_version}.targets.json")))?;
        Ok(RepoFiles {
            timestamp: Bytes(timestamp),
            snapshot: Some(Bytes(snapshot)),
            targets: Some(Bytes(targets)),
            ..RepoFiles::default()
        })
    }

    /// The image files as they are served.
    pub fn image_files(&self) -> Result<RepoFiles> {
        let folder = self.data.join("repo/image");
        let timestamp = std::fs::read(folder.join("timestamp.json"))?;
        let version = write::signed_value(&timestamp)?["meta"]["snapshot.json"]["version"].to_string();
        let snapshot = std::fs::read(folder.join(format!("{version}.snapshot.json")))?;
        let mut delegated = BTreeMap::new();
        for (file, meta) in write::signed_value(&snapshot)?["meta"].as_object().context("a snapshot")? {
            let bytes = Bytes(std::fs::read(folder.join(format!("{}.{file}", meta["version"])))?);
            delegated.insert(file.trim_end_matches(".json").to_owned(), bytes);
        }
        let targets = delegated.remove("targets");
        let (timestamp, snapshot) = (Bytes(timestamp), Some(Bytes(snapshot)));
        Ok(RepoFiles { roots: Vec::new(), timestamp, snapshot, targets, delegated })
    }

    /// The director files of `device`, signed anew with the stolen keys: far newer versions, and an assignment
    /// changed by `change`.
    pub fn forge(&self, device: &DeviceId, change: impl FnOnce(&mut Assignment)) -> Result<RepoFiles> {
        self.forge_beside(&self.image_files()?, device, change, |_| ())
    }

    /// The same beside these image files, and with what is listed changed by `bend`.
    pub fn forge_beside(
        &self,
        image: &RepoFiles,
        device: &DeviceId,
        change: impl FnOnce(&mut Assignment),
        bend: impl FnOnce(&mut Value),
    ) -> Result<RepoFiles> {
        let (keys, leap) = (self.online()?, self.leap());
        let files = self.director_files(device)?;
        let mut signed = write::signed_value(files.targets.context("targets")?.as_slice())?;
        let mut assignment: Assignment = serde_json::from_value(signed["custom"].take())?;
        let genuine = assignment.tasks.first().map(|task| task.lineup.champion.target_name());
        change(&mut assignment);
        signed["custom"] = serde_json::to_value(&assignment)?;
        // What the assignment names is listed as it is approved, or as if it were what it stands in for, down to what is
        // said of that where models are approved.
        let approved = listing(image)?;
        let listed = signed["targets"].as_object_mut().context("listed targets")?;
        let stand_in = genuine.and_then(|name| {
            let mut entry = listed.get(&name)?.clone();
            entry["custom"] = approved.get(&name).map_or(Value::Null, |entry| entry["custom"].clone());
            Some(entry)
        });
        for release in assignment.tasks.iter().flat_map(|task| task.lineup.releases()) {
            let name = release.target_name();
            if let Some(entry) = approved.get(&name).or(stand_in.as_ref()) {
                listed.entry(name).or_insert(entry.clone());
            }
        }
        bend(&mut signed["targets"]);
        let version = ahead(&mut signed, leap)?;
        let mut snapshot = write::signed_value(files.snapshot.context("a snapshot")?.as_slice())?;
        snapshot["meta"]["targets.json"] = json!({ "version": version });
        let mut timestamp = write::signed_value(files.timestamp.as_slice())?;
        timestamp["meta"]["snapshot.json"] = json!({ "version": ahead(&mut snapshot, leap)? });
        ahead(&mut timestamp, leap)?;
        let sign = |value: &Value, role| write::sign(value, &[keys.of(role)]).map(Bytes);
        Ok(RepoFiles {
            roots: Vec::new(),
            timestamp: sign(&timestamp, OnlineRole::DirectorTimestamp)?,
            snapshot: Some(sign(&snapshot, OnlineRole::DirectorSnapshot)?),
            targets: Some(sign(&signed, OnlineRole::DirectorTargets)?),
            delegated: Default::default(),
        })
    }

    /// How far the versions of the next forgery lie above the true ones.
    fn leap(&self) -> u64 {
        self.forgeries.set(self.forgeries.get() + 1);
        VERSION_LEAP * self.forgeries.get()
    }

    /// The director files of `device` with a timestamp that the stolen key signed: the next version, which ends at `expires`.
    /// Who can not sign a snapshot can do no more.
    pub fn forge_timestamp(&self, device: &DeviceId, expires: time::OffsetDateTime) -> Result<RepoFiles> {
        let keys = self.online()?;
        let mut files = self.director_files(device)?;
        let mut timestamp = write::signed_value(files.timestamp.as_slice())?;
        timestamp["version"] = (timestamp["version"].as_u64().context("a version")? + 1).into();
        timestamp["expires"] = expires
            .replace_nanosecond(0)?
            .format(&time::format_description::well_known::Rfc3339)
            .context("an expiry")?
            .into();
        files.timestamp = Bytes(write::sign(&timestamp, &[keys.of(OnlineRole::DirectorTimestamp)])?);
        Ok(files)
    }

    /// What a mirror answers to the check of a device: these director files beside the image files as they are served.
    pub fn check(&self, director: RepoFiles) -> Result<Check> {
        Ok(Check { image: self.image_files()?, director })
    }

    /// A `down/desired` with these director files, sealed with the stolen timestamp key.
    pub fn seal_desired(&self, device: &DeviceId, director: RepoFiles) -> Result<Vec<u8>> {
        // Above what the controller has used, which is about the time.
        self.seal_desired_as(device, director, now_ms()? + 1)
    }

    /// The same with a number of the thief's choice.
    pub fn seal_desired_as(&self, device: &DeviceId, director: RepoFiles, seq: u64) -> Result<Vec<u8>> {
        self.seal_check(device, self.check(director)?, seq)
    }

    /// The same of files of both repositories.
    pub fn seal_check(&self, device: &DeviceId, files: Check, seq: u64) -> Result<Vec<u8>> {
        let keys = self.online()?;
        let header = Header {
            v: SCHEMA,
            kind: Kind::Desired,
            device: device.clone(),
            boot: BootId([0; 16]),
            seq,
            exp: Some(now_ms()? + LIFE_MS),
            body: Bytes(cbor::encode(&Desired { generation: 0, files: Some(files) })),
        };
        Ok(envelope::seal_down(&header, keys.of(OnlineRole::DirectorTimestamp))?.encode())
    }

    /// A command for `device` in a schema that nobody knows yet, sealed with the stolen timestamp key.
    pub fn seal_unknown(&self, device: &DeviceId) -> Result<Vec<u8>> {
        let keys = self.online()?;
        let header = Header {
            v: SCHEMA + 1,
            kind: Kind::Cmd,
            device: device.clone(),
            boot: BootId([0; 16]),
            seq: 1,
            exp: Some(u64::MAX),
            body: Bytes(Vec::new()),
        };
        Ok(envelope::seal_down(&header, keys.of(OnlineRole::DirectorTimestamp))?.encode())
    }

    /// Publishes on the broker with the controller's stolen identity, and waits until the broker has taken it.
    pub async fn publish(&self, topic: &Topic, payload: Vec<u8>) -> Result<()> {
        self.publish_made(topic, || Ok(payload.clone())).await
    }

    /// The same with a payload that is made when the controller's session is taken over: it sends nothing with a higher
    /// number in between. The controller takes its session back, now and then before the broker has the message; then
    /// this comes again.
    async fn publish_made(&self, topic: &Topic, payload: impl Fn() -> Result<Vec<u8>>) -> Result<()> {
        for _ in 1..ATTACKS_MAX {
            if self.publish_once(topic, &payload).await.is_ok() {
                return Ok(());
            }
        }
        self.publish_once(topic, &payload).await
    }

    async fn publish_once(&self, topic: &Topic, payload: impl Fn() -> Result<Vec<u8>>) -> Result<()> {
        let identity = Identity::open(&self.data)?;
        let host = self.broker.ip().to_string();
        let mut roots = RootCertStore::empty();
        for certificate in dunlin_controller::identity::certificates(&self.data.join("ca.pem"))? {
            roots.add(certificate)?;
        }
        let signer = Arc::new(identity.controller_signer()?);
        let proof = Proof::Challenge(ChallengeAnswer::new(CONTROLLER, &host, signer));
        let (client, mut events) =
            client(options(CONTROLLER, &host, self.broker.port(), tls(roots, None)?, proof));
        let acknowledged = async {
            while !matches!(events.poll().await?, Event::Incoming(Incoming::ConnAck(_))) {}
            client.try_publish(topic.to_string(), payload()?, PublishOptions::new(QoS::AtLeastOnce))?;
            while !matches!(events.poll().await?, Event::Incoming(Incoming::PubAck(_))) {}
            anyhow::Ok(())
        };
        match tokio::time::timeout(ATTACK_LIMIT, acknowledged).await {
            Ok(done) => done.context("the attack on the broker"),
            Err(_) => bail!("the broker took no message in {ATTACK_LIMIT:?}"),
        }
    }

    /// Flips one bit in the middle of a file in the artifact store.
    pub fn tamper(&self, digest: &str) -> Result<()> {
        let path = find(&self.data, digest)?.with_context(|| format!("{digest} in the artifact store"))?;
        let mut bytes = std::fs::read(&path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).with_context(|| format!("tampering with {}", path.display()))
    }

    /// What a device is assigned.
    pub fn assignment(&self, device: &DeviceId) -> Result<Assignment> {
        let targets = self.director_files(device)?.targets.context("targets")?;
        Ok(serde_json::from_value(write::signed_value(targets.as_slice())?["custom"].take())?)
    }

    /// The digest of the model file of the release that a device is assigned.
    pub fn model_of(&self, device: &DeviceId) -> Result<dunlin_protocol::Digest> {
        let assignment = self.assignment(device)?;
        let champion = &assignment.tasks.first().context("a task")?.lineup.champion;
        let manifest = find(&self.data, &format!(".{}", champion.target_name()))?.context("a manifest")?;
        let bundle: dunlin_protocol::Bundle = serde_json::from_slice(&std::fs::read(manifest)?)?;
        Ok(bundle.model.digest)
    }

    /// Sends a device director files over the broker, with the image files as they are served.
    pub async fn push(&self, device: &DeviceId, director: RepoFiles) -> Result<()> {
        self.push_check(device, self.check(director)?).await
    }

    /// Sends a device files of both repositories over the broker.
    pub async fn push_check(&self, device: &DeviceId, files: Check) -> Result<()> {
        let seal = || self.seal_check(device, files.clone(), now_ms()? + 1);
        self.publish_made(&Topic::down(device, Down::Desired), seal).await
    }
}

/// Raises the version of what a role signs by so much; returns it.
fn ahead(signed: &mut Value, leap: u64) -> Result<u64> {
    let version = signed["version"].as_u64().context("a version")? + leap;
    signed["version"] = version.into();
    Ok(version)
}

/// Everything that image files list, whoever signed it, by name.
fn listing(image: &RepoFiles) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    for file in image.targets.iter().chain(image.delegated.values()) {
        let mut signed = write::signed_value(file.as_slice())?;
        all.extend(std::mem::take(signed["targets"].as_object_mut().context("listed targets")?));
    }
    Ok(all)
}

fn now_ms() -> Result<u64> {
    Ok(u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?)
}

/// A file whose name contains this, anywhere below a folder.
pub(crate) fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|file| file.to_string_lossy().contains(name)) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
