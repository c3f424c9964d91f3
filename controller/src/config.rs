//! `controller.toml`: what an operator may set. Every field has a default, unknown fields are refused.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use dunlin_monitor::vote::WINDOWS_MAX;
use serde::{Deserialize, Serialize};

use crate::evidence::EvidenceConfig;

/// Why the configuration can not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can not be read.
    #[error("could not read {path}; run `dunlin init --data {data}` first")]
    Read {
        /// The file.
        path: PathBuf,
        /// The data folder.
        data: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not of the right form.
    #[error("{path} is not a valid configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// A value makes no sense.
    #[error("{field} in controller.toml {rule}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

/// Configuration of the controller.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// HTTP API.
    pub api: Api,
    /// MQTT broker.
    pub mqtt: Mqtt,
    /// Certificates of devices.
    pub identity: Identity,
    /// How often strangers may knock.
    pub limits: Limits,
    /// Ingest of what devices send.
    pub ingest: Ingest,
    /// Planner loop.
    pub planner: Planner,
    /// Training supervisor.
    pub training: Training,
    /// How windows become evidence.
    pub evidence: EvidenceConfig,
    /// How long what devices sent is kept.
    pub retention: Retention,
}

/// The HTTP API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Address to listen on; port 0 picks a free one, which is written to `run/api.addr`.
    pub listen: SocketAddr,
    /// Base URL written into claim tokens; empty means `https://` and the address listened on.
    pub public_url: String,
}

impl Default for Api {
    fn default() -> Self {
        Self { listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443), public_url: String::new() }
    }
}

/// The broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mqtt {
    /// Address of the embedded broker; port 0 picks a free one, which is written to `run/mqtt.addr`.
    pub listen: SocketAddr,
    /// Host name or address that devices dial; empty means the address listened on.
    pub public_host: String,
    /// Clients at once.
    pub clients_max: usize,
    /// An external broker to use instead of the embedded one.
    pub external: Option<ExternalBroker>,
}

impl Default for Mqtt {
    fn default() -> Self {
        let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8883);
        Self { listen, public_host: String::new(), clients_max: 10_000, external: None }
    }
}

/// A broker that somebody else runs, with mTLS and the certificate's common name as user name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalBroker {
    /// Host name, as in its certificate.
    pub host: String,
    /// TLS port.
    pub port: u16,
    /// Authority of its certificate, PEM file; absent means the controller's own.
    pub ca: Option<PathBuf>,
    /// The controller's client certificate, PEM file; absent means the one in the data folder.
    pub certificate: Option<PathBuf>,
    /// The key to it, PKCS#8 PEM file; absent means the one in the data folder.
    pub key: Option<PathBuf>,
    /// Folder for the broker's access list and revocation list; absent means `broker` in the data folder.
    pub lists: Option<PathBuf>,
    /// Command that makes the broker read its lists again, program and arguments; empty if something else does.
    #[serde(default)]
    pub reload: Vec<String>,
}

/// Certificates of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// How long a certificate is valid, seconds. A device renews it by itself from two thirds of that time on.
    pub device_valid_s: u64,
    /// How long after its end a device may still renew it by the key it enrolled with, seconds; after that it
    /// needs a new claim.
    pub lapsed_s: u64,
}

impl Default for Identity {
    fn default() -> Self {
        // Boards lie in stores for years and come back by themselves; the way to keep one out is to revoke it.
        Self { device_valid_s: 90 * 86_400, lapsed_s: 5 * 365 * 86_400 }
    }
}

/// How often one address may knock at the API; as many at once, then evenly over the minute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests to enrol or to renew a certificate.
    pub enrol_per_minute: u32,
    /// Wrong tokens and claims; what comes after them is refused unread.
    pub wrong_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        // A hall of devices enrols behind one address; a person mistypes a token a few times.
        Self { enrol_per_minute: 600, wrong_per_minute: 10 }
    }
}

/// Ingest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ingest {
    /// Records per transaction at most.
    pub batch_max: usize,
    /// How long a batch waits for more records, milliseconds.
    pub batch_ms: u64,
}

impl Default for Ingest {
    fn default() -> Self {
        Self { batch_max: 1000, batch_ms: 5 }
    }
}

/// Planner loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Planner {
    /// Time between two looks at the fleet when nothing wakes the planner, milliseconds.
    pub tick_ms: u64,
}

impl Default for Planner {
    fn default() -> Self {
        Self { tick_ms: 10_000 }
    }
}

/// Training supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Time between two looks at the triggers when nothing wakes the supervisor, milliseconds.
    pub tick_ms: u64,
    /// Workers at once.
    pub workers_max: usize,
    /// CPU seconds of one worker.
    pub cpu_s_max: u64,
    /// Memory of one worker, bytes.
    pub memory_bytes_max: u64,
}

impl Default for Training {
    fn default() -> Self {
        Self { tick_ms: 10_000, workers_max: 1, cpu_s_max: 1800, memory_bytes_max: 4 << 30 }
    }
}

/// How long what devices sent is kept. Samples, which training needs, and the audit log are kept for ever.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Windows, days.
    pub windows_days: u64,
    /// Outcomes of updates, indicators, gaps and replies, days. How each release last ended on each device is kept
    /// for ever.
    pub events_days: u64,
}

impl Default for Retention {
    fn default() -> Self {
        // A season of evidence, and a year to look into what happened.
        Self { windows_days: 90, events_days: 365 }
    }
}

impl Config {
    /// Reads and checks `controller.toml` of a data folder.
    pub fn load(data: &Path) -> Result<Self, ConfigError> {
        let path = data.join("controller.toml");
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            data: data.to_owned(),
            source,
        })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse { path, source })?;
        config.check()?;
        Ok(config)
    }

    /// Refuses values that can not work.
    pub fn check(&self) -> Result<(), ConfigError> {
        let value = |field, rule| Err(ConfigError::Value { field, rule });
        if !self.api.public_url.is_empty() && !self.api.public_url.starts_with("https://") {
            return value("api.public_url", "must begin with https://");
        }
        if !(1..=1_000_000).contains(&self.mqtt.clients_max) {
            return value("mqtt.clients_max", "must lie between 1 and 1000000");
        }
        if !(2..=10 * 365 * 86_400).contains(&self.identity.device_valid_s) {
            return value("identity.device_valid_s", "must lie between 2 and 315360000");
        }
        if self.limits.enrol_per_minute == 0 || self.limits.wrong_per_minute == 0 {
            return value("limits", "must be above zero");
        }
        if !(1..=100_000).contains(&self.ingest.batch_max) {
            return value("ingest.batch_max", "must lie between 1 and 100000");
        }
        if self.ingest.batch_ms > 1000 {
            return value("ingest.batch_ms", "must be at most 1000");
        }
        if self.planner.tick_ms == 0 || self.training.tick_ms == 0 {
            return value("tick_ms", "must be above zero");
        }
        if self.training.workers_max == 0 {
            return value("training.workers_max", "must be above zero");
        }
        if self.evidence.window_ms < 1000 {
            return value("evidence.window_ms", "must be at least 1000");
        }
        if self.retention.windows_days == 0 || self.retention.events_days == 0 {
            return value("retention", "must be at least one day");
        }
        let votes_of = self.evidence.votes_of;
        if !(1..=WINDOWS_MAX).contains(&votes_of) || !(1..=votes_of).contains(&self.evidence.votes) {
            return value("evidence.votes", "must lie between 1 and votes_of, and that be at most 64");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_configuration_survives_its_own_file_form() {
        let config = Config::default();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        config.check().unwrap();
    }

    #[test]
    fn unknown_fields_and_senseless_values_are_refused() {
        assert!(toml::from_str::<Config>("[api]\nlistn = \"127.0.0.1:1\"").is_err());
        for (text, field) in [
            ("[api]\npublic_url = \"http://x\"", "api.public_url"),
            ("[ingest]\nbatch_max = 0", "ingest.batch_max"),
            ("[identity]\ndevice_valid_s = 1", "identity.device_valid_s"),
            ("[limits]\nwrong_per_minute = 0", "limits"),
            ("[planner]\ntick_ms = 0", "tick_ms"),
            ("[evidence]\nwindow_ms = 10", "evidence.window_ms"),
            ("[evidence]\nvotes = 6", "evidence.votes"),
            ("[retention]\nwindows_days = 0", "retention"),
            ("[evidence]\nvotes_of = 65", "evidence.votes"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap().check().unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
