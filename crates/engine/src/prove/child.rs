//! The child's side of a proof.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use dunlin_protocol::{GoldenSet, ReasonCode, TensorData};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::examine::look;
use super::{Answer, Examination, Examined, Job, Limits, Proof, Request};
use crate::golden::row_of;
use crate::{EngineError, MODEL_BYTES_MAX, Model, anchor_score_ppm, max_error_ppm};

/// Largest job description read from standard input.
const JOB_BYTES_MAX: u64 = 64 * 1024;
/// Largest golden or anchor set: a few hundred rows of the largest inputs.
const GOLDEN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most timed runs: a median needs no more, and the processor-time limit has to be set by somebody who knows.
const REPEAT_MAX: u32 = 10_000;
/// Runs before timing starts, to fill caches and the pool of states.
const WARM_UP: usize = 5;

/// Longest file a proof may write, bytes. It writes none of its own; tract reads `/proc/cpuinfo` whenever it chooses kernels
/// for armv7, and a user-mode emulator gives a program that file by writing one.
const PROOF_WRITES_MAX: u64 = 64 * 1024;

/// Longest text about a failure, bytes: it may quote what a hostile file calls its nodes.
const DETAIL_BYTES_MAX: usize = 4096;

pub(super) type Failure = (ReasonCode, String);

/// What the hidden verb of a program does: sets this process's limits, proves the model named by the request on standard
/// input, and prints the result. Call it first thing in `main`, before any thread is started.
pub fn child_main() -> ExitCode {
    serve(|_| Err((ReasonCode::ProofCrashed, "this program takes no models in, and examines none".into())))
}

/// The same for a program that takes models in: it also examines what nobody has looked into. What rewrites models comes
/// along, which a device has no use for.
pub fn intake_main() -> ExitCode {
    serve(look)
}

fn serve(look: impl Fn(&Examination) -> Result<Examined, Failure>) -> ExitCode {
    let mut text = Vec::new();
    let read = io::stdin().lock().take(JOB_BYTES_MAX).read_to_end(&mut text);
    let request: Request =
        match read.map_err(serde_json::Error::io).and_then(|_| serde_json::from_slice(&text)) {
            Ok(request) => request,
            Err(_) => return ExitCode::from(2),
        };
    let written_max = match &request {
        Request::Prove(_) => PROOF_WRITES_MAX,
        Request::Examine(_) => MODEL_BYTES_MAX as u64,
    };
    if limit(request.limits(), written_max).is_err() {
        return ExitCode::from(3);
    }
    let answer = match &request {
        Request::Prove(job) => prove(job).map(Answer::Proved),
        Request::Examine(examination) => look(examination).map(Answer::Examined),
    };
    let answer = answer.unwrap_or_else(|(reason, mut detail)| {
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        Answer::Failed { reason, detail }
    });
    let printed = serde_json::to_vec(&answer)
        .map_err(io::Error::from)
        .and_then(|text| io::stdout().lock().write_all(&text));
    if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(4) }
}

/// Sets this process's limits for good; `written_max` is the longest file it may write, bytes.
pub(crate) fn limit(limits: &Limits, written_max: u64) -> rustix::io::Result<()> {
    let exactly = |n: u64| Rlimit { current: Some(n), maximum: Some(n) };
    // A core file of a hostile model would fill the disk and hold what is in memory.
    setrlimit(Resource::Core, exactly(0))?;
    setrlimit(Resource::Fsize, exactly(written_max))?;
    setrlimit(Resource::As, exactly(limits.address_space_bytes))?;
    // The soft limit ends the process with a signal that tells why; the hard one comes after it.
    let cpu = limits.cpu_s.max(1);
    setrlimit(Resource::Cpu, Rlimit { current: Some(cpu), maximum: Some(cpu + 1) })
}

fn prove(job: &Job) -> Result<Proof, Failure> {
    let golden = set(&job.golden)?;
    let before = memory("RssAnon:");
    let onnx = file(&job.model, MODEL_BYTES_MAX as u64)?;
    let rows = golden.inputs.first().and_then(|t| t.shape.first()).map_or(1, |&n| n as usize);
    let model = Model::load(&onnx, None).map_err(load)?;
    drop(onnx);
    let answers = model.run(&golden.inputs).map_err(replay)?;
    let max_error_ppm = max_error_ppm(&answers, &golden.outputs);
    if golden.outputs.is_empty() || max_error_ppm > golden.tolerance_ppm {
        let detail =
            format!("the answers are off by {max_error_ppm} ppm, {} ppm are allowed", golden.tolerance_ppm);
        return Err((ReasonCode::GoldenMismatch, detail));
    }
    let latency_us_p50 =
        latency(&model, &golden.inputs, rows, job.repeat.clamp(1, REPEAT_MAX)).map_err(replay)?;
    // What is mapped from files is the program, page by page as it runs; a model is read, not mapped. Taken before the
    // anchor set, which goes through as one batch far larger than any request.
    let peak_bytes = memory("VmHWM:").saturating_sub(memory("RssFile:")).saturating_sub(before);
    let anchor_score_ppm = match &job.anchor {
        Some(path) => {
            let anchor = set(path)?;
            Some(anchor_score_ppm(&model, &anchor).map_err(|e| (ReasonCode::AnchorScore, e.to_string()))?)
        }
        None => None,
    };
    Ok(Proof { latency_us_p50, peak_bytes, max_error_ppm, anchor_score_ppm })
}

pub(super) fn load(e: EngineError) -> Failure {
    (e.reason(), e.to_string())
}

/// The model's fault and the golden set's are the same to a device: they do not belong together.
fn replay(e: EngineError) -> Failure {
    (ReasonCode::GoldenMismatch, e.to_string())
}

/// Median time of single rows, microseconds. A model with a fixed batch is timed on the whole of it.
fn latency(model: &Model, inputs: &[TensorData], rows: usize, repeat: u32) -> Result<u64, EngineError> {
    let single = model.inputs().iter().all(|spec| matches!(spec.shape.first(), Some(-1 | 1)));
    let requests: Vec<Vec<TensorData>> =
        if single { (0..rows).map(|row| row_of(inputs, row, rows)).collect() } else { vec![inputs.to_vec()] };
    let mut turn = requests.iter().cycle();
    let mut next = || turn.next().map_or(&[][..], Vec::as_slice);
    for _ in 0..WARM_UP {
        model.run(next())?;
    }
    let mut times = Vec::with_capacity(repeat as usize);
    for _ in 0..repeat {
        let request = next();
        let from = Instant::now();
        model.run(request)?;
        times.push(from.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].div_ceil(1000))
}

fn set(path: &Path) -> Result<GoldenSet, Failure> {
    let bytes = file(path, GOLDEN_BYTES_MAX)?;
    let set: GoldenSet = dunlin_protocol::cbor::decode(&bytes, GOLDEN_BYTES_MAX as usize)
        .map_err(|e| (ReasonCode::GoldenMismatch, format!("reading {}: {e}", path.display())))?;
    if set.inputs.is_empty() || set.inputs.iter().any(|t| t.shape.first() == Some(&0)) {
        return Err((ReasonCode::GoldenMismatch, format!("{} has no rows", path.display())));
    }
    Ok(set)
}

pub(super) fn file(path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let fail = |detail: String| (ReasonCode::ProofCrashed, format!("reading {}: {detail}", path.display()));
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| fail(e.to_string()))?;
    if bytes.len() as u64 > max { Err(fail(format!("it is longer than {max} bytes"))) } else { Ok(bytes) }
}

/// A line of this process's memory (`status` of proc(5)), bytes; zero where there is no `/proc`.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(name));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
