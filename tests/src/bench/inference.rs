//! The agent's inference API against direct calls of the engine, in one process and in alternating rounds.
use std::net::SocketAddr;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use anyhow::{Context, Result};
use dunlin_agent::api::{self, Api, Door};
use dunlin_agent::serve::{Limits, Resident, Serving};
use dunlin_engine::Model;
use dunlin_protocol::{Blob, Bundle, Digest, Hard, Lineage, ModelSignature, TaskId, TaskType};
use dunlin_tests::digits::{CLASSES, PIXELS};

use crate::client::{Client, binary_request, json_request};
use crate::report::{Bar, Section};
use crate::timing::{Times, median};
use crate::{cnn, digits_model};

const TASK: &str = "meter";
/// Rounds; each asks in every way once, so that a disturbance hits all ways alike.
const ROUNDS: usize = 7;
/// Requests of one client in a round.
const REQUESTS: usize = 2000;
/// Requests before anything is timed.
const WARM: usize = 500;
/// Clients at once in the crowded case.
const CROWD: usize = 8;
/// Most that the API may add to the median.
const OVERHEAD_US_MAX: f64 = 150.0;
/// Bins of a feature, as the registry makes them.
const BINS: usize = 64;

/// A way to ask.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Direct,
    Binary,
    Json,
}

impl Way {
    const ALL: [Self; 3] = [Self::Direct, Self::Binary, Self::Json];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "engine called directly",
            Self::Binary => "API, binary tensors",
            Self::Json => "API, JSON",
        }
    }
}

/// What all clients share.
struct Scene {
    model: Arc<Model>,
    rows: Vec<f32>,
    width: usize,
    shape: Vec<usize>,
    api: SocketAddr,
}

impl Scene {
    fn row(&self, i: usize) -> &[f32] {
        let at = i % (self.rows.len() / self.width) * self.width;
        &self.rows[at..at + self.width]
    }

    /// Times of `n` questions of one client, which tells when it is `ready` to ask.
    fn times(&self, way: Way, n: usize, ready: impl FnOnce()) -> Result<Times> {
        // Requests are written beforehand: what is timed is the answer.
        let distinct = (self.rows.len() / self.width).min(200);
        let write = match way {
            Way::Direct => {
                ready();
                return Times::of(n, |i| Ok(self.model.run_f32(self.row(i), 1).map(drop)?));
            }
            Way::Binary => binary_request,
            Way::Json => json_request,
        };
        let requests: Vec<Vec<u8>> = (0..distinct).map(|i| write(TASK, &self.shape, self.row(i))).collect();
        let client = Client::connect(self.api);
        // Even without a connection: the others wait for all.
        ready();
        let mut client = client?;
        Times::of(n, |i| client.ask(&requests[i % requests.len()]).map(drop))
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
            let rate = all.len() as f64 / span;
            Ok((all, rate))
        })
    }
}

pub(crate) fn measure(section: &mut Section) -> Result<()> {
    let rows = digits_model::rows();
    alternate(
        section,
        "digits, perceptron",
        &digits_model::perceptron()?,
        rows,
        &[1, PIXELS],
        REQUESTS,
        Some(OVERHEAD_US_MAX),
    )?;
    let pixels = cnn::CHANNELS * cnn::SIDE * cnn::SIDE;
    let image: Vec<f32> = (0..pixels).map(|i| (i % 255) as f32 / 255.0).collect();
    alternate(
        section,
        "14 MB CNN",
        &cnn::network(),
        image,
        &[1, cnn::CHANNELS, cnn::SIDE, cnn::SIDE],
        REQUESTS / 50,
        None,
    )
}

fn alternate(
    section: &mut Section,
    name: &str,
    onnx: &[u8],
    rows: Vec<f32>,
    shape: &[usize],
    requests: usize,
    overhead_us_max: Option<f64>,
) -> Result<()> {
    let width = shape.iter().product();
    let resident = resident(onnx, &rows, width)?;
    let model = Arc::clone(&resident.model);
    let task: TaskId = TASK.parse()?;
    let serving = Serving::new(Limits::default());
    serving.switch(&task, resident, None, 1, false);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let scene = Scene { model, rows, width, shape: shape.to_vec(), api: listener.local_addr()? };
    let api = Api::new(serving, Arc::new(dunlin_agent::clock::now), api::Limits::default());
    runtime.spawn(api.serve(Door::Tcp(listener), std::future::pending()));

    for way in Way::ALL {
        scene.times(way, WARM.min(requests), || ())?;
    }
    let mut medians = Vec::new();
    for clients in [1, CROWD] {
        let mut of_way = Way::ALL.map(|way| (way, Times::default(), Vec::new()));
        for _ in 0..ROUNDS {
            for (way, times, rates) in &mut of_way {
                let (some, rate) = scene.crowd(*way, clients, requests / clients.min(4))?;
                times.append(some);
                rates.push(rate);
            }
        }
        for (way, times, rates) in of_way {
            let who = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
            let what = format!("{name}: {}, {who}", way.name());
            section.add(format!("{what}, p50"), times.quantile_us(0.5), "µs");
            section.add(format!("{what}, p99"), times.quantile_us(0.99), "µs");
            section.add(format!("{what}, throughput"), median(rates), "rows/s");
            if clients == 1 {
                medians.push((way, times.quantile_us(0.5)));
            }
        }
    }
    let of =
        |way| medians.iter().find(|(of, _)| *of == way).map(|(_, us)| *us).context("every way was measured");
    let added = of(Way::Binary)? - of(Way::Direct)?;
    let what = format!("{name}: what the API adds at p50, binary, batch 1");
    match overhead_us_max {
        Some(bar) => section.hold(what, added, "µs", Bar::AtMost(bar)),
        None => section.add(what, added, "µs"),
    }
    section.add(
        format!("{name}: what the API adds at p50, JSON, batch 1"),
        of(Way::Json)? - of(Way::Direct)?,
        "µs",
    );
    runtime.shutdown_background();
    Ok(())
}

/// A release around `onnx` as the agent keeps it, with drift bins if it has few enough features.
fn resident(onnx: &[u8], rows: &[f32], width: usize) -> Result<Resident> {
    let model = Model::load(onnx, None)?;
    let none = Blob { digest: Digest([0; 32]), length: 0 };
    let profile = (width <= dunlin_monitor::profile::FEATURES_MAX).then(|| {
        let names: Vec<String> = (0..width).map(|i| format!("x{i}")).collect();
        let columns: Vec<Vec<f32>> =
            (0..width).map(|i| rows.iter().skip(i).step_by(width).copied().collect()).collect();
        Arc::new((dunlin_monitor::profile::build(&names, &columns, BINS), none.digest))
    });
    let bundle = Bundle {
        format: 1,
        release: "bench@1".parse()?,
        task: TASK.parse()?,
        task_type: TaskType::Classification,
        family: "bench".into(),
        model: none,
        golden: none,
        profile: None,
        signature: ModelSignature {
            inputs: model.inputs().to_vec(),
            outputs: model.outputs().to_vec(),
            features: vec![],
            labels: (0..CLASSES).map(|digit| digit.to_string()).collect(),
        },
        hard: Hard {
            arch: Default::default(),
            classes: Default::default(),
            ops: model.ops(),
            bundle_bytes: 0,
            ram_bytes: 0,
            min_agent: String::new(),
        },
        latency_us: 10,
        metrics: Default::default(),
        lineage: Lineage { run: "import".into(), dataset: None, code: String::new(), seed: 0 },
        licence: String::new(),
    };
    Ok(Resident {
        release: bundle.release.clone(),
        bundle: Arc::new(bundle),
        manifest: none.digest,
        model: Arc::new(model),
        profile,
        background: Arc::default(),
    })
}
