//! The child process that trains: no environment but what ties it to this process, no keys, no database, limits it sets on
//! itself, a wall limit.
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use dunlin_learn::job::ERROR_FILE;
use rustix::process::{Pid, Signal, kill_process, setpriority_process};

use super::steps::StepError;
use crate::config::Training;

/// Worker processes give way to everything else.
const NICE: i32 = 10;
/// File that holds the worker's process id, so that a restarted controller ends what is left of it.
const PID_FILE: &str = "worker.pid";
/// File for what the worker prints.
const LOG_FILE: &str = "worker.log";

/// Runs `train-worker` on a job folder to its end.
pub(super) async fn train(dir: &Path, limits: &Training, wall_ms: u64) -> Result<(), StepError> {
    end_leftover(dir);
    let exe = dunlin_engine::this_program().map_err(StepError::io("find the program of", dir))?;
    let log =
        std::fs::File::create(dir.join(LOG_FILE)).map_err(StepError::io("write", &dir.join(LOG_FILE)))?;
    let mut child = tokio::process::Command::new(exe)
        .arg("train-worker")
        .arg(dir)
        .args(["--cpu-s", &limits.cpu_s_max.to_string()])
        .args(["--memory-bytes", &limits.memory_bytes_max.to_string()])
        .env_clear()
        .envs([dunlin_engine::tie()])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .map_err(StepError::io("start a worker in", dir))?;
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        std::fs::write(dir.join(PID_FILE), pid.as_raw_nonzero().to_string())
            .map_err(StepError::io("write", &dir.join(PID_FILE)))?;
        setpriority_process(Some(pid), NICE)
            .map_err(|error| StepError::io("lower the worker in", dir)(error.into()))?;
    }
    let status = match tokio::time::timeout(Duration::from_millis(wall_ms), child.wait()).await {
        Ok(status) => status.map_err(StepError::io("wait for the worker in", dir))?,
        Err(_) => {
            child.kill().await.map_err(StepError::io("end the worker in", dir))?;
            return Err(StepError::passing(format!("the worker was ended after {wall_ms} ms")));
        }
    };
    drop(std::fs::remove_file(dir.join(PID_FILE)));
    if status.success() {
        return Ok(());
    }
    Err(failure(dir, &status.to_string()))
}

/// What the worker says of its failure; without a word of it, how it ended.
fn failure(dir: &Path, status: &str) -> StepError {
    /// More than any message; a hostile file is not read into memory.
    const BYTES_MAX: u64 = 64 * 1024;
    let path = dir.join(ERROR_FILE);
    let small = std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= BYTES_MAX);
    let said = small.then(|| std::fs::read(&path).ok()).flatten();
    let said: Option<dunlin_learn::result::Failure> =
        said.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match said {
        Some(failure) if failure.data => StepError::fatal(failure.message),
        Some(failure) => StepError::passing(failure.message),
        None => StepError::passing(format!("the worker ended with {status}")),
    }
}

/// Ends a worker that a killed controller left behind in this folder.
fn end_leftover(dir: &Path) {
    let Ok(text) = std::fs::read_to_string(dir.join(PID_FILE)) else { return };
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return };
    // The number may belong to another process by now: its command line must name the verb and the folder.
    let line = std::fs::read(format!("/proc/{text}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    let ours = words.any(|word| word == b"train-worker")
        && words.any(|word| word == dir.as_os_str().as_encoded_bytes());
    if ours && let Err(error) = kill_process(pid, Signal::KILL) {
        tracing::debug!(%error, "a worker that was left behind had ended");
    }
}
