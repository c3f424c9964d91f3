//! The TUF repositories on disk: the image repository, and a director repository for each device.
//!
//! What is published is first verified by the same code that devices run. Every file is written whole before
//! the timestamp that leads to it. Functions here block on files; call them off the async threads.
//!
//! Layout under `DATA/repo`: `image/{N.root,N.targets,N.retrained,N.task-*,N.snapshot,timestamp}.json`,
//! `director/N.root.json`, `director/{device}/{N.targets,N.snapshot,timestamp}.json`, and the contents of
//! targets as `targets/{sha256}.{name}`.
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use dunlin_protocol::{Bytes, DeviceId, Digest, ReleaseId, RepoVersions, TaskId};
use dunlin_trust::metadata::{Kind, Root, Snapshot, Targets, Timestamp};
use dunlin_trust::{
    Ed25519Signer, RETRAINED, RepoKind, Signed, Signer, StoredFiles, TrustError, TrustedRepo, pin, task_of,
    task_role,
};

use crate::keys::{DAY_MS, KeyError, OnlineRole, OnlineSigners};

mod catalogue;
mod director;
mod disk;
mod export;
mod files;
mod image;

use image::Changes;

pub use catalogue::{Approval, ProgramApproval};
pub use export::EXPORT_DAYS_MAX;

/// Life of a timestamp: for how long a device can be held back without noticing.
pub const TIMESTAMP_LIFE_MS: u64 = DAY_MS;
/// Life of a snapshot.
pub const SNAPSHOT_LIFE_MS: u64 = 7 * DAY_MS;
/// Life of what online keys list: assignments and retrained models.
pub const ONLINE_TARGETS_LIFE_MS: u64 = 90 * DAY_MS;

/// Why something can not be published or read.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// The ceremony's files were never imported.
    #[error(
        "the repositories have no roots yet; run `dunlin key ceremony` elsewhere, then `dunlin key import` its public folder"
    )]
    NotSetUp,
    /// The ceremony's files were imported before.
    #[error("the repositories have roots already; devices pin them, so they are renewed, never replaced")]
    AlreadySetUp,
    /// A file can not be read or written.
    #[error("could not {attempted} {path}")]
    File {
        /// What was attempted.
        attempted: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that others lead to is missing or malformed.
    #[error("{path} is missing or damaged; bring the repo folder back from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// What was to be published would not be accepted by a device.
    #[error("could not {attempted}")]
    Trust {
        /// What was attempted.
        attempted: &'static str,
        /// Why a device would refuse it.
        #[source]
        source: TrustError,
    },
    /// The online keys.
    #[error("could not load the online keys")]
    Keys(#[from] KeyError),
    /// The root names other online keys than this data folder holds.
    #[error(
        "the root does not name this controller's {0} key; the ceremony was given the online.json of another data folder"
    )]
    ForeignKey(&'static str),
    /// An assignment names a release that is not approved.
    #[error("{0} is not in the image repository; approve it before it is assigned")]
    NotApproved(ReleaseId),
    /// An assignment goes back, or changes without a new generation.
    #[error("the assignment for {device} has generation {got}; {have} is published")]
    Generation {
        /// The device.
        device: DeviceId,
        /// Its generation.
        got: u64,
        /// The published one.
        have: u64,
    },
    /// A target name that its role may not list, or that is no file name.
    #[error("{0:?} is no name for this target")]
    Name(String),
    /// A delegation whose file is not there.
    #[error("the targets delegate to {0} for the first time; publish its file together with them")]
    RoleMissing(String),
    /// A role of a task that nobody would ask for.
    #[error("nothing of {0} would be believed: the targets do not delegate to it, or its file is expired")]
    NotDelegated(String),
    /// A release is listed with other content.
    #[error("{0} is listed with other content; a release never changes")]
    Immutable(String),
}

impl RepoError {
    fn trust(attempted: &'static str) -> impl Fn(TrustError) -> Self {
        move |source| Self::Trust { attempted, source }
    }
}

/// Files that were signed offline, to be published together.
#[derive(Debug, Clone, Default)]
pub struct Offline {
    /// The next root of the image repository.
    pub image_root: Option<Vec<u8>>,
    /// The next root of the director repository.
    pub director_root: Option<Vec<u8>>,
    /// The next top-level targets of the image repository.
    pub targets: Option<Vec<u8>>,
    /// The next file of the role of each of these tasks.
    pub tasks: BTreeMap<TaskId, Vec<u8>>,
}

/// Both repositories.
#[derive(Debug)]
pub struct Repos {
    folder: PathBuf,
    signers: OnlineSigners,
    state: RwLock<Option<Arc<State>>>,
    /// Held while publishing, so that versions are given out one after the other.
    publishing: Mutex<()>,
}

/// What is published.
#[derive(Debug, Clone)]
struct State {
    image: TrustedRepo,
    /// Its files, ready to be handed out.
    served: StoredFiles,
    /// Versions given out last; they go on counting where a key rotation resets what is trusted.
    last: RepoVersions,
    /// The same of the roles of single tasks, by name. One that the targets do not delegate to any more stays: clients do
    /// not let a snapshot forget a file.
    roles: BTreeMap<String, u64>,
    image_roots: Vec<Bytes>,
    director: TrustedRepo,
    director_roots: Vec<Bytes>,
    /// When the next file of the image repository is to be signed anew, Unix milliseconds.
    due_ms: u64,
}

impl Repos {
    /// Opens the repositories of a data folder. Without an imported ceremony they are empty and refuse to
    /// publish.
    ///
    /// # Errors
    /// A key or file can not be read or does not verify.
    pub fn open(data: &Path) -> Result<Self, RepoError> {
        let folder = data.join("repo");
        let signers = OnlineSigners::load(data)?;
        let repos = Self { folder, signers, state: RwLock::new(None), publishing: Mutex::new(()) };
        if repos.image_folder().join("timestamp.json").exists() {
            let state = repos.load()?;
            repos.check_signers(state.image.root(), state.director.root())?;
            repos.set(state);
        }
        Ok(repos)
    }

    /// Takes over the public folder of a key ceremony and publishes the first snapshot and timestamp.
    ///
    /// # Errors
    /// The files do not verify, name other online keys, or there are roots already.
    pub fn import(&self, public: &Path, now_ms: u64) -> Result<(), RepoError> {
        let _publishing = self.publishing();
        if self.state().is_ok() {
            return Err(RepoError::AlreadySetUp);
        }
        let image_root = disk::need(&public.join("image/1.root.json"))?;
        let targets = disk::need(&public.join("image/1.targets.json"))?;
        let director_root = disk::need(&public.join("director/1.root.json"))?;
        let failed = RepoError::trust("take over the roots of the ceremony");
        let image = TrustedRepo::pinned(RepoKind::Image, &image_root).map_err(&failed)?;
        let director = TrustedRepo::pinned(RepoKind::Director, &director_root).map_err(&failed)?;
        self.check_signers(image.root(), director.root())?;
        let state = State {
            image,
            served: StoredFiles::default(),
            last: RepoVersions::default(),
            roles: BTreeMap::new(),
            image_roots: vec![Bytes(image_root.clone())],
            director,
            director_roots: vec![Bytes(director_root.clone())],
            due_ms: 0,
        };
        let retrained = self.sign_retrained(1, &[], now_ms)?;
        let changes = Changes { targets: Some(targets), retrained: Some(retrained), ..Changes::default() };
        let (next, files) = self.build_image(&state, changes, now_ms)?;
        // The timestamp of the image repository is written last of all: its presence means "set up".
        disk::write_atomic(&self.folder.join("director/1.root.json"), &director_root)?;
        disk::write_atomic(&self.image_folder().join("1.root.json"), &image_root)?;
        self.write_image(next, &files)
    }

    /// Reads what is published, verifying it from the first root on.
    fn load(&self) -> Result<State, RepoError> {
        let failed = RepoError::trust("verify the published repositories");
        let image_roots = read_roots(&self.image_folder())?;
        let director_roots = read_roots(&self.folder.join("director"))?;
        let folder = self.image_folder();
        let timestamp = disk::need(&folder.join("timestamp.json"))?;
        let head: Signed<Timestamp> = parse(&folder.join("timestamp.json"), &timestamp)?;
        let named = head.unverified().meta["snapshot.json"].version;
        let snapshot_path = folder.join(format!("{named}.snapshot.json"));
        let snapshot = disk::need(&snapshot_path)?;
        let listed: Signed<Snapshot> = parse(&snapshot_path, &snapshot)?;
        let version =
            |role: &str| listed.unverified().meta.get(&format!("{role}.json")).map_or(0, |meta| meta.version);
        let last = RepoVersions {
            root: image_roots.len() as u64,
            timestamp: head.head().version,
            snapshot: named,
            targets: version("targets"),
            retrained: version(RETRAINED),
        };
        let targets = disk::need(&folder.join(format!("{}.targets.json", last.targets)))?;
        let retrained = disk::need(&folder.join(format!("{}.{RETRAINED}.json", last.retrained)))?;
        let mut roles = BTreeMap::new();
        let mut delegated = BTreeMap::from([(RETRAINED.to_owned(), Bytes(retrained))]);
        for (name, meta) in &listed.unverified().meta {
            if let Some(role) = name.strip_suffix(".json").filter(|role| task_of(role).is_some()) {
                roles.insert(role.to_owned(), meta.version);
                let file = disk::need(&folder.join(format!("{}.{name}", meta.version)))?;
                delegated.insert(role.to_owned(), Bytes(file));
            }
        }
        let stored = StoredFiles {
            root: image_roots.last().cloned().unwrap_or_default(),
            timestamp: Some(Bytes(timestamp)),
            snapshot: Some(Bytes(snapshot)),
            targets: Some(Bytes(targets)),
            delegated,
        };
        follow(RepoKind::Image, &image_roots).map_err(&failed)?;
        let image =
            TrustedRepo::restore(RepoKind::Image, &stored, &RepoVersions::default()).map_err(&failed)?;
        let director = follow(RepoKind::Director, &director_roots).map_err(&failed)?;
        let served = image.stored();
        let mut state =
            State { image, served, last, roles, image_roots, director, director_roots, due_ms: 0 };
        state.due_ms = image::due_ms(&state)?;
        Ok(state)
    }

    /// That the roots name the keys we hold, said by name before a signature fails for it.
    fn check_signers(&self, image: &Root, director: &Root) -> Result<(), RepoError> {
        let roles = [
            (&image.roles.timestamp, OnlineRole::ImageTimestamp),
            (&image.roles.snapshot, OnlineRole::ImageSnapshot),
            (&director.roles.timestamp, OnlineRole::DirectorTimestamp),
            (&director.roles.snapshot, OnlineRole::DirectorSnapshot),
            (&director.roles.targets, OnlineRole::DirectorTargets),
        ];
        let foreign = roles
            .iter()
            .find(|(named, role)| !named.keyids.iter().any(|id| id == self.signers.of(*role).key_id()));
        foreign.map_or(Ok(()), |(_, role)| Err(RepoError::ForeignKey(role.as_str())))
    }

    /// Publishes what was signed offline and may name other online keys, in the data folder of a controller that
    /// is not running. Everything below it is signed anew.
    ///
    /// # Errors
    /// A root is not the next one, signatures are lacking, or what results names other online keys than are in
    /// the data folder.
    pub fn publish_offline(data: &Path, offline: &Offline, now_ms: u64) -> Result<(), RepoError> {
        let repos = Self {
            folder: data.join("repo"),
            signers: OnlineSigners::load(data)?,
            state: RwLock::new(None),
            publishing: Mutex::new(()),
        };
        let mut state = repos.load()?;
        let listed = image::retrained_listed(&state)?;
        let failed = RepoError::trust("publish a root");
        if let Some(root) = &offline.image_root {
            state.image.step_root(root).map_err(&failed)?;
            state.image_roots.push(Bytes(root.clone()));
            state.last.root += 1;
        }
        if let Some(root) = &offline.director_root {
            state.director.step_root(root).map_err(&failed)?;
            state.director_roots.push(Bytes(root.clone()));
        }
        repos.check_signers(state.image.root(), state.director.root())?;
        let retrained = repos.sign_retrained(state.last.retrained + 1, &listed, now_ms)?;
        let targets = offline.targets.clone().or_else(|| state.served.targets.clone().map(|bytes| bytes.0));
        let mut roles = BTreeMap::new();
        for (task, bytes) in &offline.tasks {
            let role = task_role(task);
            image::rises(&role, bytes, state.roles.get(&role).copied().unwrap_or(0))?;
            roles.insert(role, bytes.clone());
        }
        let changes = Changes { targets, retrained: Some(retrained), roles };
        let (next, files) = repos.build_image(&state, changes, now_ms)?;
        if let Some(root) = &offline.image_root {
            disk::write_atomic(
                &repos.image_folder().join(format!("{}.root.json", next.image_roots.len())),
                root,
            )?;
        }
        if let Some(root) = &offline.director_root {
            let name = format!("{}.root.json", next.director_roots.len());
            disk::write_atomic(&repos.folder.join("director").join(name), root)?;
        }
        repos.write_image(next, &files)?;
        if offline.director_root.is_some() { repos.resign_directors(now_ms) } else { Ok(()) }
    }

    /// The first root of a repository, whose digest claim tokens pin.
    ///
    /// # Errors
    /// There is none yet.
    pub fn first_root(&self, kind: RepoKind) -> Result<Bytes, RepoError> {
        let state = self.state()?;
        let roots = match kind {
            RepoKind::Image => &state.image_roots,
            RepoKind::Director => &state.director_roots,
        };
        Ok(roots[0].clone())
    }

    /// The pin of a repository.
    ///
    /// # Errors
    /// There is no root yet.
    pub fn pin(&self, kind: RepoKind) -> Result<Digest, RepoError> {
        Ok(pin(self.first_root(kind)?.as_slice()))
    }

    /// The image repository as a device with the newest files sees it. Cheap: the files are shared.
    ///
    /// # Errors
    /// There is none yet.
    pub fn image(&self) -> Result<TrustedRepo, RepoError> {
        Ok(self.state()?.image.clone())
    }

    /// The key that signs messages to devices: the director's timestamp key.
    pub fn down_signer(&self) -> &Ed25519Signer {
        self.signers.of(OnlineRole::DirectorTimestamp)
    }

    fn image_folder(&self) -> PathBuf {
        self.folder.join("image")
    }

    fn state(&self) -> Result<Arc<State>, RepoError> {
        let state = self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.clone().ok_or(RepoError::NotSetUp)
    }

    fn set(&self, state: State) {
        *self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::new(state));
    }

    fn publishing(&self) -> MutexGuard<'_, ()> {
        // What the lock guards lies on disk and is whole at every step.
        self.publishing.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Every root in a folder, from the first on.
fn read_roots(folder: &Path) -> Result<Vec<Bytes>, RepoError> {
    let mut roots = vec![Bytes(disk::need(&folder.join("1.root.json"))?)];
    while let Some(next) = disk::read(&folder.join(format!("{}.root.json", roots.len() + 1)))? {
        roots.push(Bytes(next));
    }
    Ok(roots)
}

fn follow(kind: RepoKind, roots: &[Bytes]) -> Result<TrustedRepo, TrustError> {
    let mut repo = TrustedRepo::pinned(kind, roots[0].as_slice())?;
    roots[1..].iter().try_for_each(|root| repo.step_root(root.as_slice()))?;
    Ok(repo)
}

/// Reads one of our own files.
fn parse<T: Kind>(path: &Path, bytes: &[u8]) -> Result<Signed<T>, RepoError> {
    Signed::parse(T::TYPE, bytes).map_err(|_| RepoError::Damaged { path: path.to_owned() })
}

/// Whether less than half of a life is left, or more than a whole one: that was signed by a clock that was ahead, and
/// would hide for as long that nothing newer comes.
fn is_due(expires_ms: u64, life_ms: u64, now_ms: u64) -> bool {
    now_ms >= due_of(expires_ms, life_ms) || expires_ms > now_ms.saturating_add(life_ms)
}

fn due_of(expires_ms: u64, life_ms: u64) -> u64 {
    expires_ms.saturating_sub(life_ms / 2)
}

fn targets_head(path: &Path, bytes: &[u8]) -> Result<(u64, u64), RepoError> {
    let head = parse::<Targets>(path, bytes)?.head().clone();
    Ok((head.version, head.expires_ms))
}
