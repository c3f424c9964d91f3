//! Requests without a pause while the line-up behind them is swapped every second.
//!
//! Server and driver are processes of their own, so that the memory that is looked at is the server's. Each answer is
//! checked: it comes from one line-up, and its scores are those of the model that this line-up names.

mod server;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use dunlin_agent::serve::pack::ALLOCATOR;
use dunlin_engine::Model;

pub use server::serve;

use crate::client::{Client, binary_request};
use crate::digits::{CLASSES, PIXELS, Rng};
use crate::process::program;
use crate::{networks, proc};

const TASK: &str = "soak";
/// Time between two swaps under requests.
const EVERY: Duration = Duration::from_secs(1);
/// Swaps in which the least memory is looked for: some hold one model, some three, and a load takes some for a moment.
const SPAN: usize = 10 * CYCLE;
/// Longest wait for the server to have swapped so often.
const SWAPPED_WITHIN: Duration = Duration::from_secs(240);
/// Connections that ask at the same time.
const CLIENTS: usize = 8;
/// Rows that are asked about, over and over.
const ROWS: usize = 64;
/// Width of the models' hidden layer: so many weights that a model that stays behind is seen.
const HIDDEN: usize = 2048;
/// Bytes of a model's weights.
pub const MODEL_BYTES: u64 = (HIDDEN * (PIXELS + CLASSES) * size_of::<f32>()) as u64;
/// Swaps after which the same kinds of line-up come again: some hold one model, some three.
const CYCLE: usize = 6;
/// Fewest swaps of a run, however quickly it is done.
const SWAPS_MIN: usize = 6 * CYCLE;
/// Requests this close to a swap count as near it, milliseconds.
pub const NEAR_MS: u64 = 50;
/// Times the usual 99th percentile beyond which a request is late.
pub const LATE_FACTOR: f64 = 2.0;
/// Largest difference of a score from that of the model called directly.
const DIFFERENCE_MAX: f32 = 1e-4;
/// Pause between two looks at the server's memory.
const LOOK: Duration = Duration::from_millis(250);
/// Growth of memory that counts as none, per cent.
const FLAT_PERCENT: u64 = 105;

/// The two models that take turns, and the rows they are asked about.
#[derive(Debug)]
struct Models {
    onnx: [Vec<u8>; 2],
    rows: Vec<f32>,
}

impl Models {
    fn new() -> Self {
        let mut rng = Rng(3);
        let onnx = [1, 2].map(|seed| networks::perceptron(PIXELS, HIDDEN, CLASSES, seed));
        Self { onnx, rows: (0..ROWS * PIXELS).map(|_| rng.uniform()).collect() }
    }

    /// The file that serves in a generation.
    fn onnx(&self, generation: u64) -> &[u8] {
        &self.onnx[generation as usize % 2]
    }
}

/// Microseconds since 1970: what both processes can tell.
fn unix_us() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Requests answered.
    pub requests: u64,
    /// Swaps meanwhile.
    pub swaps: usize,
    /// Requests that failed, or whose answer was not that of one line-up.
    pub wrong: u64,
    /// The first of those.
    pub first_wrong: Option<String>,
    /// The server's memory in the cycle of line-ups in the middle, when the heap has settled, bytes: the least that was
    /// seen, as what stays behind never leaves it and what a load takes for a moment does.
    pub rss_middle: u64,
    /// The same in the last cycle.
    pub rss_end: u64,
    /// 99th percentile of the latency of requests near a swap, milliseconds.
    pub near_p99_ms: f64,
    /// The same of all others.
    pub far_p99_ms: f64,
    /// Share of the requests near a swap that took longer than [`LATE_FACTOR`] times the 99th percentile of all others.
    pub near_late: f64,
    /// The same share of all others.
    pub far_late: f64,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// What each swap since the middle of the run has left behind, bytes.
    pub fn left_behind(&self) -> u64 {
        self.rss_end.saturating_sub(self.rss_middle) / (self.swaps as u64 / 2).max(1)
    }

    /// Whether the server took no more memory in the last cycle than in the middle.
    pub fn is_flat(&self) -> bool {
        self.rss_end * 100 <= self.rss_middle * FLAT_PERCENT
    }
}

/// The server; it ends when this is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    swaps: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    fn start(every: Duration) -> Result<Self> {
        let mut child = Command::new(program("dunlin-soak")?)
            .args(["serve", &every.as_millis().to_string()])
            .envs(ALLOCATOR)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the server")?;
        let mut lines = BufReader::new(child.stdout.take().context("standard output was asked for")?).lines();
        let swaps = Arc::new(Mutex::new(Vec::new()));
        let mut server = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), swaps };
        server.address = lines.next().context("the server ended early; its message is above")??.parse()?;
        let swaps = Arc::clone(&server.swaps);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut numbers = line.split(' ').skip(1).filter_map(|text| text.parse::<u64>().ok());
                let swap = numbers.next().zip(numbers.next());
                swaps.lock().unwrap_or_else(PoisonError::into_inner).extend(swap);
            }
        });
        Ok(server)
    }

    fn swaps(&self) -> Vec<(u64, u64)> {
        self.swaps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What all clients share.
struct Scene {
    requests: Vec<Vec<u8>>,
    /// Scores of each model for each row.
    expected: [Vec<Vec<f32>>; 2],
    address: SocketAddr,
    /// Requests that are still to be asked.
    left: AtomicU64,
    wrong: AtomicU64,
    first_wrong: Mutex<Option<String>>,
}

/// When a request began, milliseconds since 1970, and how long it took, microseconds.
type Asked = (u64, u32);
/// Swaps by then, and the server's memory, bytes.
type Look = (usize, u64);

impl Scene {
    fn new(models: &Models, address: SocketAddr, requests: u64) -> Result<Self> {
        let rows = || models.rows.chunks_exact(PIXELS);
        let scores = |onnx: &[u8]| -> Result<Vec<Vec<f32>>> {
            let model = Model::load(onnx, None)?;
            rows().map(|row| Ok(model.run_f32(row, 1)?)).collect()
        };
        Ok(Self {
            requests: rows().map(|row| binary_request(TASK, &[1, PIXELS], row)).collect(),
            expected: [scores(&models.onnx[0])?, scores(&models.onnx[1])?],
            address,
            left: AtomicU64::new(requests),
            wrong: AtomicU64::new(0),
            first_wrong: Mutex::default(),
        })
    }

    /// Asks until nothing is left to be asked.
    fn ask(&self, first: usize) -> Result<Vec<Asked>> {
        let mut client = Client::connect(self.address)?;
        let mut asked = Vec::new();
        let take = |left: u64| left.checked_sub(1);
        let mut row = first;
        while self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            row = (row + 1) % ROWS;
            let (began, from) = (unix_us()?, Instant::now());
            let outcome = client.ask(&self.requests[row]).and_then(|answer| self.check(answer, row));
            asked.push((began / 1000, u32::try_from(from.elapsed().as_micros()).unwrap_or(u32::MAX)));
            if let Err(error) = outcome {
                self.wrong.fetch_add(1, Ordering::Relaxed);
                let mut first = self.first_wrong.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert_with(|| format!("{error:#}"));
                client = Client::connect(self.address)?;
            }
        }
        Ok(asked)
    }

    /// Release and generation belong together, and the scores are those of that release's model.
    fn check(&self, answer: &[u8], row: usize) -> Result<()> {
        let generation = number(answer, b"\"generation\":")?;
        let version = number(answer, b"\"model_version\":\"soak@")?;
        ensure!(version == generation, "release {version} answered in generation {generation}");
        let scores =
            answer.len().checked_sub(CLASSES * 4).map(|from| &answer[from..]).context("no scores")?;
        let scores = scores.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let expected = &self.expected[generation as usize % 2][row];
        let near = scores.zip(expected).all(|(a, b)| (a - b).abs() <= DIFFERENCE_MAX);
        ensure!(near, "an answer of generation {generation} is not that of its model");
        Ok(())
    }
}

/// The number behind `key`.
fn number(answer: &[u8], key: &[u8]) -> Result<u64> {
    let at = answer.windows(key.len()).position(|window| window == key);
    let at = at.with_context(|| format!("no {} in the answer", String::from_utf8_lossy(key)))? + key.len();
    let digits = answer[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Ok(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Requests that are still to be asked.
    pub left: u64,
    /// Swaps so far.
    pub swaps: usize,
    /// The server's memory, bytes.
    pub rss: u64,
}

/// Asks so many requests, and more if there were too few swaps by then. Every look at the server is `told`.
///
/// # Errors
/// The server can not be started or reached, or has ended.
pub fn drive(requests: u64, mut told: impl FnMut(Progress)) -> Result<Outcome> {
    let server = Server::start(EVERY)?;
    let scene = Scene::new(&Models::new(), server.address, requests)?;
    let start = Instant::now();
    let (asked, looks) = std::thread::scope(|scope| -> Result<(Vec<Asked>, Vec<Look>)> {
        let scene = &scene;
        let clients: Vec<_> =
            (0..CLIENTS).map(|i| scope.spawn(move || scene.ask(i * ROWS / CLIENTS))).collect();
        let mut looks = Vec::new();
        while clients.iter().any(|client| !client.is_finished()) {
            std::thread::sleep(LOOK);
            let swaps = server.swaps().len();
            if swaps < SWAPS_MIN && scene.left.load(Ordering::Relaxed) < requests / 2 {
                // Not over before the line-up was swapped often enough.
                scene.left.fetch_add(requests / 2, Ordering::Relaxed);
            }
            let rss = proc::memory(server.child.id())?.rss;
            looks.push((swaps, rss));
            told(Progress { left: scene.left.load(Ordering::Relaxed), swaps, rss });
        }
        let mut all = Vec::new();
        for client in clients {
            all.append(&mut client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        Ok((all, looks))
    })?;
    let took = start.elapsed();
    let swaps = server.swaps();
    let least = |from: usize, to: usize| {
        let seen = looks.iter().filter(|(swaps, _)| (from..to).contains(swaps)).map(|(_, rss)| *rss);
        seen.min().context("the server was not swapped often enough")
    };
    let last = looks.last().map_or(0, |(swaps, _)| *swaps + 1);
    let cycle_to = |to: usize| least(to.saturating_sub(CYCLE), to);
    let (rss_middle, rss_end) = (cycle_to(last / 2)?, cycle_to(last)?);
    let near: BTreeMap<u64, u64> =
        swaps.iter().map(|(from, to)| (from / 1000 - NEAR_MS, to / 1000 + NEAR_MS)).collect();
    let is_near = |(began, us): &Asked| {
        let ended = began + u64::from(*us) / 1000;
        near.range(..=ended).next_back().is_some_and(|(_, to)| to >= began)
    };
    let (close, far): (Vec<Asked>, Vec<Asked>) = asked.iter().copied().partition(|asked| is_near(asked));
    let far_p99_ms = p99_ms(far.clone());
    let late = |asked: &[Asked]| share_beyond(asked, LATE_FACTOR * far_p99_ms);
    Ok(Outcome {
        requests: asked.len() as u64,
        swaps: swaps.len(),
        wrong: scene.wrong.load(Ordering::Relaxed),
        first_wrong: scene.first_wrong.into_inner().unwrap_or_else(PoisonError::into_inner),
        rss_middle,
        rss_end,
        near_late: late(&close),
        far_late: late(&far),
        near_p99_ms: p99_ms(close),
        far_p99_ms,
        took,
    })
}

/// Memory of a server that swaps one line-up after the other and answers nothing.
#[derive(Debug)]
pub struct Growth {
    /// The least it took in the swaps once it had settled, bytes.
    pub settled: u64,
    /// The least it took in the last swaps, bytes.
    pub end: u64,
    /// Swaps between the two.
    pub swaps: usize,
}

impl Growth {
    /// What each swap has left behind, bytes.
    pub fn left_behind(&self) -> u64 {
        self.end.saturating_sub(self.settled) / self.swaps.max(1) as u64
    }
}

/// Swaps without a pause, and compares the memory after `settled` swaps with that after `swaps` further ones.
///
/// # Errors
/// The server can not be started, has ended, or swaps too slowly.
pub fn grow(settled: usize, swaps: usize) -> Result<Growth> {
    let server = Server::start(Duration::ZERO)?;
    let deadline = Instant::now() + SWAPPED_WITHIN;
    let least = |from: usize| -> Result<u64> {
        let mut least = u64::MAX;
        loop {
            let done = server.swaps().len();
            if done >= from {
                least = least.min(proc::memory(server.child.id())?.rss);
            }
            if done >= from + SPAN {
                return Ok(least);
            }
            ensure!(Instant::now() < deadline, "only {done} swaps in {SWAPPED_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    Ok(Growth { settled: least(settled)?, end: least(settled + swaps)?, swaps })
}

/// Not a number if there are none.
fn p99_ms(mut asked: Vec<Asked>) -> f64 {
    asked.sort_unstable_by_key(|(_, us)| *us);
    asked.get(asked.len() * 99 / 100).map_or(f64::NAN, |(_, us)| f64::from(*us) / 1000.0)
}

/// Share of the requests that took longer than `ms`; not a number if there are none.
fn share_beyond(asked: &[Asked], ms: f64) -> f64 {
    let beyond = asked.iter().filter(|(_, us)| f64::from(*us) / 1000.0 > ms).count();
    beyond as f64 / asked.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_requests_are_counted_as_a_share() {
        let asked: Vec<Asked> = (1..=200).map(|ms| (0, ms * 1000)).collect();
        assert_eq!(p99_ms(asked.clone()), 199.0);
        assert_eq!((share_beyond(&asked, 150.0), share_beyond(&asked, 200.0)), (0.25, 0.0));
        assert!(share_beyond(&[], 1.0).is_nan());
    }

    #[test]
    fn numbers_are_found_behind_their_key() {
        let answer = b"{\"model_version\":\"soak@12\",\"parameters\":{\"generation\":34}}";
        assert_eq!(number(answer, b"\"model_version\":\"soak@").unwrap(), 12);
        assert_eq!(number(answer, b"\"generation\":").unwrap(), 34);
        assert!(number(answer, b"\"rows\":").is_err());
    }
}
