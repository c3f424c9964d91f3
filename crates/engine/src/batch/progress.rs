//! How far a batch is, beside its output.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use dunlin_protocol::{ReleaseId, TaskId};
use serde::{Deserialize, Serialize};

use super::{BatchError, Format, Job};

/// Format of the progress file.
const FORMAT: u32 = 1;

/// A place in the input at which a row begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Bytes before it, or rows where the input is not read by bytes.
    pub offset: u64,
    /// Lines before it, or rows.
    pub place: u64,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Its length.
    pub bytes: u64,
    /// When it was last written, nanoseconds since 1970; zero where the file system does not say.
    pub modified_ns: u64,
}

impl Fingerprint {
    /// Of a file that is there.
    ///
    /// # Errors
    /// It can not be looked at, or is no regular file, which could not be read twice.
    pub fn of(path: &Path) -> Result<Self, BatchError> {
        let meta = std::fs::metadata(path).map_err(BatchError::file("read", path))?;
        if !meta.is_file() {
            return Err(BatchError::Table(format!("{} is no regular file", path.display())));
        }
        Ok(Self { bytes: meta.len(), modified_ns: modified(&meta) })
    }
}

fn modified(meta: &Metadata) -> u64 {
    let since = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Format of this file, 1.
    pub format: u32,
    /// The task.
    pub task: TaskId,
    /// The release that answers.
    pub release: ReleaseId,
    /// The input, as it was when the run began.
    pub input: Fingerprint,
    /// How answers are written.
    pub output: Format,
    /// Whether rows that can not be answered are written with the reason.
    pub skip_bad: bool,
    /// Rows that are in the output.
    pub rows: u64,
    /// Of those, rows that could not be answered.
    pub bad: u64,
    /// Where the next row of the input begins.
    pub position: Position,
    /// Bytes of the output that hold those rows.
    pub output_bytes: u64,
    /// Whether there are no more.
    pub done: bool,
}

/// Where the progress of an output is kept.
pub fn progress_file(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".progress");
    PathBuf::from(name)
}

impl Progress {
    /// Where a run stands that has not begun, or the one it goes on with.
    pub(super) fn begin(job: &Job) -> Result<Self, BatchError> {
        let fresh = Self {
            format: FORMAT,
            task: job.task.clone(),
            release: job.release.clone(),
            input: job.input,
            output: job.format,
            skip_bad: job.skip_bad,
            rows: 0,
            bad: 0,
            position: Position::default(),
            output_bytes: 0,
            done: false,
        };
        let path = progress_file(&job.output);
        let refuse = |problem: String| Err(BatchError::Resume(problem));
        let found = match std::fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(BatchError::file("read", &path)(e)),
        };
        let Some(found) = found else {
            if job.output.exists() {
                return refuse(format!("{} is there already, and no run left it", job.output.display()));
            }
            return Ok(fresh);
        };
        if !job.resume {
            return refuse(format!(
                "{} is of an earlier run: go on with --resume, or delete both files",
                path.display()
            ));
        }
        let found: Self = serde_json::from_slice(&found)
            .map_err(|e| BatchError::Resume(format!("{} can not be read: {e}", path.display())))?;
        let differs = [
            ("the progress file is of another release of this program", found.format != FORMAT),
            ("it was begun for another task", found.task != job.task),
            ("the input was changed since", found.input != job.input),
            ("its output is of another format", found.output != job.format),
            ("it was begun with another --skip-bad", found.skip_bad != job.skip_bad),
        ];
        if let Some((problem, _)) = differs.iter().find(|(_, differs)| *differs) {
            return refuse(format!("the run can not go on: {problem}"));
        }
        if found.release != job.release {
            return refuse(format!(
                "the run can not go on: {} answered until now, not {}",
                found.release, job.release
            ));
        }
        Ok(found)
    }

    /// Makes it durable; the state before it stands until then.
    pub(super) fn save(&self, output: &Path) -> Result<(), BatchError> {
        let path = progress_file(output);
        let mut new = path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            Some(_) | None => Path::new("."),
        };
        let write = || {
            let mut text = serde_json::to_vec(self)?;
            text.push(b'\n');
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(BatchError::file("write", &path))
    }
}
