//! `cargo xtask bench --footprint`: what the released agent takes of a small board, written to `docs/footprint.md`.
//!
//! Boards may be measured one at a time: what is known of the others is kept in `out/`.
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

/// Sizes of a target's programs, bytes. Programs that were not built have none.
#[derive(Default)]
struct Sizes {
    edge: Option<u64>,
    full: Option<u64>,
    /// Of the Debian package of `edge`.
    package: Option<u64>,
    /// What `edge` was built of.
    commit: Option<String>,
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
struct Known {
    triple: String,
    sizes: Sizes,
    run: Option<Run>,
}

pub(crate) fn run(options: &OnBoard) -> Result<()> {
    let triples = cross::released_triples()?;
    if !options.released {
        for triple in &triples {
            for features in [Features::Edge, Features::Full] {
                cross::release(triple, features)?;
            }
        }
    }
    let names: Vec<&str> = match &options.board[..] {
        _ if options.page_only => Vec::new(),
        [] => BOARDS.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    for name in names {
        measure(name, options)?;
        // After each board: a later one that can not be measured takes nothing away.
        write_page(&triples)?;
    }
    write_page(&triples)
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
    let path = kept(&triple);
    std::fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
    std::fs::write(&path, serde_json::to_string_pretty(&run)?)
        .with_context(|| format!("writing {}", path.display()))
}

/// Where what was measured is kept.
fn kept(triple: &str) -> PathBuf {
    root().join("out").join(format!("footprint-{triple}.json"))
}

fn write_page(triples: &[String]) -> Result<()> {
    let known = triples.iter().map(|triple| known(triple)).collect::<Result<Vec<_>>>()?;
    std::fs::write(root().join(PAGE), page::text(&known)).with_context(|| format!("writing {PAGE}"))?;
    println!("wrote {PAGE}");
    Ok(())
}

fn known(triple: &str) -> Result<Known> {
    let [edge, full] = [Features::Edge, Features::Full].map(|features| cross::released(triple, features));
    let bytes = |path: &Path| std::fs::metadata(path).ok().map(|about| about.len());
    let mut sizes = Sizes { edge: bytes(&edge), full: bytes(&full), ..Sizes::default() };
    if sizes.edge.is_some() {
        sizes.package = Some(package::deb_bytes(triple, &edge)?.try_into()?);
        sizes.commit = Some(commit(&edge)?);
    }
    let run = match std::fs::read_to_string(kept(triple)) {
        Ok(text) => {
            let run = serde_json::from_str(&text);
            Some(
                run.with_context(|| format!("{} is not of this release; delete it", kept(triple).display()))?,
            )
        }
        Err(_) => None,
    };
    Ok(Known { triple: triple.to_owned(), sizes, run })
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
    fn the_page_has_a_table_of_every_released_target() {
        let page = std::fs::read_to_string(root().join(PAGE))
            .expect("`cargo xtask bench --footprint` writes the page");
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
