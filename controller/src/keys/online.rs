//! The keys that live on the controller. They can delay or mis-pick; they can not approve.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dunlin_trust::{Ed25519Signer, Key};
use serde_json::{Map, Value};

use super::KeyError;
use super::file;

/// Folder of the online keys within a data folder.
const FOLDER: &str = "keys";
/// File with their public halves, for the ceremony.
const PUBLIC: &str = "online.json";

/// What an online key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnlineRole {
    /// Assignments.
    DirectorTargets,
    /// Which assignment is whole.
    DirectorSnapshot,
    /// Which assignment is current; also messages to devices.
    DirectorTimestamp,
    /// Which approvals belong together.
    ImageSnapshot,
    /// Which approvals are current.
    ImageTimestamp,
    /// Retrained models, within what offline-signed policies allow.
    Retrained,
}

impl OnlineRole {
    /// Every role.
    pub const ALL: [Self; 6] = [
        Self::DirectorTargets,
        Self::DirectorSnapshot,
        Self::DirectorTimestamp,
        Self::ImageSnapshot,
        Self::ImageTimestamp,
        Self::Retrained,
    ];

    /// Name of the role in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DirectorTargets => "director-targets",
            Self::DirectorSnapshot => "director-snapshot",
            Self::DirectorTimestamp => "director-timestamp",
            Self::ImageSnapshot => "image-snapshot",
            Self::ImageTimestamp => "image-timestamp",
            Self::Retrained => "retrained",
        }
    }
}

/// The public halves: what the ceremony puts into the roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineKeys(BTreeMap<OnlineRole, Key>);

impl OnlineKeys {
    /// Reads the file that [`create_online`] wrote.
    ///
    /// # Errors
    /// It can not be read, or a role is missing.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let bad = |what| KeyError::Online { path: path.to_owned(), what };
        let bytes = fs::read(path).map_err(KeyError::file("read", path))?;
        let mut file: Value = serde_json::from_slice(&bytes).map_err(|_| bad("it is no JSON"))?;
        let mut keys = BTreeMap::new();
        for role in OnlineRole::ALL {
            let declared =
                file.get_mut(role.as_str()).map(Value::take).ok_or_else(|| bad("a role is missing"))?;
            keys.insert(role, Key::from_value(declared).map_err(|_| bad("a key does not read"))?);
        }
        Ok(Self(keys))
    }

    /// The public key of a role.
    pub fn of(&self, role: OnlineRole) -> &Key {
        &self.0[&role]
    }

    fn to_json(&self) -> Value {
        self.0
            .iter()
            .map(|(role, key)| (role.as_str().to_owned(), key.declared().clone()))
            .collect::<Map<_, _>>()
            .into()
    }
}

/// The private halves.
#[derive(Debug)]
pub struct OnlineSigners(BTreeMap<OnlineRole, Ed25519Signer>);

impl OnlineSigners {
    /// Reads the keys of a data folder.
    ///
    /// # Errors
    /// A key file is missing, exposed, or no key.
    pub fn load(data: &Path) -> Result<Self, KeyError> {
        let load = |role: OnlineRole| {
            Ok((role, file::load(&data.join(FOLDER).join(format!("{}.pem", role.as_str())), None)?))
        };
        OnlineRole::ALL.into_iter().map(load).collect::<Result<_, _>>().map(Self)
    }

    /// The key of a role.
    pub fn of(&self, role: OnlineRole) -> &Ed25519Signer {
        &self.0[&role]
    }

    /// The public halves.
    pub fn public(&self) -> OnlineKeys {
        OnlineKeys(self.0.iter().map(|(role, signer)| (*role, signer.key().clone())).collect())
    }
}

/// Makes the online keys of a new data folder, `keys/*.pem`, and `keys/online.json` with their public halves.
///
/// # Errors
/// A key exists or can not be written.
pub fn create_online(data: &Path) -> Result<OnlineKeys, KeyError> {
    let folder = data.join(FOLDER);
    super::ceremony::private_folder(&folder)?;
    let mut keys = BTreeMap::new();
    for role in OnlineRole::ALL {
        let signer = file::write_new(&folder.join(format!("{}.pem", role.as_str())), None)?;
        keys.insert(role, signer.key().clone());
    }
    let keys = OnlineKeys(keys);
    let text = serde_json::to_string_pretty(&keys.to_json()).expect("keys are JSON");
    let path = folder.join(PUBLIC);
    fs::write(&path, text).map_err(KeyError::file("write", &path))?;
    Ok(keys)
}
