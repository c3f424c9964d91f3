//! `cargo xtask bench --footprint`: what the released agent takes of a small board, written to `docs/footprint.md`.
//!
//! Boards may be measured one at a time: what is known of each target is kept in a file beside the page, which is made of them.
mod page;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::board::{self, Measured};
use crate::command::root;
use crate::cross::{self, Features};
use crate::{boards, package};

/// The page, beside the other documents.
const PAGE: &str = "docs/footprint.md";
/// The folder of what it is made of, a file for each target.
const KEPT: &str = "docs/footprint";
/// The boards that can be emulated whole, one for each target.
const BOARDS: [&str; 3] = ["x86-64-generic", "qemu-virt-aarch64", "qemu-virt-armv7"];

#[derive(Args)]
pub(crate) struct OnBoard {
    /// Virtual board of `firmware-targets/boards` to measure on, any number of them; every one that can be emulated if none
    /// is given
    #[arg(long, requires = "footprint")]
    board: Vec<String>,
    /// Length of a window in minutes
    #[arg(long, requires = "footprint", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=240))]
    minutes: u64,
    /// Take the agents that `cargo xtask cross dist` left, instead of building them
    #[arg(long, requires = "footprint")]
    released: bool,
    /// Write the page from what is kept, and measure nothing
    #[arg(long, requires = "footprint", conflicts_with = "board")]
    page_only: bool,
    /// Folder with `dunlin` of this machine, instead of one that is built
    #[arg(long, requires = "footprint")]
    programs: Option<PathBuf>,
}

/// The size of a program.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Size {
    bytes: u64,
    /// What it was built of.
    commit: String,
}

/// Sizes of a target's programs. Programs that were not built have none.
#[derive(Default, Serialize, Deserialize)]
struct Sizes {
    edge: Option<Size>,
    full: Option<Size>,
    /// Of the Debian package of `edge`, bytes.
    package: Option<u64>,
}

/// What was measured on a board, and on what.
#[derive(Serialize, Deserialize)]
struct Run {
    board: String,
    /// Length of a window.
    minutes: u64,
    /// What the agent was built of.
    commit: String,
    /// The machine that emulates.
    machine: String,
    measured: Measured,
}

/// What is known of a target.
#[derive(Serialize, Deserialize)]
struct Known {
    triple: String,
    sizes: Sizes,
    run: Option<Run>,
}

pub(crate) fn run(options: &OnBoard) -> Result<()> {
    if options.page_only {
        return write_page();
    }
    let triples = cross::released_triples()?;
    if !options.released {
        for triple in &triples {
            for features in [Features::Edge, Features::Full] {
                cross::release(triple, features)?;
            }
        }
    }
    triples.iter().try_for_each(|triple| take_sizes(triple))?;
    let names: Vec<&str> = match &options.board[..] {
        [] => BOARDS.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    for name in names {
        // The page after each board: a later one that can not be measured takes nothing away.
        write_page()?;
        measure(name, options)?;
    }
    write_page()
}

fn measure(name: &str, options: &OnBoard) -> Result<()> {
    let triple = boards::named(name)?.build.triple;
    let agent = cross::released(&triple, Features::Edge);
    ensure!(agent.is_file(), "{} is not there; `cargo xtask cross dist {triple}` builds it", agent.display());
    let (machine, commit) = (machine()?, commit(&agent)?);
    println!("{name}: windows of {} minutes", options.minutes);
    let window = Duration::from_secs(60 * options.minutes);
    let measured = board::footprint(name, agent, options.programs.clone(), window)?;
    let run = Run { board: name.to_owned(), minutes: options.minutes, commit, machine, measured };
    keep(&Known { run: Some(run), ..known(&triple)? })
}

/// Where what is known of a target is kept.
fn path(triple: &str) -> PathBuf {
    root().join(KEPT).join(format!("{triple}.json"))
}

/// What is kept of a target; nothing if there is no file.
fn known(triple: &str) -> Result<Known> {
    let path = path(triple);
    if !path.exists() {
        return Ok(Known { triple: triple.to_owned(), sizes: Sizes::default(), run: None });
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not of this release; delete it", path.display()))
}

fn keep(known: &Known) -> Result<()> {
    let path = path(&known.triple);
    std::fs::create_dir_all(root().join(KEPT))?;
    std::fs::write(&path, format!("{}\n", serde_json::to_string_pretty(known)?))
        .with_context(|| format!("writing {}", path.display()))
}

/// The page of what is kept.
fn page() -> Result<String> {
    let known: Vec<Known> =
        cross::released_triples()?.iter().map(|triple| known(triple)).collect::<Result<_>>()?;
    Ok(page::text(&known))
}

fn write_page() -> Result<()> {
    std::fs::write(root().join(PAGE), page()?).with_context(|| format!("writing {PAGE}"))?;
    println!("wrote {PAGE}");
    Ok(())
}

/// Keeps the sizes of a target's programs that are there.
fn take_sizes(triple: &str) -> Result<()> {
    let mut known = known(triple)?;
    let [edge, full] = [Features::Edge, Features::Full].map(|features| cross::released(triple, features));
    let size = |path: &Path| -> Result<Option<Size>> {
        let Ok(about) = std::fs::metadata(path) else { return Ok(None) };
        Ok(Some(Size { bytes: about.len(), commit: commit(path)? }))
    };
    if let Some(size) = size(&edge)? {
        known.sizes.edge = Some(size);
        known.sizes.package = Some(package::deb_bytes(triple, &edge)?.try_into()?);
    }
    if let Some(size) = size(&full)? {
        known.sizes.full = Some(size);
    }
    keep(&known)
}

/// What an agent was built of, as its provenance tells.
fn commit(agent: &Path) -> Result<String> {
    let path = agent.with_extension("provenance.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let told: Value = serde_json::from_str(&text)?;
    let id = told["commit"].as_str().and_then(|id| id.get(..12)).context("a provenance names a commit")?;
    Ok(format!("{id}{}", if told["uncommitted"] == true { " with changes" } else { "" }))
}

/// This machine, and how busy it is.
fn machine() -> Result<String> {
    let (cpu, load) = (std::fs::read_to_string("/proc/cpuinfo")?, std::fs::read_to_string("/proc/loadavg")?);
    let name =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = std::thread::available_parallelism()?;
    let load = load.split(' ').next().unwrap_or_default();
    Ok(format!("{}, {cores} cores, load {load} at the start", name.unwrap_or("unnamed processor")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_is_kept_and_has_a_table_of_every_released_target() {
        let page = std::fs::read_to_string(root().join(PAGE))
            .expect("`cargo xtask bench --footprint` writes the page");
        let made = super::page().unwrap();
        assert!(page == made, "`cargo xtask bench --footprint --page-only` writes the page anew");
        for triple in cross::released_triples().unwrap() {
            let table = page.split_once(&format!("\n## {triple}\n")).map(|(_, rest)| rest);
            let head = table.and_then(|rest| rest.lines().find(|line| line.starts_with('|')));
            assert_eq!(head, Some(page::HEAD), "{triple}");
        }
    }

    #[test]
    fn every_board_that_is_measured_is_of_a_released_target_of_its_own() {
        let mut triples: Vec<String> =
            BOARDS.iter().map(|name| boards::named(name).unwrap().build.triple).collect();
        triples.sort();
        let mut released = cross::released_triples().unwrap();
        released.sort();
        assert_eq!(triples, released);
    }
}
