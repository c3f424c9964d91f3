use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::TaskId as Task;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: {rule}")]
pub struct IdError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

const LABEL: &str = "use 1 to 64 of a-z, 0-9 and '-', with no '-' at either end";
const NAME: &str = "use labels of a-z, 0-9 and '-' joined by single dots, at most 96 characters, the last label not a number";

fn is_label(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A model name's last label is not a number, so that `name.version.json` reads in one way only.
fn is_name(text: &str) -> bool {
    text.len() <= 96
        && text.split('.').all(is_label)
        && !text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident, $rule:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if $check(text) { Ok(Self(text.to_string())) } else {
                    // A hostile id is cut, so that the error is no larger than it needs to be.
                    Err(IdError { what: $what, text: text.chars().take(100).collect(), rule: $rule })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

id!(/// A device of the fleet; the CN of its certificate and its level in every topic.
    DeviceId, "device id", is_label, LABEL);
id!(/// An inference job on a device, such as reading a meter.
    TaskId, "task id", is_label, LABEL);
id!(/// A set of devices that are managed alike.
    GroupId, "group id", is_label, LABEL);
id!(/// A hardware class: the name of a board file.
    ClassName, "device class", is_label, LABEL);
id!(/// A model line. Names that begin with `auto.{task}.` belong to retrained models.
    ModelName, "model name", is_name, NAME);

impl ModelName {
    /// The name of the retrained line of `task` in model family `family`.
    pub fn retrained(task: &Task, family: &str) -> Result<Self, IdError> {
        format!("auto.{task}.{family}").parse()
    }

    /// Whether the name lies in the path that the `retrained` delegation of `task` is confined to.
    pub fn is_retrained_for(&self, task: &Task) -> bool {
        self.0
            .strip_prefix("auto.")
            .and_then(|rest| rest.strip_prefix(task.as_str()))
            .is_some_and(|rest| rest.starts_with('.'))
    }

    /// Whether the name lies in the path of retrained models of any task.
    pub fn is_retrained(&self) -> bool {
        self.0.starts_with("auto.")
    }
}

/// One immutable release of a model line; written `name@version`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseId {
    /// The model line.
    pub model: ModelName,
    /// Counts up within the line; also what the release floor is compared with.
    pub version: u32,
}

impl ReleaseId {
    /// The TUF target that holds this release's manifest.
    pub fn target_name(&self) -> String {
        format!("{}.{}.json", self.model, self.version)
    }

    /// The release a TUF target name stands for, if it is a manifest's.
    pub fn from_target_name(name: &str) -> Option<Self> {
        let (model, version) = name.strip_suffix(".json")?.rsplit_once('.')?;
        Self::of(model, version).ok()
    }

    fn of(model: &str, version: &str) -> Result<Self, IdError> {
        let canonical = !version.starts_with('0') && version.bytes().all(|b| b.is_ascii_digit());
        let bad = || IdError {
            what: "release version",
            text: version.chars().take(100).collect(),
            rule: "use a whole number from 1",
        };
        let version = if canonical { version.parse().map_err(|_| bad())? } else { return Err(bad()) };
        Ok(Self { model: model.parse()?, version })
    }
}

impl FromStr for ReleaseId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (model, version) = text.split_once('@').ok_or_else(|| IdError {
            what: "release",
            text: text.chars().take(100).collect(),
            rule: "write it name@version",
        })?;
        Self::of(model, version)
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.model, self.version)
    }
}

impl fmt::Debug for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for ReleaseId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReleaseId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_in_topics_and_paths() {
        for bad in ["", "+", "#", "a/b", "..", "A", "-a", "a-", "a b", "a.b", "ä"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
        }
        assert!("pole-17".parse::<DeviceId>().is_ok());
        assert!("x".repeat(65).parse::<DeviceId>().is_err());
    }

    #[test]
    fn release_and_target_name_are_one_to_one() {
        let release: ReleaseId = "auto.meter.gbdt@7".parse().unwrap();
        assert_eq!(release.target_name(), "auto.meter.gbdt.7.json");
        assert_eq!(ReleaseId::from_target_name(&release.target_name()), Some(release));
        for bad in ["m@0", "m@01", "m@-1", "m", "m.1@2", "m@4294967296"] {
            assert!(bad.parse::<ReleaseId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_retrained_name_belongs_to_one_task() {
        let (meter, meters): (TaskId, TaskId) = ("meter".parse().unwrap(), "meters".parse().unwrap());
        let name = ModelName::retrained(&meters, "mlp").unwrap();
        assert!(name.is_retrained_for(&meters) && !name.is_retrained_for(&meter));
    }
}
