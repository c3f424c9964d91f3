//! `cargo xtask package --lint`: the recipe for Yocto before a linter that others wrote.
use std::process::Command;

use anyhow::Result;

use super::source;
use crate::command::run;
use crate::install;

/// The linter, and what decides with it.
const OELINT: [&str; 3] = ["oelint-adv==9.11.2", "oelint-data==1.5.26", "oelint-parser==8.13.2"];
/// What it asks for and there is not.
const NOT_THERE: [&str; 4] = [
    // The project has no page, and no tracker.
    "oelint.var.mandatoryvar.HOMEPAGE",
    "oelint.var.suggestedvar.BUGTRACKER",
    // No vulnerability of it is known under any name.
    "oelint.var.suggestedvar.CVE_PRODUCT",
    // The program is for devices, and neither for the machine that builds nor for its tools.
    "oelint.var.bbclassextend",
];

/// Checks the recipe and its layer, in every branch of them; each finding is an error.
pub(crate) fn lint() -> Result<()> {
    let python = install::python("oelint", &OELINT)?;
    let mut linter = Command::new(python.with_file_name("oelint-adv"));
    linter.current_dir(source().join("yocto/meta-dunlin"));
    linter.args(["--quiet", "--relpaths", "--jobs=1", "--mode=all"]);
    linter.args(NOT_THERE.map(|rule| format!("--suppress={rule}")));
    let recipe = format!("recipes-dunlin/dunlin-agent/dunlin-agent_{}.bb", env!("CARGO_PKG_VERSION"));
    run(linter.args(["conf/layer.conf", &recipe]))
}
