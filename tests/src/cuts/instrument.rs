//! The library that cuts, and its settings.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const SOURCE: &str = include_str!("cut.c");

/// What a cut takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The process: what it wrote is there.
    Kill,
    /// The power: of each file, what it held when it was last synced is there. Names are; file systems that put them
    /// off do no worse, as the agent syncs folders before it goes on.
    Power,
    /// The same for an agent whose syncs do nothing: a control.
    PowerUnsynced,
}

/// The built library.
#[derive(Debug)]
pub struct Instrument {
    library: PathBuf,
}

impl Instrument {
    /// Builds the library with the C compiler that the agent's own C code is built with.
    pub fn build(folder: &Path) -> Result<Self> {
        let (source, library) = (folder.join("cut.c"), folder.join("libcut.so"));
        std::fs::write(&source, SOURCE)?;
        let flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o"];
        let built = Command::new("cc").args(flags).arg(&library).arg(&source).status();
        ensure!(built.context("starting the C compiler")?.success(), "the C compiler refused cut.c");
        Ok(Self { library })
    }

    /// The environment of an agent that is cut at its call number `at` below `state`.
    pub(super) fn environment(
        &self,
        kind: Kind,
        at: u64,
        state: &Path,
        disk: &Path,
    ) -> Vec<(String, String)> {
        let mut environment = vec![
            ("LD_PRELOAD".to_owned(), self.library.display().to_string()),
            ("CUT_FOLDER".to_owned(), format!("{}/", state.display())),
            ("CUT_AT".to_owned(), at.to_string()),
        ];
        match kind {
            Kind::Kill => {}
            Kind::Power => environment.push(("CUT_DISK".into(), disk.display().to_string())),
            Kind::PowerUnsynced => {
                environment.push(("CUT_DISK".into(), disk.display().to_string()));
                environment.push(("CUT_FORGETFUL".into(), "1".into()));
            }
        }
        environment
    }
}
