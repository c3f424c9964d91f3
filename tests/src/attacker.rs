//! Attacks from where attackers are: on the broker, behind HTTPS, in the artifact store, with stolen online keys.
//!
//! An attacker of this module holds a copy of the controller's data folder, as somebody who broke in would.
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
use serde_json::Value;

/// How long a stolen message claims to be valid, milliseconds.
const LIFE_MS: u64 = 600_000;
/// How long an attack on the broker may take.
const ATTACK_LIMIT: Duration = Duration::from_secs(30);
/// How often an attack on the broker is tried: on a busy machine the controller is back within a moment.
const ATTACKS_MAX: usize = 5;
/// How far forged versions lie above the true ones, and each forgery above the one before.
const VERSION_LEAP: u64 = 1000;

/// Somebody with the controller's data folder and a way to the broker.
#[derive(Debug)]
pub struct Attacker {
    data: PathBuf,
    broker: std::net::SocketAddr,
    forgeries: std::cell::Cell<u64>,
}

impl Attacker {
    /// Steals `data`, and reaches the broker at `broker`.
    pub fn new(data: &Path, broker: std::net::SocketAddr) -> Self {
        Self { data: data.into(), broker, forgeries: std::cell::Cell::new(0) }
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
        let meta = write::signed_value(&snapshot)?["meta"].clone();
        let role = |name: &str| -> Result<Option<Bytes>> {
            let Some(version) = meta[format!("{name}.json")]["version"].as_u64() else { return Ok(None) };
            Ok(Some(Bytes(std::fs::read(folder.join(format!("{version}.{name}.json")))?)))
        };
        Ok(RepoFiles {
            roots: Vec::new(),
            timestamp: Bytes(timestamp),
            targets: role("targets")?,
            delegated: role("retrained")?.map(|bytes| ("retrained".to_owned(), bytes)).into_iter().collect(),
            snapshot: Some(Bytes(snapshot)),
        })
    }

    /// The director files of `device`, signed anew with the stolen keys: far newer versions, and an assignment
    /// changed by `change`.
    pub fn forge(&self, device: &DeviceId, change: impl FnOnce(&mut Assignment)) -> Result<RepoFiles> {
        let keys = OnlineSigners::load(&self.data)?;
        self.forgeries.set(self.forgeries.get() + 1);
        let leap = VERSION_LEAP * self.forgeries.get();
        let files = self.director_files(device)?;
        let mut signed = write::signed_value(files.targets.context("targets")?.as_slice())?;
        let mut assignment: Assignment = serde_json::from_value(signed["custom"].take())?;
        let genuine = assignment.tasks.first().map(|task| task.lineup.champion.target_name());
        change(&mut assignment);
        signed["custom"] = serde_json::to_value(&assignment)?;
        // What the assignment names is listed as it is approved, or as if it were what it stands in for, down to what is
        // said of that where models are approved.
        let listed = signed["targets"].as_object_mut().context("listed targets")?;
        if let Some((name, mut entry)) =
            genuine.and_then(|name| Some((name.clone(), listed.get(&name)?.clone())))
        {
            let approved =
                write::signed_value(self.image_files()?.targets.context("image targets")?.as_slice())?;
            entry["custom"] = approved["targets"][&name]["custom"].clone();
            for task in &assignment.tasks {
                let name = task.lineup.champion.target_name();
                let own = approved["targets"].get(&name).unwrap_or(&entry).clone();
                listed.entry(name).or_insert(own);
            }
        }
        let version = signed["version"].as_u64().context("a version")? + leap;
        signed["version"] = version.into();
        let snapshot = write::signed_value(files.snapshot.context("a snapshot")?.as_slice())?;
        let timestamp = write::signed_value(files.timestamp.as_slice())?;
        let mut next_snapshot = snapshot.clone();
        next_snapshot["version"] = (snapshot["version"].as_u64().context("a version")? + leap).into();
        next_snapshot["meta"]["targets.json"] = serde_json::json!({ "version": version });
        let mut next_timestamp = timestamp.clone();
        next_timestamp["version"] = (timestamp["version"].as_u64().context("a version")? + leap).into();
        next_timestamp["meta"]["snapshot.json"] = serde_json::json!({ "version": next_snapshot["version"] });
        let sign = |value: &Value, role| write::sign(value, &[keys.of(role)]).map(Bytes);
        Ok(RepoFiles {
            roots: Vec::new(),
            timestamp: sign(&next_timestamp, OnlineRole::DirectorTimestamp)?,
            snapshot: Some(sign(&next_snapshot, OnlineRole::DirectorSnapshot)?),
            targets: Some(sign(&signed, OnlineRole::DirectorTargets)?),
            delegated: Default::default(),
        })
    }

    /// The director files of `device` with a timestamp that the stolen key signed: the next version, which ends at `expires`.
    /// Who can not sign a snapshot can do no more.
    pub fn forge_timestamp(&self, device: &DeviceId, expires: time::OffsetDateTime) -> Result<RepoFiles> {
        let keys = OnlineSigners::load(&self.data)?;
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
        let keys = OnlineSigners::load(&self.data)?;
        let files = self.check(director)?;
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
        let keys = OnlineSigners::load(&self.data)?;
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

    /// Publishes on the broker with the controller's stolen identity, and waits until the broker has taken it. The
    /// controller takes its session back, now and then before that; then this comes again.
    pub async fn publish(&self, topic: &Topic, payload: Vec<u8>) -> Result<()> {
        for _ in 1..ATTACKS_MAX {
            if self.publish_once(topic, payload.clone()).await.is_ok() {
                return Ok(());
            }
        }
        self.publish_once(topic, payload).await
    }

    async fn publish_once(&self, topic: &Topic, payload: Vec<u8>) -> Result<()> {
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
        client.try_publish(topic.to_string(), payload, PublishOptions::new(QoS::AtLeastOnce))?;
        let acknowledged = async {
            loop {
                if let Event::Incoming(Incoming::PubAck(_)) = events.poll().await? {
                    return anyhow::Ok(());
                }
            }
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

    /// The digest of the model file of the release that a device is assigned.
    pub fn model_of(&self, device: &DeviceId) -> Result<dunlin_protocol::Digest> {
        let targets =
            write::signed_value(self.director_files(device)?.targets.context("targets")?.as_slice())?;
        let assignment: Assignment = serde_json::from_value(targets["custom"].clone())?;
        let champion = &assignment.tasks.first().context("a task")?.lineup.champion;
        let manifest = find(&self.data, &format!(".{}", champion.target_name()))?.context("a manifest")?;
        let bundle: dunlin_protocol::Bundle = serde_json::from_slice(&std::fs::read(manifest)?)?;
        Ok(bundle.model.digest)
    }

    /// Sends a device director files over the broker.
    pub async fn push(&self, device: &DeviceId, director: RepoFiles) -> Result<()> {
        let payload = self.seal_desired(device, director)?;
        self.publish(&Topic::down(device, Down::Desired), payload).await
    }
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
