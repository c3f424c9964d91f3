//! Where passphrases come from: a file, the environment, or a person at the terminal. Never the command line, which
//! every process of the machine can read.
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::super::{Exit, Output};
use crate::keys::{self, Passphrase};

/// Environment variable with the passphrase.
const VARIABLE: &str = "DUNLIN_KEY_PASSPHRASE";

/// Where the passphrase of encrypted keys comes from.
#[derive(Debug, Clone, Args)]
pub struct Unlock {
    /// File with the passphrase of encrypted keys; else DUNLIN_KEY_PASSPHRASE holds it, else it is asked for.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
}

impl Unlock {
    /// The passphrase for the keys in a folder whose file names begin with `prefix`, if any of them needs one.
    pub fn of(&self, folder: &Path, prefix: &str) -> Result<Option<Passphrase>> {
        if keys::any_sealed(folder, prefix)? {
            self.given_or(|| ask(&format!("passphrase of the {prefix} keys in {}: ", folder.display())))
                .map(Some)
        } else {
            Ok(None)
        }
    }

    /// The passphrase of one key file, if it needs one.
    pub fn of_file(&self, file: &Path) -> Result<Option<Passphrase>> {
        if keys::is_sealed(file)? {
            self.given_or(|| ask(&format!("passphrase of {}: ", file.display()))).map(Some)
        } else {
            Ok(None)
        }
    }

    /// A passphrase for new keys; a person types it twice.
    pub fn fresh(&self) -> Result<Passphrase> {
        self.given_or(ask_twice)
    }

    fn given_or(&self, ask: impl FnOnce() -> Result<Passphrase>) -> Result<Passphrase> {
        if let Some(path) = &self.passphrase_file {
            return from_file(path);
        }
        match std::env::var(VARIABLE) {
            Ok(text) => Ok(Passphrase::new(text)),
            Err(_) => ask(),
        }
    }
}

fn from_file(path: &Path) -> Result<Passphrase> {
    let text = fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    Ok(Passphrase::new(text))
}

/// Asks for a passphrase for new keys, twice.
fn ask_twice() -> Result<Passphrase> {
    let first = ask(&format!("new passphrase, {} characters or more: ", keys::PASSPHRASE_CHARS_MIN))?;
    first.check()?;
    if ask("once more: ")? != first {
        bail!("the two passphrases differ; nothing was written");
    }
    Ok(first)
}

/// Asks at the terminal, whatever standard input is, without showing what is typed.
fn ask(prompt: &str) -> Result<Passphrase> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").with_context(|| {
        format!("there is no terminal to ask for a passphrase; give --passphrase-file or set {VARIABLE}")
    })?;
    (&terminal).write_all(prompt.as_bytes())?;
    let before = tcgetattr(&terminal)?;
    let mut unseen = before.clone();
    unseen.local_modes.remove(LocalModes::ECHO);
    unseen.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&terminal, OptionalActions::Flush, &unseen)?;
    let mut line = String::new();
    let read = BufReader::new(&terminal).read_line(&mut line);
    tcsetattr(&terminal, OptionalActions::Flush, &before)?;
    read.context("could not read the passphrase")?;
    Ok(Passphrase::new(line))
}

/// `dunlin key seal`.
#[derive(Debug, Args)]
pub struct Seal {
    /// The key file; it is replaced.
    file: PathBuf,
    /// What opens it now, if it is encrypted.
    #[command(flatten)]
    unlock: Unlock,
    /// File with the new passphrase; else it is asked for.
    #[arg(long)]
    new_passphrase_file: Option<PathBuf>,
}

impl Seal {
    pub(super) fn run(self, out: &Output) -> Result<Exit> {
        let old = self.unlock.of_file(&self.file)?;
        let new = self.new_passphrase_file.as_deref().map_or_else(ask_twice, from_file)?;
        keys::reseal(&self.file, old.as_ref(), &new)?;
        out.show(&serde_json::json!({ "file": self.file }), |_| {
            format!("encrypted {}", self.file.display())
        })?;
        Ok(Exit::Ok)
    }
}
