use std::io;
use std::path::{Path, PathBuf};

use dunlin_protocol::{
    ACK_LIFE_MS, AckBody, BootId, Check, DeviceId, DeviceProfile, Digest, Envelope, Header, Kind, Now,
    PAYLOAD_BYTES_MAX, ReasonCode, RepoVersions, cbor,
};
use dunlin_trust::{
    Approved, CountedBy, Floors, Recovery, RepoKind, StoredFiles, TrustError, TrustedRepo, Verified, approve,
    envelope, floors, held_roles, pin, update_both,
};
use serde::{Deserialize, Serialize};

use super::twin::{Found, Twin, write_durably};
use crate::clock::WALL_MS_MIN;
use crate::damage;
use crate::identity::sync_dir;

/// Largest cache of one repository's files.
const CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A repository's files as they are kept, with the root they go back to: a record that got into another's place, or is of
/// another enrolment, must not bring its own root with it.
#[derive(Serialize, Deserialize)]
struct Cache {
    pin: Digest,
    files: StoredFiles,
}

impl Cache {
    fn encode(pin: Digest, repo: &TrustedRepo) -> Vec<u8> {
        cbor::encode(&Self { pin, files: repo.stored() })
    }

    fn decode(bytes: &[u8], pin: Digest) -> Option<StoredFiles> {
        let cache: Self = cbor::decode(bytes, CACHE_BYTES_MAX).ok()?;
        (cache.pin == pin).then_some(cache.files)
    }
}

/// Why trust can not be judged at all.
#[derive(Debug, thiserror::Error)]
pub enum TrustedError {
    /// A file can not be read or written.
    #[error("accessing trust state in {dir}")]
    Io {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The pinned roots or the floors are not usable.
    #[error("taking up trust state in {dir}")]
    Trust {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: TrustError,
    },
}

/// What an opened message acknowledges of one boot, whose id was drawn at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// The newest record that has arrived with all before it; 0 for none.
    pub upto: u64,
    /// When it was sealed, wall time in milliseconds, if it says so.
    sealed_ms: Option<u64>,
}

impl Acknowledged {
    /// `None` for a message of another kind, or about other boots.
    pub fn of(header: &Header, boot: BootId) -> Option<Self> {
        let body = Some(header.body.as_slice()).filter(|_| header.kind == Kind::Ack)?;
        let body: AckBody = cbor::decode(body, PAYLOAD_BYTES_MAX).ok()?;
        let range = body.ranges.iter().find(|range| range.boot == boot)?;
        let sealed_ms = header.exp.and_then(|exp| exp.checked_sub(ACK_LIFE_MS));
        Some(Self { upto: range.upto, sealed_ms })
    }
}

/// In what state the floors were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloorsFound {
    /// Whole, or the device is new.
    Whole,
    /// One copy was damaged or absent, and is written anew from the other.
    Repaired,
    /// Both were, and the floors were raised again from whole, verified caches. Caches are written before floors, so
    /// that these are not lower; the number of the last down-message and the latest verified time are forgotten.
    Rebuilt,
    /// Both were, and so was a cache. The device serves what it has, and accepts nothing new until it is enrolled anew.
    Lost,
}

/// What this device believes: both repositories as verified so far, and the floors it never goes back behind.
#[derive(Debug)]
pub struct Trusted {
    dir: PathBuf,
    device: DeviceId,
    profile: DeviceProfile,
    image: TrustedRepo,
    director: TrustedRepo,
    floors: Floors,
    /// Those on disk.
    kept: Floors,
    found: FloorsFound,
    write: u64,
    image_cache: Twin,
    director_cache: Twin,
    pins: [Digest; 2],
}

impl Trusted {
    /// Takes up the state in `dir`, or begins with the pinned roots. Damaged caches are fetched again. Damaged floors
    /// never read as "nothing seen yet"; see [`FloorsFound`].
    ///
    /// # Errors
    /// Files may not be read or can not be written, or a pinned root is no root. A file that is lost on the medium counts as
    /// damaged.
    pub fn open(
        dir: &Path,
        device: DeviceId,
        profile: DeviceProfile,
        image_root: &[u8],
        director_root: &[u8],
    ) -> Result<Self, TrustedError> {
        Self::open_with(dir, device, profile, image_root, director_root, &|path| std::fs::read(path))
    }

    /// The same, with a way to read files.
    fn open_with(
        dir: &Path,
        device: DeviceId,
        profile: DeviceProfile,
        image_root: &[u8],
        director_root: &[u8],
        read: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
    ) -> Result<Self, TrustedError> {
        let io = |source| TrustedError::Io { dir: dir.to_path_buf(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let copy = |name: &str| damage::held(read(&dir.join(name))).map_err(io);
        let (a, b) = (copy("floors.a")?, copy("floors.b")?);
        let (image_cache, image) = Twin::open_with(dir, "image", read).map_err(io)?;
        let (director_cache, director) = Twin::open_with(dir, "director", read).map_err(io)?;
        let nothing = Found { body: None, damaged: false };
        let new = image == nothing && director == nothing;
        let (floors, write, mut found) = match floors::recover(a.as_deref(), b.as_deref()) {
            Ok(Recovery::Known { floors, write, repair: false }) => (floors, write, FloorsFound::Whole),
            Ok(Recovery::Known { floors, write, repair: true }) => (floors, write, FloorsFound::Repaired),
            Ok(Recovery::Fresh) if new => (Floors::default(), 0, FloorsFound::Whole),
            // Caches without floors: somebody or something took the record away.
            Ok(Recovery::Fresh) | Err(_) => (Floors::default(), 0, FloorsFound::Lost),
        };
        let caches_are_whole = [&image, &director].iter().all(|cache| cache.body.is_some() && !cache.damaged);
        let take = |kind, cached: Option<Vec<u8>>, root: &[u8], floor: &RepoVersions| {
            let cached = cached.and_then(|bytes| Cache::decode(&bytes, pin(root)));
            let restored = cached.and_then(|stored| TrustedRepo::restore(kind, &stored, floor).ok());
            // A root that the floors do not know yet may take floors away; that is found out by walking up to it again.
            let known = |repo: &TrustedRepo| repo.versions().root <= floor.root || found == FloorsFound::Lost;
            if let Some(repo) = restored.filter(known) {
                return Ok(repo);
            }
            // The pinned root below the floor: the next update has to lead back up to it.
            let stored = StoredFiles { root: root.to_vec().into(), ..StoredFiles::default() };
            TrustedRepo::restore(kind, &stored, floor)
                .map_err(|source| TrustedError::Trust { dir: dir.to_path_buf(), source })
        };
        let image =
            take(RepoKind::Image, image.body, image_root, &floors.image)?.with_role_floors(&floors.roles);
        let director = take(RepoKind::Director, director.body, director_root, &floors.director)?;
        let mut trusted = Self {
            dir: dir.to_path_buf(),
            device,
            profile,
            image,
            director,
            kept: floors.clone(),
            floors,
            found,
            write,
            image_cache,
            director_cache,
            pins: [pin(image_root), pin(director_root)],
        };
        if found == FloorsFound::Lost && caches_are_whole && trusted.rebuild() {
            found = FloorsFound::Rebuilt;
        }
        trusted.found = found;
        match found {
            FloorsFound::Repaired | FloorsFound::Rebuilt => trusted.save_floors()?,
            FloorsFound::Whole | FloorsFound::Lost => {}
        }
        Ok(trusted)
    }

    /// Raises floors from caches that both hold a whole assignment.
    fn rebuild(&mut self) -> bool {
        let judged = approve(&self.image, &self.director, &self.device, &self.profile, &self.floors);
        judged.map(|approved| self.floors = approved.into_inner().floors).is_ok()
    }

    /// In what state the floors were found.
    pub fn found(&self) -> FloorsFound {
        self.found
    }

    /// Never goes back behind the generation that the update journal names, nor behind the keys that counted it: it is kept
    /// elsewhere, so that a trust folder that was restored from an older copy shows. Whether it was older.
    ///
    /// # Errors
    /// The raised floors could not be written.
    pub fn not_behind(
        &mut self,
        generation: u64,
        counted_by: Option<CountedBy>,
    ) -> Result<bool, TrustedError> {
        let known = self.floors.counted_by;
        let rank = |counted_by: Option<CountedBy>| counted_by.map_or(0, |keys| keys.root);
        // A journal that names no keys counts under those that are known.
        let behind = (rank(counted_by.or(known)), generation) > (rank(known), self.floors.generation);
        if !behind || self.found == FloorsFound::Lost {
            return Ok(false);
        }
        self.floors.counted_by = counted_by.or(known);
        self.floors.generation = generation;
        self.floors.assignment = None;
        self.save_floors()?;
        Ok(true)
    }

    /// Puts everything that was seen aside, so that the next start begins with the pinned roots: what a person asks for
    /// who enrols the device anew. It is kept once, under another name. No power cut brings it back after this.
    ///
    /// # Errors
    /// The folder can not be renamed.
    pub fn begin_anew(dir: &Path) -> Result<(), TrustedError> {
        Self::begin_anew_with(dir, &sync_dir)
    }

    /// The same, with a way to make the names in a folder durable.
    pub(super) fn begin_anew_with(
        dir: &Path,
        sync: &dyn Fn(&Path) -> io::Result<()>,
    ) -> Result<(), TrustedError> {
        let old = dir.with_extension("old");
        let aside = || {
            if dir.exists() {
                if old.exists() {
                    std::fs::remove_dir_all(&old)?;
                }
                std::fs::rename(dir, &old)?;
            }
            // Also where an earlier try was cut off before this.
            match dir.parent().filter(|parent| parent.exists()) {
                Some(parent) => sync(parent),
                None => Ok(()),
            }
        };
        aside().map_err(|source| TrustedError::Io { dir: dir.to_path_buf(), source })
    }

    /// This device.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// Versions held, of the image and the director repository.
    pub fn versions(&self) -> (RepoVersions, RepoVersions) {
        (self.image.versions(), self.director.versions())
    }

    /// What a check says of the roles of single tasks that are held.
    pub fn held_roles(&self) -> String {
        held_roles(&self.image, &self.director)
    }

    /// The floors.
    pub fn floors(&self) -> &Floors {
        &self.floors
    }

    /// Judges fetched or pushed files, whichever way they came, and makes what is believed durable.
    ///
    /// # Errors
    /// The first rule that is broken, or that the state could not be written; the state is then as it was.
    pub fn accept(&mut self, check: &Check, now: Now) -> Result<Result<(), TrustError>, TrustedError> {
        let now = match self.judging_time(now) {
            Ok(now) => now,
            Err(refused) => return Ok(Err(refused)),
        };
        let (mut image, mut director) = (self.image.clone(), self.director.clone());
        if let Err(refused) = update_both(&mut image, &mut director, check, now) {
            return Ok(Err(refused));
        }
        // Caches first: above a floor they are welcome, below one they would be dropped.
        let io = |source| TrustedError::Io { dir: self.dir.clone(), source };
        let held = |repo: &TrustedRepo| (repo.versions(), repo.role_versions());
        if held(&image) != held(&self.image) {
            self.image_cache.save(&Cache::encode(self.pins[0], &image)).map_err(io)?;
        }
        if director.versions() != self.director.versions() {
            self.director_cache.save(&Cache::encode(self.pins[1], &director)).map_err(io)?;
        }
        (self.image, self.director) = (image, director);
        // Those of releases too, whatever becomes of the assignment: its sender must not keep a withdrawal from this device.
        let raised = self.floors.raised_by(&self.image, &self.director);
        if raised != self.floors {
            self.raise(raised)?;
        }
        Ok(Ok(()))
    }

    /// What the repositories say this device shall run. The raised floors are durable on return.
    ///
    /// # Errors
    /// The assignment is void as a whole, or the floors could not be written.
    pub fn approve(&mut self) -> Result<Result<Verified<Approved>, TrustError>, TrustedError> {
        if self.found == FloorsFound::Lost {
            return Ok(Err(TrustError::FloorsDamaged));
        }
        let approved = match approve(&self.image, &self.director, &self.device, &self.profile, &self.floors) {
            Ok(approved) => approved,
            Err(refused) => return Ok(Err(refused)),
        };
        if approved.floors != self.floors {
            self.raise(approved.floors.clone())?;
        }
        Ok(Ok(approved))
    }

    /// The time to judge by, if anything may be judged at all.
    fn judging_time(&self, now: Now) -> Result<Now, TrustError> {
        if self.found == FloorsFound::Lost {
            return Err(TrustError::FloorsDamaged);
        }
        Ok(Now { wall_ms: Some(self.floors.check_clock(now)?), ..now })
    }

    /// How far the clock lies before a time at which metadata was judged fresh, milliseconds.
    pub fn clock_behind_ms(&self, now: Now) -> u64 {
        now.wall_ms.map_or(0, |now_ms| self.floors.wall_ms.saturating_sub(now_ms))
    }

    /// For how long what is held can not be judged fresh any more, milliseconds; `None` while it can, or while there is no
    /// clock or nothing is held.
    pub fn expired_ms(&self, now: Now) -> Option<u64> {
        let now_ms = now.wall_ms?.max(self.floors.wall_ms);
        let held = self.image.versions().timestamp > 0 && self.director.versions().timestamp > 0;
        let expires_ms = self.image.expires_ms().min(self.director.expires_ms());
        now_ms.checked_sub(expires_ms).filter(|_| held)
    }

    /// The wall time that an opened acknowledgement tells, if it may be believed: it lies within bounds, and is no replay,
    /// since it answers a record of this very boot.
    pub fn time_hint(&self, heard: &Acknowledged) -> Option<u64> {
        heard.sealed_ms.filter(|ms| self.floors.admits_hint(*ms, WALL_MS_MIN))
    }

    /// Opens a signed message for this device. The number of one that acts is durable before it is handed out; that of
    /// an acknowledgement only goes along with the next write, since hearing one twice changes nothing.
    ///
    /// # Errors
    /// Why it may not be believed.
    pub fn open_down(&mut self, envelope: &Envelope, now: Now) -> Result<Header, ReasonCode> {
        let now = Now { wall_ms: now.wall_ms.map(|ms| ms.max(self.floors.wall_ms)), ..now };
        let heard_from = self.director.timestamp_keys(self.floors.heard_from);
        let other_keys = self.floors.heard_from.is_some_and(|before| before != heard_from);
        let floor = if other_keys { 0 } else { self.floors.down_seq };
        let header = envelope::open_down(envelope, &self.director, &self.device, floor, now)
            .map_err(|e| e.reason())?;
        (self.floors.down_seq, self.floors.heard_from) = (header.seq, Some(heard_from));
        // Lost floors stay lost: a record written now would pass for a whole one at the next start.
        if header.kind != Kind::Ack && self.found != FloorsFound::Lost && self.save_floors().is_err() {
            return Err(ReasonCode::DiskFull);
        }
        Ok(header.into_inner())
    }

    /// Takes floors up once they are durable: those that the disk does not take are raised again the next time, before
    /// anything that stands on them is done. Time alone goes along with the next write, or makes one once an hour.
    fn raise(&mut self, floors: Floors) -> Result<(), TrustedError> {
        let before = std::mem::replace(&mut self.floors, floors);
        if self.floors.may_wait(&self.kept) {
            return Ok(());
        }
        let saved = self.save_floors();
        if saved.is_err() {
            self.floors = before;
        }
        saved
    }

    fn save_floors(&mut self) -> Result<(), TrustedError> {
        self.write += 1;
        let bytes = floors::encode(&self.floors, self.write);
        for name in ["floors.a", "floors.b"] {
            write_durably(&self.dir, name, &bytes)
                .map_err(|source| TrustedError::Io { dir: self.dir.clone(), source })?;
        }
        self.kept = self.floors.clone();
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
