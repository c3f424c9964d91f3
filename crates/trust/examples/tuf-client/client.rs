//! The client workflow of the specification (§5), file by file.
use std::fs;
use std::path::PathBuf;

use dunlin_protocol::{Bytes, Now, RepoVersions};
use dunlin_trust::metadata::{Kind, Root, Snapshot, Targets, Timestamp};
use dunlin_trust::{Lookup, ROOTS_MAX, RepoKind, StoredFiles, TrustedRepo};

use super::http::{get, quote, unquote};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Where metadata and targets come from and go to.
#[derive(Clone, Default)]
pub(crate) struct Places {
    pub(crate) metadata_dir: PathBuf,
    pub(crate) metadata_url: String,
    pub(crate) target_base_url: String,
    pub(crate) target_dir: PathBuf,
}

pub(crate) struct Client {
    places: Places,
    repo: TrustedRepo,
    now: Now,
}

impl Client {
    pub(crate) fn open(places: Places, now: Now) -> Outcome<Self> {
        let mut stored = StoredFiles::default();
        for entry in fs::read_dir(&places.metadata_dir)? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let bytes = Bytes(fs::read(&path)?);
            match name {
                "root" => stored.root = bytes,
                "timestamp" => stored.timestamp = Some(bytes),
                "snapshot" => stored.snapshot = Some(bytes),
                "targets" => stored.targets = Some(bytes),
                role => drop(stored.delegated.insert(unquote(role)?, bytes)),
            }
        }
        let repo = TrustedRepo::restore(RepoKind::Image, &stored, &RepoVersions::default())?;
        Ok(Self { places, repo, now })
    }

    /// §5.3–5.6.
    pub(crate) fn refresh(&mut self) -> Outcome<()> {
        let url = self.places.metadata_url.clone();
        for _ in 0..ROOTS_MAX {
            let next = format!("{url}/{}.root.json", self.repo.versions().root + 1);
            let Some(root) = get(&next, Root::BYTES_MAX as u64)? else { break };
            self.repo.step_root(&root)?;
            self.save("root", &root)?;
        }
        self.repo.check_root(self.now)?;
        let timestamp = get(&format!("{url}/timestamp.json"), Timestamp::BYTES_MAX as u64)?;
        self.repo.step_timestamp(&timestamp.ok_or("the timestamp is missing")?, self.now)?;
        self.save("timestamp", self.repo.stored().timestamp.unwrap_or_default().as_slice())?;
        if let Some(version) = self.repo.snapshot_wanted() {
            let snapshot = self.metadata("snapshot", version, Snapshot::BYTES_MAX)?;
            self.repo.step_snapshot(&snapshot, self.now)?;
            self.save("snapshot", &snapshot)?;
        }
        self.repo.check_snapshot(self.now)?;
        if let Some(version) = self.repo.targets_wanted() {
            let targets = self.metadata("targets", version, Targets::BYTES_MAX)?;
            self.repo.step_targets(&targets, self.now)?;
            self.save("targets", &targets)?;
        }
        Ok(self.repo.check_targets(self.now)?)
    }

    /// §5.6.7 and §5.7: looks for the target, fetching delegated roles as the search asks for them.
    pub(crate) fn download(&mut self, name: &str) -> Outcome<()> {
        loop {
            let (delegator, role, version) = match self.repo.lookup(name) {
                Lookup::Absent => return Err(format!("no trusted role names {name}").into()),
                Lookup::Found { .. } => return self.fetch_target(name),
                Lookup::Needs { delegator, role, version } => {
                    (delegator.to_owned(), role.to_owned(), version)
                }
            };
            let held = self.repo.stored().delegated.remove(&role);
            let held = held.is_some_and(|held| {
                self.repo.step_delegated(&delegator, &role, held.as_slice(), self.now).is_ok()
            });
            if !held {
                let bytes = self.metadata(&role, version, Targets::BYTES_MAX)?;
                self.repo.step_delegated(&delegator, &role, &bytes, self.now)?;
                self.save(&role, &bytes)?;
            }
        }
    }

    fn fetch_target(&self, name: &str) -> Outcome<()> {
        let Lookup::Found { file, .. } = self.repo.lookup(name) else {
            return Err("the target is gone".into());
        };
        let path = self.places.target_dir.join(quote(name));
        if fs::read(&path).is_ok_and(|held| file.matches(&held).is_ok()) {
            return Ok(());
        }
        let digest = file.hashes.values().next().ok_or("the target has no digest")?;
        let (folder, base) =
            name.rsplit_once('/').map_or((String::new(), name), |(a, b)| (format!("{a}/"), b));
        let served = if self.repo.root().consistent_snapshot {
            format!("{folder}{digest}.{base}")
        } else {
            name.to_owned()
        };
        let served: Vec<String> = served.split('/').map(quote).collect();
        let url = format!("{}/{}", self.places.target_base_url, served.join("/"));
        let bytes = get(&url, file.length)?.ok_or("the target is missing")?;
        file.matches(&bytes)?;
        Ok(fs::write(path, bytes)?)
    }

    fn metadata(&self, role: &str, version: u64, max: usize) -> Outcome<Vec<u8>> {
        let role = quote(role);
        let name = if self.repo.root().consistent_snapshot {
            format!("{version}.{role}.json")
        } else {
            format!("{role}.json")
        };
        get(&format!("{}/{name}", self.places.metadata_url), max as u64)?
            .ok_or_else(|| format!("{name} is missing").into())
    }

    fn save(&self, role: &str, bytes: &[u8]) -> Outcome<()> {
        Ok(fs::write(self.places.metadata_dir.join(format!("{}.json", quote(role))), bytes)?)
    }
}
