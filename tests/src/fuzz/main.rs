//! Fuzzing of everything that reads what others wrote, on the stable toolchain: bent copies of good inputs, the pool
//! growing by every input that got somewhere new (another error, another form). A panic, an input that takes too long, or
//! one that makes a parser allocate more than its cap ends the run; the input is kept under `out/fuzz`.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

mod messages;
mod metadata;
mod mutate;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use peak_alloc::PeakAlloc;

use mutate::{Random, mutate};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Longest time of one input; the largest is 64 KiB and takes milliseconds.
const HANG: Duration = Duration::from_secs(10);
/// What any input may cost, bytes; the rest grows with its length.
const BYTES_BASE: usize = 256 * 1024;
/// What a byte of input may cost, bytes: `{"":` is four bytes and a map's first node some hundred, held at most three
/// times (the value, what is signed, what was read).
const BYTES_PER_BYTE: usize = 1024;
/// Inputs in the pool at most; it is as many as there are different outcomes.
const POOL_MAX: usize = 4096;

/// Something that reads what others wrote.
struct Target {
    name: &'static str,
    words: &'static [&'static [u8]],
    seeds: fn() -> Vec<Vec<u8>>,
    /// Where the input got to; the same number for what behaves alike.
    run: fn(&[u8]) -> u64,
}

const TARGETS: [Target; 6] = [
    Target {
        name: "metadata",
        words: &[
            b"\"keyids\":",
            b"\"threshold\":",
            b"\"delegations\":",
            b"\"paths\":[\"*\"]",
            b"\"path_hash_prefixes\":",
            b"\"terminating\":true",
            b"\"meta\":",
            b"\"version\":",
            b"\"hashes\":{\"sha512\":\"00\"}",
            b"\"length\":",
            b"\"consistent_snapshot\":false",
            b"\"signatures\":[]",
        ],
        seeds: metadata::metadata_seeds,
        run: metadata::metadata,
    },
    Target {
        name: "director",
        words: &[
            b"\"device\":\"pole-2\"",
            b"\"generation\":",
            b"\"lineup\":",
            b"\"champion\":\"meter@2\"",
            b"\"fallback\":",
            b"\"members\":[{\"release\":\"meter@3\",\"role\":\"bigger\"}]",
            b"\"conduct\":{\"rule\":{\"cascade\":{\"margin_ppm\":1}}}",
            b"\"tasks\":",
        ],
        seeds: metadata::director_seeds,
        run: metadata::director,
    },
    Target {
        name: "cbor",
        words: &[b"\x64kind", b"\x63seq", b"\xa0", b"\x80", b"\xf6", b"\xf9\x7e\x00"],
        seeds: messages::cbor_seeds,
        run: messages::cbor,
    },
    Target {
        name: "topic",
        words: &[b"+", b"#", b"/", b"$SYS", b"dunlin/v1/d/", b"/up/", b"/down/", b"@", b".json"],
        seeds: messages::topic_seeds,
        run: messages::topic,
    },
    Target {
        name: "manifest",
        words: &[b"\"length\":", b"\"shape\":", b"\"retrained\":", b"\"format\":"],
        seeds: messages::manifest_seeds,
        run: messages::manifest,
    },
    Target {
        name: "range",
        words: &[b"bytes=", b"-", b","],
        seeds: messages::range_seeds,
        run: messages::range,
    },
];

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
    #[arg(long, default_value = "tests/fuzz")]
    corpus: PathBuf,
    /// Where an input goes that ends a run
    #[arg(long, default_value = "out/fuzz")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let known = |name: &String| TARGETS.iter().any(|target| target.name == name);
    if let Some(unknown) = options.targets.iter().find(|name| !known(name)) {
        bail!("there is no target {unknown}; there are {}", TARGETS.map(|target| target.name).join(", "));
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
    let mut pool = (target.seeds)();
    let seeds = pool.len();
    pool.extend(corpus(&options.corpus.join(target.name))?);
    let mut seen = BTreeSet::new();
    for input in &pool {
        seen.insert(watched.run(input)?);
    }
    let (replayed, begin, mut random) = (pool.len(), Instant::now(), Random(options.seed));
    let mut runs = 0u64;
    while begin.elapsed() < Duration::from_secs(options.seconds) {
        for _ in 0..64 {
            let (at, other) = (random.below(pool.len()), random.below(pool.len()));
            let input = mutate(&pool[at], &pool[other], target.words, &mut random);
            if seen.insert(watched.run(&input)?) && pool.len() < POOL_MAX {
                pool.push(input);
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
                    && since.elapsed() > HANG
                {
                    drop(keep(&path, &input));
                    println!("an input took longer than {} s; it is in {}", HANG.as_secs(), path.display());
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
        let path =
            self.out.join(format!("{}-{}", self.target.name, &dunlin_trust::sha256(input).to_string()[..16]));
        let outcome = outcome.map_err(|_| {
            let kept = keep(&path, input);
            anyhow::anyhow!("{} panicked; its input is in {} ({kept:?})", self.target.name, path.display())
        })?;
        let cap = BYTES_BASE + BYTES_PER_BYTE * input.len();
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

fn keep(path: &Path, input: &[u8]) -> Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    Ok(std::fs::write(path, input)?)
}
