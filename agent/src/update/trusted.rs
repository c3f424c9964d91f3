use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dunlin_protocol::{
    Check, DeviceId, DeviceProfile, Envelope, Header, Kind, Now, ReasonCode, RepoVersions, cbor,
};
use dunlin_trust::{
    Approved, Floors, Recovery, RepoKind, StoredFiles, TrustError, TrustedRepo, Verified, approve, envelope,
    floors, update_both,
};

use super::twin::{Twin, write_durably};

/// Largest cache of one repository's files.
const CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;

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

/// What this device believes: both repositories as verified so far, and the floors it never goes back behind.
#[derive(Debug)]
pub struct Trusted {
    dir: PathBuf,
    device: DeviceId,
    profile: DeviceProfile,
    image: TrustedRepo,
    director: TrustedRepo,
    floors: Floors,
    write: u64,
    image_cache: Twin,
    director_cache: Twin,
}

impl Trusted {
    /// Takes up the state in `dir`, or begins with the pinned roots. Damaged caches are fetched again; damaged
    /// floors are an error, because without them an old assignment could not be told from a new one.
    ///
    /// # Errors
    /// Files can not be read, a pinned root is no root, or both copies of the floors are damaged.
    pub fn open(
        dir: &Path,
        device: DeviceId,
        profile: DeviceProfile,
        image_root: &[u8],
        director_root: &[u8],
    ) -> Result<Self, TrustedError> {
        let io = |source| TrustedError::Io { dir: dir.to_path_buf(), source };
        let trust = |source| TrustedError::Trust { dir: dir.to_path_buf(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let copy = |name: &str| match std::fs::read(dir.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(e)),
        };
        let (a, b) = (copy("floors.a")?, copy("floors.b")?);
        let (floors, write, repair) = match floors::recover(a.as_deref(), b.as_deref()).map_err(trust)? {
            Recovery::Fresh => (Floors::default(), 0, false),
            Recovery::Known { floors, write, repair } => (floors, write, repair),
        };
        let (image_cache, image) = Twin::open(dir, "image").map_err(io)?;
        let (director_cache, director) = Twin::open(dir, "director").map_err(io)?;
        let take = |kind, cached: Option<Vec<u8>>, root: &[u8], floor: &RepoVersions| {
            let cached: Option<StoredFiles> =
                cached.and_then(|bytes| cbor::decode(&bytes, CACHE_BYTES_MAX).ok());
            if let Some(repo) = cached.and_then(|stored| TrustedRepo::restore(kind, &stored, floor).ok()) {
                return Ok(repo);
            }
            // The pinned root below the floor: the next update has to lead back up to it.
            let stored = StoredFiles { root: root.to_vec().into(), ..StoredFiles::default() };
            TrustedRepo::restore(kind, &stored, floor).map_err(trust)
        };
        let image = take(RepoKind::Image, image.body, image_root, &floors.image)?;
        let director = take(RepoKind::Director, director.body, director_root, &floors.director)?;
        let mut trusted = Self {
            dir: dir.to_path_buf(),
            device,
            profile,
            image,
            director,
            floors,
            write,
            image_cache,
            director_cache,
        };
        if repair {
            trusted.save_floors()?;
        }
        Ok(trusted)
    }

    /// This device.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// Versions held, of the image and the director repository.
    pub fn versions(&self) -> (RepoVersions, RepoVersions) {
        (self.image.versions(), self.director.versions())
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
        if let Err(refused) = self.floors.check_clock(now) {
            return Ok(Err(refused));
        }
        let (mut image, mut director) = (self.image.clone(), self.director.clone());
        if let Err(refused) = update_both(&mut image, &mut director, check, now) {
            return Ok(Err(refused));
        }
        // Caches first: above a floor they are welcome, below one they would be dropped.
        let io = |source| TrustedError::Io { dir: self.dir.clone(), source };
        if image.versions() != self.image.versions() {
            self.image_cache.save(&cbor::encode(&image.stored())).map_err(io)?;
        }
        if director.versions() != self.director.versions() {
            self.director_cache.save(&cbor::encode(&director.stored())).map_err(io)?;
        }
        (self.image, self.director) = (image, director);
        let wall_ms = self.floors.wall_ms.max(self.image.judged_ms()).max(self.director.judged_ms());
        let raised = Floors {
            image: self.image.floors(),
            director: self.director.floors(),
            wall_ms,
            ..self.floors.clone()
        };
        if raised != self.floors {
            self.floors = raised;
            self.save_floors()?;
        }
        Ok(Ok(()))
    }

    /// What the repositories say this device shall run. The raised floors are durable on return.
    ///
    /// # Errors
    /// The assignment is void as a whole, or the floors could not be written.
    pub fn approve(&mut self) -> Result<Result<Verified<Approved>, TrustError>, TrustedError> {
        let approved = match approve(&self.image, &self.director, &self.device, &self.profile, &self.floors) {
            Ok(approved) => approved,
            Err(refused) => return Ok(Err(refused)),
        };
        if approved.floors != self.floors {
            self.floors = approved.floors.clone();
            self.save_floors()?;
        }
        Ok(Ok(approved))
    }

    /// Opens a signed message for this device. The number of one that acts is durable before it is handed out; that of
    /// an acknowledgement only goes along with the next write, since hearing one twice changes nothing.
    ///
    /// # Errors
    /// Why it may not be believed.
    pub fn open_down(&mut self, envelope: &Envelope, now: Now) -> Result<Header, ReasonCode> {
        let header = envelope::open_down(envelope, &self.director, &self.device, self.floors.down_seq, now)
            .map_err(|e| e.reason())?;
        self.floors.down_seq = header.seq;
        if header.kind != Kind::Ack && self.save_floors().is_err() {
            return Err(ReasonCode::DiskFull);
        }
        Ok(header.into_inner())
    }

    fn save_floors(&mut self) -> Result<(), TrustedError> {
        self.write += 1;
        let bytes = floors::encode(&self.floors, self.write);
        for name in ["floors.a", "floors.b"] {
            write_durably(&self.dir, name, &bytes)
                .map_err(|source| TrustedError::Io { dir: self.dir.clone(), source })?;
        }
        Ok(())
    }
}
