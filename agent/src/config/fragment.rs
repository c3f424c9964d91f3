mod api;
mod serving;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{Arch, Budgets};
use serde::Deserialize;

use super::{
    ConfigError, MqttAuth, MqttSettings, Settings, SpoolSettings, TelemetrySettings, UpdateSettings,
};
use crate::device;

/// The largest budgets that make sense: a TiB, and an hour for one row.
const BUDGETS_MAX: Budgets =
    Budgets { model_bytes_max: 1 << 40, model_ram_bytes_max: 1 << 40, latency_us_max: 3_600_000_000 };

/// A key's value with the file it came from, so that a late complaint still names the right file.
#[derive(Debug, Clone)]
struct Sourced<T> {
    value: T,
    file: String,
}

macro_rules! sections {
    ($($(#[$doc:meta])* $section:ident { $($key:ident: $kind:ty,)* })*) => {
        /// One file as it reads: every key optional, unknown ones refused.
        mod raw {
            use super::*;
            $(
                #[derive(Debug, Default, Deserialize)]
                #[serde(deny_unknown_fields, default)]
                pub(super) struct $section { $(pub(super) $key: Option<$kind>,)* }
            )*
        }
        /// The same, each value with its origin.
        mod merged {
            use super::*;
            $(
                #[derive(Debug, Default, Clone)]
                pub(super) struct $section { $(pub(super) $key: Option<Sourced<$kind>>,)* }
                impl $section {
                    pub(super) fn from_raw(raw: raw::$section, file: &str) -> Self {
                        Self { $($key: raw.$key.map(|value| Sourced { value, file: file.to_owned() }),)* }
                    }
                    pub(super) fn merge(&mut self, later: Self) {
                        $(if later.$key.is_some() { self.$key = later.$key; })*
                    }
                }
            )*
        }
    };
}

sections! {
    Top { state_dir: PathBuf, run_dir: PathBuf, board: String, }
    Device { class: String, arch: Arch, cores: u32, ram_bytes: u64, }
    BudgetKeys { model_bytes_max: u64, model_ram_bytes_max: u64, latency_us_max: u64, }
    Mqtt { auth: String, keep_alive_s: u64, session_expiry_s: u64, }
    Telemetry { window_s: u64, report_s: u64, }
    Api {
        listen: String,
        allow_remote: bool,
        socket: String,
        socket_mode: String,
        grpc_listen: String,
        token_file: String,
        admin_token_file: String,
        body_bytes_max: u64,
        requests_max: u64,
        tensors_max: u64,
        run_ms_max: u64,
    }
    Serving { ram_bytes_max: u64, cpu_ppm_max: u64, }
    TaskKeys { value: u64, gather_rows_max: u64, gather_wait_us_max: u64, }
    Update { check_s: u64, retry_min_s: u64, retry_max_s: u64, inhibit_file: String, }
    Spool { bytes_max: u64, }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDevice {
    class: Option<String>,
    arch: Option<Arch>,
    cores: Option<u32>,
    ram_bytes: Option<u64>,
    budgets: raw::BudgetKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawServing {
    ram_bytes_max: Option<u64>,
    cpu_ppm_max: Option<u64>,
    tasks: BTreeMap<String, raw::TaskKeys>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    board: Option<String>,
    device: RawDevice,
    mqtt: raw::Mqtt,
    telemetry: raw::Telemetry,
    api: raw::Api,
    serving: RawServing,
    update: raw::Update,
    spool: raw::Spool,
}

/// A board file; what concerns building and testing is not the agent's business.
#[derive(Debug, Default, Deserialize)]
struct RawBoard {
    #[serde(default)]
    device: RawDevice,
}

/// One file, or several merged.
#[derive(Debug, Clone)]
pub(super) struct Fragment {
    top: merged::Top,
    device: merged::Device,
    budgets: merged::BudgetKeys,
    mqtt: merged::Mqtt,
    telemetry: merged::Telemetry,
    api: merged::Api,
    serving: merged::Serving,
    tasks: BTreeMap<String, merged::TaskKeys>,
    update: merged::Update,
    spool: merged::Spool,
}

fn split_device(raw: RawDevice, file: &str) -> (merged::Device, merged::BudgetKeys) {
    let device = raw::Device { class: raw.class, arch: raw.arch, cores: raw.cores, ram_bytes: raw.ram_bytes };
    (merged::Device::from_raw(device, file), merged::BudgetKeys::from_raw(raw.budgets, file))
}

impl Fragment {
    pub(super) fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|e| ConfigError::toml(file, text, &e))?;
        let (device, budgets) = split_device(raw.device, file);
        let serving =
            raw::Serving { ram_bytes_max: raw.serving.ram_bytes_max, cpu_ppm_max: raw.serving.cpu_ppm_max };
        let tasks = raw.serving.tasks.into_iter();
        let top = raw::Top { state_dir: raw.state_dir, run_dir: raw.run_dir, board: raw.board };
        Ok(Self {
            top: merged::Top::from_raw(top, file),
            device,
            budgets,
            mqtt: merged::Mqtt::from_raw(raw.mqtt, file),
            telemetry: merged::Telemetry::from_raw(raw.telemetry, file),
            api: merged::Api::from_raw(raw.api, file),
            serving: merged::Serving::from_raw(serving, file),
            tasks: tasks.map(|(task, keys)| (task, merged::TaskKeys::from_raw(keys, file))).collect(),
            update: merged::Update::from_raw(raw.update, file),
            spool: merged::Spool::from_raw(raw.spool, file),
        })
    }

    pub(super) fn merge(&mut self, later: Self) {
        self.top.merge(later.top);
        self.device.merge(later.device);
        self.budgets.merge(later.budgets);
        self.mqtt.merge(later.mqtt);
        self.telemetry.merge(later.telemetry);
        self.api.merge(later.api);
        self.serving.merge(later.serving);
        for (task, keys) in later.tasks {
            self.tasks.entry(task).or_default().merge(keys);
        }
        self.update.merge(later.update);
        self.spool.merge(later.spool);
    }

    /// A board file ranks above the built-in defaults and below what a configuration file says of the device.
    fn apply_board(&mut self) -> Result<(), ConfigError> {
        let board = require(&self.top.board, "board")?;
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
        let raw: RawBoard = toml::from_str(&text).map_err(|e| ConfigError::toml(&board.value, &text, &e))?;
        let (mut device, mut budgets) = split_device(raw.device, &board.value);
        let own = self.clone();
        let said = |file: &str| file != "built-in defaults";
        device.merge(merged::Device {
            class: own.device.class.filter(|v| said(&v.file)),
            arch: own.device.arch.filter(|v| said(&v.file)),
            cores: own.device.cores.filter(|v| said(&v.file)),
            ram_bytes: own.device.ram_bytes.filter(|v| said(&v.file)),
        });
        budgets.merge(merged::BudgetKeys {
            model_bytes_max: own.budgets.model_bytes_max.filter(|v| said(&v.file)),
            model_ram_bytes_max: own.budgets.model_ram_bytes_max.filter(|v| said(&v.file)),
            latency_us_max: own.budgets.latency_us_max.filter(|v| said(&v.file)),
        });
        self.device.merge(device);
        self.budgets.merge(budgets);
        Ok(())
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
                &self.budgets.model_bytes_max,
                "device.budgets.model_bytes_max",
                1024,
                BUDGETS_MAX.model_bytes_max,
            )?,
            model_ram_bytes_max: within(
                &self.budgets.model_ram_bytes_max,
                "device.budgets.model_ram_bytes_max",
                1024,
                BUDGETS_MAX.model_ram_bytes_max,
            )?,
            latency_us_max: within(
                &self.budgets.latency_us_max,
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
            state_dir: directory(&self.top.state_dir, "state_dir")?,
            run_dir: directory(&self.top.run_dir, "run_dir")?,
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
            serving: serving::validate(&self.serving, &self.tasks)?,
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

fn require<'a, T>(value: &'a Option<Sourced<T>>, key: &str) -> Result<&'a Sourced<T>, ConfigError> {
    value.as_ref().ok_or_else(|| {
        ConfigError::new("settings", key, "is missing", "add it as the shipped agent.toml has it")
    })
}

fn within(value: &Option<Sourced<u64>>, key: &str, min: u64, max: u64) -> Result<u64, ConfigError> {
    let sourced = require(value, key)?;
    if (min..=max).contains(&sourced.value) {
        return Ok(sourced.value);
    }
    let problem = format!("{} is out of range", sourced.value);
    Err(ConfigError::new(&sourced.file, key, &problem, &format!("use {min} to {max}")))
}

fn seconds(value: &Option<Sourced<u64>>, key: &str, min: u64, max: u64) -> Result<Duration, ConfigError> {
    within(value, key, min, max).map(Duration::from_secs)
}

fn directory(value: &Option<Sourced<PathBuf>>, key: &str) -> Result<PathBuf, ConfigError> {
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
        let value = if plain { value.clone() } else { toml::Value::String(value.clone()).to_string() };
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
