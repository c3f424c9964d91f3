//! Memory of the released agent: idle, with models, and while it fetches a large one.
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dunlin_tests::agent::Agent;
use dunlin_tests::digits::PIXELS;
use dunlin_tests::networks;
use dunlin_tests::wide::widen;

use crate::digits_model;
use crate::report::{Bar, Section};
use crate::timing::median;
use crate::world::{World, ask};
use dunlin_tests::proc::{self, Memory};

/// Bytes of a mebibyte.
const MIB: f64 = 1048576.0;
/// Time for a device to become quiet: connections made, first reports acknowledged.
const SETTLE: Duration = Duration::from_secs(8);
/// Looks at a quiet device, of which the median counts.
const LOOKS: usize = 9;
/// Pause between two looks at a quiet device.
const LOOK_PAUSE: Duration = Duration::from_millis(300);
/// Pause between two looks at a device at work. The kernel keeps the peak of the agent itself exactly; looks are for
/// its children, and each costs the agent a walk over its pages.
const WATCH_PAUSE: Duration = Duration::from_millis(3);
/// How long a download may take.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(180);
/// Width of the hidden layer that makes the perceptron's file 100 MB: 75 floats a unit.
const WIDE_UNITS: usize = 334_000;
/// Least bytes of the large bundle.
const LARGE_BYTES: u64 = 100_000_000;
/// Requests before a model counts as in use.
const WARM_ROUNDS: usize = 10;
/// Bars, mebibytes.
const IDLE_MIB_MAX: f64 = 8.0;
const SMALL_MIB_MAX: f64 = 16.0;
const GROWTH_MIB_MAX: f64 = 4.0;

pub(crate) fn measure(section: &mut Section, folder: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(scenes(section, folder))
}

async fn scenes(section: &mut Section, folder: &Path) -> Result<()> {
    let mut world = World::start(folder).await?;
    let mut agent = world.device("small").await?;
    tokio::time::sleep(SETTLE).await;
    let idle = quiet(&agent).await?;
    section.hold(
        "PSS, enrolled and connected, no model",
        idle.pss as f64 / MIB,
        "MiB",
        Bar::AtMost(IDLE_MIB_MAX),
    );
    section.add("  of it memory that no file backs (RSS)", idle.anonymous as f64 / MIB, "MiB");

    let row = digits_model::rows()[..PIXELS].to_vec();
    let release = world.publish("digits", &digits_model::perceptron()?, true).await?;
    let small = in_use(&world, &mut agent, "digits", &release, &[1, PIXELS], &row).await?;
    section.hold(
        "PSS, small model (perceptron on digits), in use",
        small.first.pss as f64 / MIB,
        "MiB",
        Bar::AtMost(SMALL_MIB_MAX),
    );
    section.add("  the same after a restart", small.restarted.pss as f64 / MIB, "MiB");
    agent.stop().await?;

    let image = vec![0.5; networks::CHANNELS * networks::SIDE * networks::SIDE];
    let mut agent = world.device("vision").await?;
    let release = world.publish("image", &networks::cnn(), false).await?;
    let large = in_use(
        &world,
        &mut agent,
        "image",
        &release,
        &[1, networks::CHANNELS, networks::SIDE, networks::SIDE],
        &image,
    )
    .await?;
    section.add("PSS, CNN of 14 MB, in use", large.first.pss as f64 / MIB, "MiB");
    section.add("  the same after a restart", large.restarted.pss as f64 / MIB, "MiB");
    agent.stop().await?;

    download(section, &world, &row).await?;
    world.controller.stop().await
}

/// Memory of a device that does nothing: each number's median over some looks.
async fn quiet(agent: &Agent) -> Result<Memory> {
    let pid = agent.pid().context("the agent runs")?;
    let mut looks = Vec::new();
    for _ in 0..LOOKS {
        looks.push(proc::tree(pid)?);
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    let of = |part: fn(&Memory) -> u64| median(looks.iter().map(|look| part(look) as f64).collect()) as u64;
    Ok(Memory { pss: of(|m| m.pss), rss: of(|m| m.rss), anonymous: of(|m| m.anonymous) })
}

struct InUse {
    /// Right after the model was fetched, proved and taken into use.
    first: Memory,
    restarted: Memory,
}

async fn in_use(
    world: &World,
    agent: &mut Agent,
    task: &str,
    release: &str,
    shape: &[usize],
    row: &[f32],
) -> Result<InUse> {
    world.assign(task, &agent.id, release).await?;
    world.commit(agent, task, shape, row).await?;
    let work = |agent: &Agent| (0..WARM_ROUNDS).try_for_each(|_| ask(agent.api, task, shape, row));
    work(agent)?;
    tokio::time::sleep(SETTLE).await;
    let first = quiet(agent).await?;
    agent.stop().await?;
    agent.start().await?;
    tokio::time::sleep(SETTLE).await;
    work(agent)?;
    Ok(InUse { first, restarted: quiet(agent).await? })
}

/// What was seen of a device while it fetched.
struct Watched {
    before: Memory,
    peak_rss: u64,
    peak_anonymous: u64,
    looks: usize,
    seconds: f64,
}

async fn download(section: &mut Section, world: &World, row: &[f32]) -> Result<()> {
    let onnx = widen(&digits_model::perceptron()?, WIDE_UNITS)?;
    ensure!(onnx.len() as u64 >= LARGE_BYTES, "the large model has only {} bytes", onnx.len());
    let agent = world.device("large").await?;
    let release = world.publish("wide", &onnx, false).await?;
    drop(onnx);
    tokio::time::sleep(SETTLE).await;
    let pid = agent.pid().context("the agent runs")?;
    let (thread, ready) = watch(pid, agent.folder.join("state/slots/blobs"))?;
    ready.recv().context("the watcher ended early")?;
    world.assign("wide", &agent.id, &release).await?;
    let watched = tokio::task::spawn_blocking(move || thread.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
    let growth = |peak: u64, before: u64| peak.saturating_sub(before) as f64 / MIB;
    section.hold(
        "peak growth of RSS while a 100 MB bundle is fetched, verified, staged",
        growth(watched.peak_rss, watched.before.rss),
        "MiB",
        Bar::AtMost(GROWTH_MIB_MAX),
    );
    section.add(
        "  of it memory that no file backs",
        growth(watched.peak_anonymous, watched.before.anonymous),
        "MiB",
    );
    section.add("  RSS before", watched.before.rss as f64 / MIB, "MiB");
    section.note(format!(
        "the agent's own peak is the kernel's (VmHWM); children and unbacked memory were looked at {} times in {:.1} s, until the proof's child started",
        watched.looks, watched.seconds
    ));
    let proving = std::thread::spawn(move || proof_peak(pid));
    let committed = world.commit(&agent, "wide", &[1, PIXELS], row).await;
    let proving = tokio::task::spawn_blocking(move || proving.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
    section.add("peak PSS of agent and child while the 100 MB model is proved", proving as f64 / MIB, "MiB");
    committed
}

/// Looks at `pid` from now until a blob of the large bundle's size is whole and the proof's child has started.
fn watch(pid: u32, blobs: PathBuf) -> Result<(JoinHandle<Result<Watched>>, mpsc::Receiver<()>)> {
    let (tell, ready) = mpsc::channel();
    let before = proc::tree(pid)?;
    let thread = std::thread::spawn(move || {
        let (mut peak_rss, mut peak_anonymous, mut looks) = (before.rss, before.anonymous, 0);
        proc::forget_peak(pid)?;
        tell.send(())?;
        let start = Instant::now();
        loop {
            let children = proc::children(pid);
            if !children.is_empty() && is_whole(&blobs) {
                return Ok(Watched {
                    before,
                    peak_rss,
                    peak_anonymous,
                    looks,
                    seconds: start.elapsed().as_secs_f64(),
                });
            }
            let of_children: u64 =
                children.iter().filter_map(|child| proc::tree(*child).ok()).map(|memory| memory.rss).sum();
            peak_rss = peak_rss.max(proc::peak(pid)? + of_children);
            peak_anonymous = peak_anonymous.max(proc::tree(pid)?.anonymous);
            looks += 1;
            if start.elapsed() > DOWNLOAD_LIMIT {
                bail!("the large bundle was not staged in {DOWNLOAD_LIMIT:?}");
            }
            std::thread::sleep(WATCH_PAUSE);
        }
    });
    Ok((thread, ready))
}

fn is_whole(blobs: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(blobs) else { return false };
    entries.flatten().any(|entry| {
        entry.path().extension().is_none() && entry.metadata().is_ok_and(|file| file.len() >= LARGE_BYTES)
    })
}

/// Most memory of the tree for as long as there are children.
fn proof_peak(pid: u32) -> Result<u64> {
    let mut peak = 0;
    while !proc::children(pid).is_empty() {
        peak = peak.max(proc::tree(pid)?.pss);
        std::thread::sleep(WATCH_PAUSE);
    }
    Ok(peak)
}
