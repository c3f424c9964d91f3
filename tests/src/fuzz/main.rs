//! Fuzzing of everything that reads what others wrote, on the stable toolchain: bent copies of good inputs, the pool
//! growing by every input that got somewhere new (another error, another form). A panic, an input that takes too long, or
//! one that makes a parser allocate more than its cap ends the run; the input is kept under `out/fuzz`. Everything is
//! drawn from the seed and every key is fixed, so that a kept input does the same again. Why it is made so, and what it
//! does not find: `docs/adr/0006-fuzzing-on-the-stable-toolchain.md`.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

mod mutate;
mod shrink;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use dunlin_tests::fuzzed::{TARGETS, Target};
use peak_alloc::PeakAlloc;

use mutate::{Random, mutate};
use shrink::shrink;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Longest time of one input of 64 KiB, which takes milliseconds; larger ones have as much more as they are longer.
const HANG: Duration = Duration::from_secs(10);
/// Longest input that the pool takes up: what is bent again and again must be quick.
const POOLED_BYTES_MAX: usize = 64 * 1024;
/// What any input may cost, bytes; the rest grows with its length.
const BYTES_BASE: usize = 256 * 1024;
/// Inputs in the pool at most; it is as many as there are different outcomes.
const POOL_MAX: usize = 4096;

/// Files of a target's corpus at most: what is replayed in every test must be quick, and small enough to be looked at.
const CORPUS_FILES_MAX: usize = 64;
/// Longest of them.
const CORPUS_BYTES_MAX: usize = 4096;

/// Fuzzes the parsers.
#[derive(Debug, Parser)]
struct Options {
    /// Which ones; all without any
    targets: Vec<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The same seed bends the same inputs alike
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Inputs that are replayed first: a folder for each target
    #[arg(long, default_value = "tests/src/fuzzed/__fuzz__")]
    corpus: PathBuf,
    /// Where an input goes that ends a run
    #[arg(long, default_value = "out/fuzz")]
    out: PathBuf,
    /// Adds the good inputs to the corpus, and those that got somewhere new, made small first
    #[arg(long)]
    grow: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let known = |name: &String| TARGETS.iter().any(|target| target.name == name);
    if let Some(unknown) = options.targets.iter().find(|name| !known(name)) {
        bail!(
            "there is no target {unknown}; there are {}",
            TARGETS.each_ref().map(|target| target.name).join(", ")
        );
    }
    for target in &TARGETS {
        if options.targets.is_empty() || options.targets.iter().any(|name| name == target.name) {
            fuzz(target, &options)?;
        }
    }
    Ok(())
}

fn fuzz(target: &Target, options: &Options) -> Result<()> {
    let mut watched = Watched::new(target, &options.out);
    let folder = options.corpus.join(target.name).join("corpus");
    let mut pool = (target.seeds)();
    let seeds = pool.len();
    pool.extend(corpus(&folder)?);
    let mut seen = BTreeSet::new();
    for input in &pool {
        seen.insert(watched.run(input)?);
    }
    for input in (target.large)() {
        seen.insert(watched.run(&input)?);
    }
    let (replayed, begin, mut random) = (pool.len(), Instant::now(), Random(options.seed));
    let (mut runs, mut found) = (0u64, Vec::new());
    while begin.elapsed() < Duration::from_secs(options.seconds) {
        for _ in 0..64 {
            let (at, other) = (random.below(pool.len()), random.below(pool.len()));
            let input = mutate(&pool[at], &pool[other], target.words, target.bytes_max, &mut random);
            let outcome = watched.run(&input)?;
            let fresh = seen.insert(outcome);
            if fresh && input.len() <= POOLED_BYTES_MAX && pool.len() < POOL_MAX {
                pool.push(input.clone());
                found.push((input, outcome));
            }
            runs += 1;
        }
    }
    println!(
        "{:9} {seeds} seeds, {} of the corpus, {runs} inputs in {} s, {} different outcomes, at most {} KiB allocated",
        target.name,
        replayed - seeds,
        options.seconds,
        seen.len(),
        watched.peak / 1024,
    );
    if options.grow { grow(&folder, &mut watched, &found) } else { Ok(()) }
}

/// Keeps the good inputs, for engines that know only files; then those that got somewhere new, as small as they can be made,
/// until the corpus is large enough.
fn grow(folder: &Path, watched: &mut Watched<'_>, found: &[(Vec<u8>, u64)]) -> Result<()> {
    for seed in (watched.target.seeds)() {
        keep(&folder.join(name(&seed)), &seed)?;
    }
    let room = CORPUS_FILES_MAX.saturating_sub(corpus(folder)?.len());
    let mut kept = 0;
    for (input, outcome) in found {
        if kept == room {
            break;
        }
        let small = shrink(input, |bytes| Ok(watched.run(bytes)? == *outcome))?;
        if small.len() <= CORPUS_BYTES_MAX {
            keep(&folder.join(name(&small)), &small)?;
            kept += 1;
        }
    }
    println!("{:9} {kept} inputs for the corpus", watched.target.name);
    Ok(())
}

/// The files of a folder, by name.
fn corpus(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(vec![]) };
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    paths.iter().map(read).collect()
}

/// The input that is run, and since when.
type Present = Arc<Mutex<Option<(Instant, Vec<u8>)>>>;

/// Runs inputs, and keeps the one that ends the run.
struct Watched<'a> {
    target: &'a Target,
    out: PathBuf,
    present: Present,
    peak: usize,
}

impl<'a> Watched<'a> {
    fn new(target: &'a Target, out: &Path) -> Self {
        let present = Present::default();
        let (shared, path) = (Arc::downgrade(&present), out.join(format!("{}-hang", target.name)));
        // What never returns can only be ended from beside it.
        std::thread::spawn(move || {
            while let Some(present) = shared.upgrade() {
                let stuck = present.lock().unwrap_or_else(PoisonError::into_inner).clone();
                drop(present);
                if let Some((since, input)) = stuck
                    && since.elapsed()
                        > HANG * u32::try_from(input.len() / POOLED_BYTES_MAX + 1).unwrap_or(u32::MAX)
                {
                    drop(keep(&path, &input));
                    println!("an input took {} s; it is in {}", since.elapsed().as_secs(), path.display());
                    std::process::exit(1);
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        Self { target, out: out.to_path_buf(), present, peak: 0 }
    }

    fn run(&mut self, input: &[u8]) -> Result<u64> {
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), input.to_vec()));
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        let allocated = MEMORY.peak_usage().saturating_sub(before);
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.peak = self.peak.max(allocated);
        let path = self.out.join(format!("{}-{}", self.target.name, name(input)));
        let outcome = outcome.map_err(|_| {
            let kept = keep(&path, input);
            anyhow::anyhow!("{} panicked; its input is in {} ({kept:?})", self.target.name, path.display())
        })?;
        let cap = BYTES_BASE + self.target.bytes_per_byte * input.len();
        if allocated > cap {
            keep(&path, input)?;
        }
        ensure!(
            allocated <= cap,
            "{} allocated {allocated} bytes for {} of input; it is in {}",
            self.target.name,
            input.len(),
            path.display()
        );
        Ok(outcome)
    }
}

/// What an input's file is called.
fn name(input: &[u8]) -> String {
    dunlin_trust::sha256(input).to_string()[..16].to_owned()
}

fn keep(path: &Path, input: &[u8]) -> Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    Ok(std::fs::write(path, input)?)
}
