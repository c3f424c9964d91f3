mod api;
mod keys;
mod serving;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dunlin_protocol::Budgets;
use dunlin_protocol::weaken::{self, Defence};

pub(super) use keys::Fragment;
use keys::{Key, Sourced};

use super::{
    ConfigError, MqttAuth, MqttSettings, Settings, SpoolSettings, TelemetrySettings, UpdateSettings,
};
use crate::device;

/// The largest budgets that make sense: a TiB, and an hour for one row.
const BUDGETS_MAX: Budgets =
    Budgets { model_bytes_max: 1 << 40, model_ram_bytes_max: 1 << 40, latency_us_max: 3_600_000_000 };

impl Fragment {
    /// A board file ranks above the built-in defaults and below what a configuration file says of the device.
    fn apply_board(&mut self) -> Result<(), ConfigError> {
        let board = require(&self.board, "board")?;
        if board.value.is_empty() {
            return Ok(());
        }
        let path = PathBuf::from(&board.value);
        let text = std::fs::read_to_string(&path).map_err(|e| {
            ConfigError::new(
                &board.file,
                "board",
                &format!("{}: {e}", board.value),
                "name a readable board file, or nothing",
            )
        })?;
        self.device.read_board(&board.value, &text)
    }

    pub(super) fn validate(mut self) -> Result<Settings, ConfigError> {
        self.apply_board()?;
        let mut warnings = Vec::new();
        let class = require(&self.device.class, "device.class")?;
        let class_name = class.value.parse().map_err(|e| {
            ConfigError::new(
                &class.file,
                "device.class",
                &format!("{e}"),
                "name the hardware class, such as raspberry-pi-4",
            )
        })?;
        if let Some(arch) = self.device.arch.as_ref().filter(|arch| arch.value != device::ARCH) {
            warnings.push(format!(
                "{} says arch {:?}, but this agent is built for {:?}, which is what it reports",
                arch.file,
                arch.value,
                device::ARCH
            ));
        }
        let budgets = Budgets {
            model_bytes_max: within(
                &self.device.budgets.model_bytes_max,
                "device.budgets.model_bytes_max",
                1024,
                BUDGETS_MAX.model_bytes_max,
            )?,
            model_ram_bytes_max: within(
                &self.device.budgets.model_ram_bytes_max,
                "device.budgets.model_ram_bytes_max",
                1024,
                BUDGETS_MAX.model_ram_bytes_max,
            )?,
            latency_us_max: within(
                &self.device.budgets.latency_us_max,
                "device.budgets.latency_us_max",
                1,
                BUDGETS_MAX.latency_us_max,
            )?,
        };
        let budgets = if weaken::off(Defence::Budgets) { BUDGETS_MAX } else { budgets };
        let cores = self.device.cores.as_ref().map(|v| v.value);
        let ram_bytes = self.device.ram_bytes.as_ref().map(|v| v.value);
        let profile = device::profile(class_name, cores, ram_bytes, budgets);
        let auth = require(&self.mqtt.auth, "mqtt.auth")?;
        let retry_min = seconds(&self.update.retry_min_s, "update.retry_min_s", 1, 3600)?;
        let retry_max = seconds(&self.update.retry_max_s, "update.retry_max_s", 1, 86_400)?;
        if retry_max < retry_min {
            let file = &require(&self.update.retry_max_s, "update.retry_max_s")?.file;
            return Err(ConfigError::new(
                file,
                "update.retry_max_s",
                "is below update.retry_min_s",
                "make it at least as long",
            ));
        }
        let inhibit = require(&self.update.inhibit_file, "update.inhibit_file")?.value.clone();
        let api = api::validate(&self.api)?;
        if !api.listen.ip().is_loopback() && api.token_file.is_none() {
            warnings.push(format!(
                "{} can be reached by other machines, and no api.token_file is set",
                api.listen
            ));
        }
        Ok(Settings {
            state_dir: directory(&self.state_dir, "state_dir")?,
            run_dir: directory(&self.run_dir, "run_dir")?,
            device: profile,
            mqtt: MqttSettings {
                auth: match auth.value.as_str() {
                    "challenge" => MqttAuth::Challenge,
                    "certificate" => MqttAuth::Certificate,
                    other => {
                        let problem = format!("{other:?} is no way to authenticate");
                        return Err(ConfigError::new(
                            &auth.file,
                            "mqtt.auth",
                            &problem,
                            "use \"challenge\" or \"certificate\"",
                        ));
                    }
                },
                keep_alive: seconds(&self.mqtt.keep_alive_s, "mqtt.keep_alive_s", 5, 3600)?,
                session_expiry: seconds(
                    &self.mqtt.session_expiry_s,
                    "mqtt.session_expiry_s",
                    0,
                    30 * 86_400,
                )?,
            },
            telemetry: TelemetrySettings {
                window: seconds(&self.telemetry.window_s, "telemetry.window_s", 1, 3600)?,
                report: seconds(&self.telemetry.report_s, "telemetry.report_s", 1, 86_400)?,
            },
            api,
            serving: serving::validate(&self.serving)?,
            update: UpdateSettings {
                check: seconds(&self.update.check_s, "update.check_s", 1, 86_400)?,
                retry_min,
                retry_max,
                inhibit_file: Some(inhibit).filter(|file| !file.is_empty()).map(PathBuf::from),
            },
            spool: SpoolSettings {
                bytes_max: within(&self.spool.bytes_max, "spool.bytes_max", 1 << 20, 1 << 40)?,
            },
            warnings,
        })
    }
}

fn require<'a, T>(value: &'a Key<T>, key: &str) -> Result<&'a Sourced<T>, ConfigError> {
    value.as_ref().ok_or_else(|| {
        ConfigError::new("settings", key, "is missing", "add it as the shipped agent.toml has it")
    })
}

fn within(value: &Key<u64>, key: &str, min: u64, max: u64) -> Result<u64, ConfigError> {
    let sourced = require(value, key)?;
    if (min..=max).contains(&sourced.value) {
        return Ok(sourced.value);
    }
    let problem = format!("{} is out of range", sourced.value);
    Err(ConfigError::new(&sourced.file, key, &problem, &format!("use {min} to {max}")))
}

fn seconds(value: &Key<u64>, key: &str, min: u64, max: u64) -> Result<Duration, ConfigError> {
    within(value, key, min, max).map(Duration::from_secs)
}

fn directory(value: &Key<PathBuf>, key: &str) -> Result<PathBuf, ConfigError> {
    let sourced = require(value, key)?;
    if sourced.value.is_absolute() {
        return Ok(sourced.value.clone());
    }
    let problem = format!("{} is not an absolute path", sourced.value.display());
    Err(ConfigError::new(&sourced.file, key, &problem, "begin it with /"))
}

/// The environment's settings as one more file. `DUNLIN_SECTION__KEY` sets a key of a section; other variables
/// that begin with `DUNLIN_` belong to other programs, but for the three keys that stand in no section.
pub(super) fn from_env(env: &[(String, String)]) -> String {
    let mut sections: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in env {
        let Some(rest) = name.strip_prefix("DUNLIN_") else { continue };
        let rest = rest.to_ascii_lowercase().replace("__", ".");
        let (section, key) = match rest.rsplit_once('.') {
            Some((section, key)) => (section, key),
            None if ["state_dir", "run_dir", "board"].contains(&rest.as_str()) => ("", rest.as_str()),
            None => continue,
        };
        let plain = value.parse::<u64>().is_ok() || value == "true" || value == "false";
        // A text in JSON is one in TOML, but for a character that JSON leaves as it is.
        let quoted = || serde_json::Value::from(value.as_str()).to_string().replace('\u{7f}', "\\u007f");
        let value = if plain { value.clone() } else { quoted() };
        sections.entry(section.to_owned()).or_default().push_str(&format!("{key} = {value}\n"));
    }
    let mut text = String::new();
    for (section, keys) in sections {
        if !section.is_empty() {
            text.push_str(&format!("[{section}]\n"));
        }
        text.push_str(&keys);
    }
    text
}
