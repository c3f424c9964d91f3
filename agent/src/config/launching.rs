//! What a program has to know to make way for a later one that it has fetched.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::{ConfigError, DEFAULTS, SOCKET, Settings, layers};

/// Three settings, read without the rest: the files may name what only the later program knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launching {
    pub(crate) state_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) inhibit_file: Option<PathBuf>,
}

impl From<&Settings> for Launching {
    fn from(settings: &Settings) -> Self {
        Self {
            state_dir: settings.state_dir.clone(),
            run_dir: settings.run_dir.clone(),
            inhibit_file: settings.update.inhibit_file.clone(),
        }
    }
}

impl Launching {
    /// The running agent's control socket.
    pub(crate) fn socket_file(&self) -> PathBuf {
        self.run_dir.join(SOCKET)
    }

    /// Reads the layers as [`Settings::load`] does.
    ///
    /// # Errors
    /// A file can not be read.
    pub(crate) fn read(path: Option<&Path>, env: &[(String, String)]) -> Result<Self, ConfigError> {
        let texts = layers(path, env)?;
        Ok(Self::from_texts(texts.iter().map(|(_, text)| text.as_str())))
    }

    fn from_texts<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let mut launching = Self { state_dir: PathBuf::new(), run_dir: PathBuf::new(), inhibit_file: None };
        for text in std::iter::once(DEFAULTS).chain(texts) {
            // What is no TOML says nothing.
            let Ok(table) = DeTable::parse(text) else { continue };
            launching.take(table.get_ref());
        }
        launching
    }

    fn take(&mut self, table: &DeTable<'_>) {
        let text = |table: &DeTable<'_>, key: &str| {
            table.get(key).and_then(|value| value.get_ref().as_str()).map(PathBuf::from)
        };
        let folder = |key: &str| text(table, key).filter(|folder| folder.is_absolute());
        if let Some(folder) = folder("state_dir") {
            self.state_dir = folder;
        }
        if let Some(folder) = folder("run_dir") {
            self.run_dir = folder;
        }
        let update = table.get("update").and_then(|update| update.get_ref().as_table());
        if let Some(file) = update.and_then(|update| text(update, "inhibit_file")) {
            self.inhibit_file = Some(file).filter(|file| !file.as_os_str().is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_files_name_besides_does_not_matter() {
        let defaults = Launching::from(&Settings::from_texts(&[]).unwrap());
        assert_eq!(Launching::from_texts(std::iter::empty()), defaults);
        let later = "state_dir = \"/data/dunlin\"\nnew = 1\n[api]\nquic_listen = true\n[update]\ninhibit_file = \"/run/hold\"\nnew = []\n";
        assert!(Settings::from_texts(&[("site.toml", later)]).is_err());
        let read = Launching::from_texts([later, "no TOML", "run_dir = 7\nstate_dir = \"here\""].into_iter());
        let inhibit_file = Some("/run/hold".into());
        assert_eq!(read, Launching { state_dir: "/data/dunlin".into(), inhibit_file, ..defaults });
    }
}
