//! Proving: a model is looked into, loaded and replayed in a child process under limits before anything trusts it.
//!
//! A hostile or broken model can exhaust memory, run for ever or crash the process it is loaded in, and not all of
//! that shows in the file. So the first load happens in a child: the program's own executable, started with a
//! hidden verb, which sets its limits first thing, reads its job from standard input and answers on standard
//! output. The environment is cleared; the child opens the files it is told about and nothing else.
//!
//! The child's `main` has to come to [`child_main`] or [`intake_main`] before it starts threads: an address-space limit counts
//! their stacks.

mod child;
mod examine;

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use dunlin_protocol::ReasonCode;
use serde::{Deserialize, Serialize};

use crate::parent;

pub(crate) use child::limit;
pub use child::{child_main, intake_main};
pub use examine::{Examination, Examined, examine};

/// Most bytes of a proof's answer: one short JSON object.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// How often the parent looks whether the child has ended.
const POLL: Duration = Duration::from_millis(5);

/// What a proof may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Address space, bytes: the program itself, the file, the graph and every allocation.
    pub address_space_bytes: u64,
    /// Processor time, seconds.
    pub cpu_s: u64,
    /// Time on the clock, milliseconds; the parent kills the child then.
    pub wall_ms: u64,
}

/// What is to be proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The ONNX file.
    pub model: PathBuf,
    /// Golden vectors, a CBOR [`dunlin_protocol::GoldenSet`].
    pub golden: PathBuf,
    /// Limits of the child.
    pub limits: Limits,
    /// Timed runs of single rows.
    pub repeat: u32,
    /// Anchor set, a CBOR [`dunlin_protocol::GoldenSet`] with labels, if the model has to pass one.
    pub anchor: Option<PathBuf>,
}

/// A passed proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Median latency of one row, microseconds, rounded up.
    pub latency_us_p50: u64,
    /// Most resident memory that the model took, bytes: its file, its graph and what running it needs, without the
    /// program and the vectors.
    pub peak_bytes: u64,
    /// Largest deviation from the golden vectors, parts per million.
    pub max_error_ppm: u32,
    /// Share of the anchor set it got right, parts per million.
    pub anchor_score_ppm: Option<u32>,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// The child could not be started.
    #[error("starting the proof with {exe:?}")]
    Start {
        /// The executable.
        exe: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The child used up its time, on the clock or of the processor.
    #[error("the proof ran out of {what}")]
    Timeout {
        /// Which time.
        what: &'static str,
    },
    /// The child died or answered nothing that can be read.
    #[error("the proof died: {status}")]
    Crashed {
        /// How.
        status: String,
    },
    /// The child says that the model fails.
    #[error("the model failed its proof: {detail}")]
    Failed {
        /// The code under which it crosses the wire.
        reason: ReasonCode,
        /// The same for people.
        detail: String,
    },
}

impl ProveError {
    /// The code under which this crosses the wire.
    pub fn reason(&self) -> ReasonCode {
        match self {
            Self::Start { .. } | Self::Crashed { .. } => ReasonCode::ProofCrashed,
            Self::Timeout { .. } => ReasonCode::ProofTimeout,
            Self::Failed { reason, .. } => *reason,
        }
    }
}

/// What the child is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    Prove(Job),
    Examine(Examination),
}

impl Request {
    fn limits(&self) -> &Limits {
        match self {
            Self::Prove(job) => &job.limits,
            Self::Examine(examination) => &examination.limits,
        }
    }
}

/// What the child prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Proved(Proof),
    Examined(Examined),
    Failed { reason: ReasonCode, detail: String },
}

/// Runs a proof in a child of `exe` (normally this very program) called with the argument `verb`. Blocks until the
/// child has ended, at most for the job's wall limit: call it from a thread that may wait.
///
/// # Errors
/// Why there is no proof; [`ProveError::reason`] is what to report.
pub fn run(exe: &Path, verb: &str, job: &Job) -> Result<Proof, ProveError> {
    match ask(exe, verb, &Request::Prove(job.clone()), ANSWER_BYTES_MAX)? {
        Answer::Proved(proof) => Ok(proof),
        Answer::Failed { reason, detail } => Err(ProveError::Failed { reason, detail }),
        Answer::Examined(_) => Err(unreadable()),
    }
}

fn unreadable() -> ProveError {
    ProveError::Crashed { status: "it answered nothing that can be read".into() }
}

/// Starts the child, tells it what to do and waits for its answer, of at most `answer_max` bytes.
fn ask(exe: &Path, verb: &str, request: &Request, answer_max: u64) -> Result<Answer, ProveError> {
    let start = |source| ProveError::Start { exe: exe.to_owned(), source };
    let mut child = parent::child(exe, verb).spawn().map_err(start)?;
    let told = tell(&mut child, request);
    let mut stdout = child.stdout.take().expect("standard output was asked for above");
    // Read beside the wait: a child that prints more than the pipe holds would never end.
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.by_ref().take(answer_max).read_to_end(&mut text);
        read.map(|_| text)
    });
    let status = wait(&mut child, Duration::from_millis(request.limits().wall_ms)).map_err(start)?;
    let text = reader.join().ok().and_then(Result::ok).unwrap_or_default();
    let Some(status) = status else { return Err(ProveError::Timeout { what: "time" }) };
    if status.signal() == Some(rustix::process::Signal::XCPU.as_raw()) {
        return Err(ProveError::Timeout { what: "processor time" });
    }
    if !status.success() || told.is_err() {
        return Err(ProveError::Crashed { status: status.to_string() });
    }
    serde_json::from_slice(&text).map_err(|_| unreadable())
}

fn tell(child: &mut Child, request: &Request) -> std::io::Result<()> {
    let mut stdin = child.stdin.take().expect("standard input was asked for");
    stdin.write_all(&serde_json::to_vec(request)?)
}

/// Waits for the child; `None` if it had to be killed at the limit.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}
