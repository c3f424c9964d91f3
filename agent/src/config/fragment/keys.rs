//! The keys of a configuration file, and how they are taken out of its text.
//!
//! A file is parsed once into the tree that the TOML library makes of it. Everything that walks this tree is
//! written against one trait, so a further key costs a line here and a few bytes of program.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dunlin_protocol::Arch;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::{ConfigError, DEFAULTS_NAME};

/// A key's value with the file it came from, so that a late complaint still names the right file.
#[derive(Debug)]
pub(super) struct Sourced<T> {
    pub(super) value: T,
    pub(super) file: String,
}

/// What a key says; none if no file has it.
pub(super) type Key<T> = Option<Sourced<T>>;

macro_rules! sections {
    ($($(#[$doc:meta])* $section:ident { $($key:ident: $slot:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Default)]
            pub(in crate::config) struct $section { $(pub(super) $key: $slot,)* }
            impl Slot for $section {
                fn set(&mut self, entry: &Entry<'_>) -> Result<(), ConfigError> {
                    entry.fill(&mut [$((stringify!($key), &mut self.$key)),*])
                }
            }
        )*
    };
}

sections! {
    /// What the files read so far say.
    Fragment {
        state_dir: Key<PathBuf>,
        run_dir: Key<PathBuf>,
        board: Key<String>,
        device: Device,
        mqtt: Mqtt,
        telemetry: Telemetry,
        api: Api,
        serving: Serving,
        update: Update,
        spool: Spool,
    }
    Device { class: Key<String>, arch: Key<Arch>, cores: Key<u32>, ram_bytes: Key<u64>, budgets: BudgetKeys, }
    BudgetKeys { model_bytes_max: Key<u64>, model_ram_bytes_max: Key<u64>, latency_us_max: Key<u64>, }
    Mqtt { auth: Key<String>, keep_alive_s: Key<u64>, session_expiry_s: Key<u64>, }
    Telemetry { window_s: Key<u64>, report_s: Key<u64>, }
    Api {
        listen: Key<String>,
        allow_remote: Key<bool>,
        socket: Key<String>,
        socket_mode: Key<String>,
        grpc_listen: Key<String>,
        token_file: Key<String>,
        admin_token_file: Key<String>,
        body_bytes_max: Key<u64>,
        bodies_bytes_max: Key<u64>,
        requests_max: Key<u64>,
        tensors_max: Key<u64>,
        run_ms_max: Key<u64>,
    }
    Serving { ram_bytes_max: Key<u64>, cpu_ppm_max: Key<u64>, tasks: Tasks, }
    TaskKeys { value: Key<u64>, gather_rows_max: Key<u64>, gather_wait_us_max: Key<u64>, }
    Update { check_s: Key<u64>, retry_min_s: Key<u64>, retry_max_s: Key<u64>, inhibit_file: Key<String>, }
    Spool { bytes_max: Key<u64>, }
}

/// The sections `[serving.tasks.NAME]`.
pub(super) type Tasks = BTreeMap<String, TaskKeys>;

impl Fragment {
    /// Takes what the file `name` says over what the files before it said.
    pub(in crate::config) fn read(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let tree = parse(name, text)?;
        self.set(&Entry::root(&File { name, text, board: false }, &tree))
    }
}

impl Device {
    /// Takes what the board file `name` says of the device, but for what a configuration file said. What
    /// concerns building and testing is not the agent's business.
    pub(super) fn read_board(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let tree = parse(name, text)?;
        let file = File { name, text, board: true };
        let Some(device) = tree.get("device") else { return Ok(()) };
        self.set(&Entry::root(&file, &tree).child("device", device))
    }
}

fn parse<'a>(name: &str, text: &'a str) -> Result<DeValue<'a>, ConfigError> {
    let table = DeTable::parse(text).map_err(|e| ConfigError::toml(name, text, &e))?;
    Ok(DeValue::Table(table.into_inner()))
}

/// A file that is being read.
struct File<'a> {
    name: &'a str,
    text: &'a str,
    /// Whether it ranks below all files but the built-in defaults.
    board: bool,
}

/// One value of a file, with what a complaint about it needs.
struct Entry<'a> {
    file: &'a File<'a>,
    /// Dotted key; empty for the file as a whole.
    key: String,
    /// Where in the text it stands, bytes.
    at: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Entry<'a> {
    fn root(file: &'a File<'a>, value: &'a DeValue<'a>) -> Self {
        Self { file, key: String::new(), at: 0, value }
    }

    fn child(&self, name: &str, value: &'a Spanned<DeValue<'a>>) -> Self {
        let dot = if self.key.is_empty() { "" } else { "." };
        let key = format!("{}{dot}{name}", self.key);
        Self { file: self.file, key, at: value.span().start, value: value.get_ref() }
    }

    fn complaint(&self, message: &str) -> ConfigError {
        ConfigError::at(self.file.name, self.file.text, self.at, &self.key, message)
    }

    fn invalid_type(&self, expected: &str) -> ConfigError {
        let found = match self.value {
            DeValue::String(text) => format!("string {text:?}"),
            DeValue::Integer(number) => format!("integer `{number}`"),
            DeValue::Float(number) => format!("floating point `{number}`"),
            DeValue::Boolean(value) => format!("boolean `{value}`"),
            DeValue::Datetime(_) => "date".to_owned(),
            DeValue::Array(_) => "sequence".to_owned(),
            DeValue::Table(_) => "table".to_owned(),
        };
        self.complaint(&format!("invalid type: {found}, expected {expected}"))
    }

    fn table(&self) -> Result<&'a DeTable<'a>, ConfigError> {
        self.value.as_table().ok_or_else(|| self.invalid_type("a table"))
    }

    fn text(&self, expected: &str) -> Result<&'a str, ConfigError> {
        self.value.as_str().ok_or_else(|| self.invalid_type(expected))
    }

    fn number(&self, max: u64, expected: &str) -> Result<u64, ConfigError> {
        let number = self.value.as_integer().ok_or_else(|| self.invalid_type(expected))?;
        // Signed, because zero may bear a sign.
        let value = i128::from_str_radix(number.as_str(), number.radix()).ok();
        let value = value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value <= max);
        let invalid = || self.complaint(&format!("invalid value: integer `{number}`, expected {expected}"));
        value.ok_or_else(invalid)
    }

    /// Hands each key of this table to the slot of its name, and refuses those that have none.
    fn fill(&self, slots: &mut [(&str, &mut dyn Slot)]) -> Result<(), ConfigError> {
        for (name, value) in self.table()? {
            let mut entry = self.child(name.get_ref(), value);
            if let Some((_, slot)) = slots.iter_mut().find(|(known, _)| *known == name.get_ref()) {
                slot.set(&entry)?;
                continue;
            }
            entry.at = name.span().start;
            let known = slots.iter().map(|(known, _)| *known);
            return Err(entry.complaint(&unknown("field", name.get_ref(), known)));
        }
        Ok(())
    }
}

/// Says that a word is none of those that are known.
fn unknown<'a>(what: &str, word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut message = format!("unknown {what} `{word}`, expected one of ");
    for (at, known) in known.enumerate() {
        message.push_str(if at == 0 { "`" } else { ", `" });
        message.push_str(known);
        message.push('`');
    }
    message
}

/// A place for what a file says: of one key, or of a section.
trait Slot {
    fn set(&mut self, entry: &Entry<'_>) -> Result<(), ConfigError>;
}

impl<T: Kind> Slot for Key<T> {
    fn set(&mut self, entry: &Entry<'_>) -> Result<(), ConfigError> {
        let value = T::take(entry)?;
        let said = self.as_ref().is_some_and(|own| own.file != DEFAULTS_NAME);
        if !(entry.file.board && said) {
            *self = Some(Sourced { value, file: entry.file.name.to_owned() });
        }
        Ok(())
    }
}

impl Slot for Tasks {
    fn set(&mut self, entry: &Entry<'_>) -> Result<(), ConfigError> {
        for (name, value) in entry.table()? {
            let task = entry.child(name.get_ref(), value);
            self.entry(name.get_ref().to_string()).or_default().set(&task)?;
        }
        Ok(())
    }
}

/// What may stand behind a key.
trait Kind: Sized {
    fn take(entry: &Entry<'_>) -> Result<Self, ConfigError>;
}

impl Kind for String {
    fn take(entry: &Entry<'_>) -> Result<Self, ConfigError> {
        entry.text("a string").map(str::to_owned)
    }
}

impl Kind for PathBuf {
    fn take(entry: &Entry<'_>) -> Result<Self, ConfigError> {
        entry.text("path string").map(Self::from)
    }
}

impl Kind for bool {
    fn take(entry: &Entry<'_>) -> Result<Self, ConfigError> {
        entry.value.as_bool().ok_or_else(|| entry.invalid_type("a boolean"))
    }
}

impl Kind for u32 {
    fn take(entry: &Entry<'_>) -> Result<Self, ConfigError> {
        entry.number(Self::MAX.into(), "u32").map(|value| Self::try_from(value).unwrap_or(Self::MAX))
    }
}

impl Kind for u64 {
    fn take(entry: &Entry<'_>) -> Result<Self, ConfigError> {
        entry.number(Self::MAX, "u64")
    }
}

/// The architectures by the names they have everywhere.
const ARCHES: [(&str, Arch); 4] = [
    ("aarch64", Arch::Aarch64),
    ("armv7", Arch::Armv7),
    ("x86_64", Arch::X86_64),
    ("riscv64", Arch::Riscv64),
];

impl Kind for Arch {
    fn take(entry: &Entry<'_>) -> Result<Self, ConfigError> {
        let word = entry.text("a string")?;
        if let Some((_, arch)) = ARCHES.iter().find(|(name, _)| *name == word) {
            return Ok(*arch);
        }
        let known = ARCHES.iter().map(|(name, _)| *name);
        Err(entry.complaint(&unknown("variant", word, known)))
    }
}
