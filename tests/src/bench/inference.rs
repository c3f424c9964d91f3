//! The agent's inference API against direct calls of the engine, in one process and in alternating rounds.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::Result;
use dunlin_agent::api::{self, Api, Door};
use dunlin_agent::serve::{Limits, Serving};
use dunlin_engine::Model;
use dunlin_protocol::TaskId;
use dunlin_tests::client::{Client, binary_request, json_request};
use dunlin_tests::digits::PIXELS;
use dunlin_tests::{networks, served};

use crate::awake::Awake;
use crate::digits_model;
use crate::mlserver::MlServer;
use crate::report::{Bar, Section};
use crate::timing::{Times, median};

const TASK: &str = "meter";
/// Rounds; each asks in every way once, so that a disturbance hits all ways alike.
const ROUNDS: usize = 7;
/// Requests of one client in a round.
const REQUESTS: usize = 2000;
/// Requests before anything is timed.
const WARM: usize = 500;
/// Clients at once in the crowded case.
const CROWD: usize = 8;
/// Most that the API may add to the median for one client.
const OVERHEAD_US_MAX: f64 = 60.0;
/// Most that it may add to the 99th percentile for a crowd that asks at half the rate that saturates it.
const CROWD_OVERHEAD_US_MAX: f64 = 300.0;
/// Body of the bare socket's answer: as long as what the API answers for ten classes, heads included.
const ECHO_BYTES: usize = 400;
/// MLServer is asked one in so many of the requests of a round, this agent one in four.
const FOREIGN_SHARE: usize = 40;
/// Least throughput against MLServer's.
const FOREIGN_FACTOR_MIN: f64 = 20.0;

/// A way to ask.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Direct,
    Echo,
    Binary,
    Json,
}

impl Way {
    const ALL: [Self; 4] = [Self::Direct, Self::Echo, Self::Binary, Self::Json];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "engine called directly",
            Self::Echo => "a socket that only answers",
            Self::Binary => "API, binary tensors",
            Self::Json => "API, JSON",
        }
    }
}

type Asker<'a> = Box<dyn FnMut(usize) -> Result<()> + 'a>;

/// What all clients share.
struct Scene {
    model: Arc<Model>,
    rows: Vec<f32>,
    width: usize,
    shape: Vec<usize>,
    api: SocketAddr,
    echo: SocketAddr,
}

impl Scene {
    fn row(&self, i: usize) -> &[f32] {
        let at = i % (self.rows.len() / self.width) * self.width;
        &self.rows[at..at + self.width]
    }

    /// What asks a question, by its number. Requests are written beforehand: what is timed is the answer.
    fn asker(&self, way: Way) -> Result<Asker<'_>> {
        let distinct = (self.rows.len() / self.width).min(200);
        let write = match way {
            Way::Direct => {
                return Ok(Box::new(move |i: usize| -> Result<()> {
                    Ok(self.model.run_f32(self.row(i), 1).map(drop)?)
                }));
            }
            Way::Binary | Way::Echo => binary_request,
            Way::Json => json_request,
        };
        let requests: Vec<Vec<u8>> = (0..distinct).map(|i| write(TASK, &self.shape, self.row(i))).collect();
        let mut client = Client::connect(if way == Way::Echo { self.echo } else { self.api })?;
        Ok(Box::new(move |i: usize| -> Result<()> { client.ask(&requests[i % requests.len()]).map(drop) }))
    }

    /// Times of `n` questions of one client, which tells when it is `ready` to ask.
    fn times(&self, way: Way, n: usize, ready: impl FnOnce()) -> Result<Times> {
        let asker = self.asker(way);
        // Even without a connection: the others wait for all.
        ready();
        Times::of(n, asker?)
    }

    /// Times of `clients` that together ask `rate` questions a second, whether or not the ones before are answered.
    fn open(&self, way: Way, clients: usize, rate: f64, n: usize) -> Result<Times> {
        let pause = Duration::from_secs_f64(clients as f64 / rate);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|i| {
                    // Evenly apart, or all would ask at the same moment.
                    let offset = pause.mul_f64(i as f64 / clients as f64);
                    scope.spawn(move || Times::paced(n, pause, offset, self.asker(way)?))
                })
                .collect();
            let mut all = Times::default();
            for thread in threads {
                all.append(thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
            }
            Ok(all)
        })
    }

    /// Times of `clients` that ask again once they are answered, in every way by turns, and questions a second in the middle
    /// one of the rounds.
    fn closed(&self, clients: usize, requests: usize) -> Result<[(Way, Times, f64); Way::ALL.len()]> {
        let mut of_way = Way::ALL.map(|way| (way, Times::default(), Vec::new()));
        for _ in 0..ROUNDS {
            for (way, times, rates) in &mut of_way {
                let (some, rate) = self.crowd(*way, clients, requests / clients.min(4))?;
                times.append(some);
                rates.push(rate);
            }
        }
        Ok(of_way.map(|(way, times, rates)| (way, times, median(rates))))
    }

    /// Times of `clients` at once, and questions a second of all together.
    fn crowd(&self, way: Way, clients: usize, n: usize) -> Result<(Times, f64)> {
        let gate = Barrier::new(clients);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|_| {
                    scope.spawn(|| {
                        let mut start = Instant::now();
                        let times = self.times(way, n, || {
                            gate.wait();
                            start = Instant::now();
                        })?;
                        anyhow::Ok((times, start, Instant::now()))
                    })
                })
                .collect();
            // Clients of direct calls end within milliseconds: their own clocks say from when to when they asked.
            let mut all = Times::default();
            let (mut first, mut last) = (None, None);
            for thread in threads {
                let (times, start, end) =
                    thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
                all.append(times);
                first = first.map_or(Some(start), |first: Instant| Some(first.min(start)));
                last = last.max(Some(end));
            }
            let span = last.zip(first).map_or(f64::NAN, |(last, first)| (last - first).as_secs_f64());
            let rate = all.calls() as f64 / span;
            Ok((all, rate))
        })
    }
}

/// A server that answers every `request_bytes` as soon as they are there, each connection by a thread of its own: what a
/// request over TCP costs on this machine before anything is done for it. It ends with the process.
fn echo(request_bytes: usize) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {0}\r\n\r\n{1:0$}", ECHO_BYTES, ' ');
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || -> std::io::Result<()> {
                stream.set_nodelay(true)?;
                let mut request = vec![0; request_bytes];
                loop {
                    stream.read_exact(&mut request)?;
                    stream.write_all(answer.as_bytes())?;
                }
            });
        }
    });
    Ok(address)
}

pub(crate) fn measure(section: &mut Section, folder: &Path, mlserver: &Path) -> Result<()> {
    let rows = digits_model::rows();
    alternate(
        section,
        "digits, perceptron",
        &digits_model::perceptron()?,
        rows,
        &[1, PIXELS],
        REQUESTS,
        Some(OVERHEAD_US_MAX),
        Some((folder, mlserver)),
    )?;
    let pixels = networks::CHANNELS * networks::SIDE * networks::SIDE;
    let image: Vec<f32> = (0..pixels).map(|i| (i % 255) as f32 / 255.0).collect();
    alternate(
        section,
        "14 MB CNN",
        &networks::cnn(),
        image,
        &[1, networks::CHANNELS, networks::SIDE, networks::SIDE],
        REQUESTS / 50,
        None,
        None,
    )
}

#[allow(clippy::too_many_arguments, reason = "what differs between the two models, said once for each")]
fn alternate(
    section: &mut Section,
    name: &str,
    onnx: &[u8],
    rows: Vec<f32>,
    shape: &[usize],
    requests: usize,
    overhead_us_max: Option<f64>,
    mlserver: Option<(&Path, &Path)>,
) -> Result<()> {
    let width = shape.iter().product();
    let resident = served::resident("bench@1", TASK, onnx, &rows, width)?;
    let model = Arc::clone(&resident.model);
    let task: TaskId = TASK.parse()?;
    let serving = Serving::new(Limits::default());
    serving.switch(&task, resident, None, 1, false);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let api = listener.local_addr()?;
    let echo = echo(binary_request(TASK, shape, &rows[..width]).len())?;
    let scene = Scene { model, rows, width, shape: shape.to_vec(), api, echo };
    let api = Api::new(serving, Arc::new(dunlin_agent::clock::now), api::Limits::default());
    runtime.spawn(api.serve(Door::Tcp(listener), std::future::pending()));

    for way in Way::ALL {
        scene.times(way, WARM.min(requests), || ())?;
    }
    let awake = Awake::keep();
    let cores = match &awake {
        Ok(_) => "cores kept awake",
        Err(error) => {
            println!("cores are not kept awake for the local API: {error}");
            "cores may sleep"
        }
    };
    let mut saturated = f64::NAN;
    for clients in [1, CROWD] {
        let of_way = scene.closed(clients, requests)?;
        for (way, times, rate) in &of_way {
            let who = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
            let what = format!("{name}: {}, {who}", way.name());
            section.add(format!("{what}, p50"), times.quantile_us(0.5), "µs");
            section.add(format!("{what}, p99"), times.quantile_us(0.99), "µs");
            section.add(format!("{what}, throughput"), *rate, "rows/s");
            if clients == CROWD && *way == Way::Binary {
                saturated = *rate;
            }
        }
        if clients == 1 {
            added(section, name, cores, &of_way, overhead_us_max);
        }
    }
    let mut open = [Way::Direct, Way::Echo, Way::Binary].map(|way| (way, Times::default(), Vec::new()));
    for _ in 0..ROUNDS {
        for (way, times, rounds) in &mut open {
            let round = scene.open(*way, CROWD, saturated / 2.0, requests / CROWD)?;
            rounds.push(round.quantile_us(0.99));
            times.append(round);
        }
    }
    let [direct, echo, api] = open.map(|(_, times, rounds)| (times.quantile_us(0.99), median(rounds)));
    let what = format!("{name}: {CROWD} clients at half the saturated rate, binary, p99");
    section.add(&what, api.0, "µs");
    section.add(
        format!("{name}: {CROWD} clients at that rate, a socket that only answers, p99"),
        echo.0,
        "µs",
    );
    section.add(
        format!("{what}, over direct calls, in the middle one of {ROUNDS} rounds"),
        api.1 - direct.1,
        "µs",
    );
    let what = format!("{what}, over direct calls");
    match overhead_us_max {
        Some(_) => section.hold(what, api.0 - direct.0, "µs", Bar::AtMost(CROWD_OVERHEAD_US_MAX)),
        None => section.add(what, api.0 - direct.0, "µs"),
    }
    if let Some((folder, python)) = mlserver {
        std::fs::write(folder.join("model.onnx"), onnx)?;
        foreign(section, name, &scene, folder, python, requests)?;
    }
    if let Ok(awake) = awake {
        drop(awake);
        let of_way = scene.closed(1, requests)?;
        added(section, name, "cores may sleep", &of_way, None);
    }
    runtime.shutdown_background();
    Ok(())
}

/// What each way to ask adds to the median of direct calls, for one client.
fn added(
    section: &mut Section,
    name: &str,
    cores: &str,
    of_way: &[(Way, Times, f64)],
    binary_us_max: Option<f64>,
) {
    let p50 = |of| of_way.iter().find(|(way, ..)| *way == of).map_or(f64::NAN, |w| w.1.quantile_us(0.5));
    for (way, called) in [
        (Way::Binary, "the API adds at p50, binary"),
        (Way::Json, "the API adds at p50, JSON"),
        (Way::Echo, "a socket that only answers adds at p50"),
    ] {
        let (what, us) = (format!("{name}: what {called}, batch 1, {cores}"), p50(way) - p50(Way::Direct));
        match binary_us_max.filter(|_| way == Way::Binary) {
            Some(bar) => section.hold(what, us, "µs", Bar::AtMost(bar)),
            None => section.add(what, us, "µs"),
        }
    }
}

/// The same requests to MLServer with the same model, in turns with this agent.
fn foreign(
    section: &mut Section,
    name: &str,
    scene: &Scene,
    folder: &Path,
    python: &Path,
    requests: usize,
) -> Result<()> {
    let server = MlServer::start(python, folder, TASK)?;
    let theirs = Scene {
        model: Arc::clone(&scene.model),
        rows: scene.rows.clone(),
        width: scene.width,
        shape: scene.shape.clone(),
        api: server.address(),
        echo: scene.echo,
    };
    theirs.times(Way::Json, WARM.min(requests), || ())?;
    // JSON alone: it has no binary tensors over HTTP.
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        own.push(scene.crowd(Way::Json, CROWD, requests / 4)?.1);
        // A round of theirs takes as long with a fraction of the requests.
        other.push(theirs.crowd(Way::Json, CROWD, requests / FOREIGN_SHARE)?.1);
    }
    let (own, other) = (median(own), median(other));
    let what = format!("{name}: JSON, {CROWD} clients");
    section.add(format!("{what}, MLServer 1.7.1, throughput"), other, "rows/s");
    section.hold(
        format!("{what}, this agent against MLServer"),
        own / other,
        "×",
        Bar::AtLeast(FOREIGN_FACTOR_MIN),
    );
    Ok(())
}
