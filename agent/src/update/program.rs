//! The agent's own program: how one is started in the installed one's place, how it tests itself, and who ends it when it
//! hangs.
//!
//! Every start begins with the installed program. It looks into the update journal, and where that names another one it
//! counts the start, and becomes that one ([`launch`]). Who was started so starts nobody: to leave for another program it
//! ends in order and becomes the installed one again ([`start_anew`]). So there is no circle that is not counted.
use std::ffi::OsString;
use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use dunlin_engine::{Model, this_program};
use dunlin_protocol::{Blob, Digest, ReasonCode};
use dunlin_trust::{RepoKind, TrustedRepo};
use dunlin_update::{Fault, Journal, Launch, ProgramStep};
use rustix::process::{Pid, Resource, Rlimit, Signal, getppid, kill_process, prlimit};

use super::fetch::chain;
use super::marker::{KERNEL_BOOT, Marker};
use super::store::Store;
use super::twin::Twin;
use crate::clock;
use crate::config::{Launching, Settings};
use crate::identity::Identity;

/// The hidden verb under which the installed program watches over one on trial.
pub const WATCH: &str = "watch-trial";
/// The verb under which a program tests itself.
pub const SELF_TEST: &str = "self-test";
/// What a program prints that finds itself sound: one that knows no such test may end well at anything.
pub const SOUND: &str = "dunlin-agent: sound";

/// The hidden verb before the others with which a program is started in the installed one's place: digest of its file, and path of
/// the installed one, follow it.
const STARTED: &str = "started-by";
/// A program on trial leaves by itself when its time is over, which begins when it has started. One that is still there so long
/// after its time, milliseconds, hangs: no board takes longer for a start and an end in order.
const HANGS_AFTER_MS: u64 = 30_000;
/// How often the watch looks whether what it watches still runs.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Address space of a test: the program, libraries and a model of one operator.
const TEST_BYTES: u64 = 1024 * 1024 * 1024;
/// Processor time of a test, seconds.
const TEST_CPU_S: u64 = 60;
/// Longest wait for a test; a busy board may give it a tenth of a core.
const TEST: Duration = Duration::from_secs(120);
/// Longest wait for an agent that is ending, as its spool is waited for.
const ENDING: Duration = Duration::from_secs(5);
/// Longest word of a test that is kept, bytes.
const TEST_SAYS_MAX: u64 = 64 * 1024;
/// How often is looked whether another process has ended.
const TEST_POLL: Duration = Duration::from_millis(20);

/// The smallest model: `y = Relu(x)` of two values, ONNX of operator set 13.
const MODEL: &[u8] = b"\x08\x08:@\n\x0f\n\x01x\x12\x01y\x1a\x01n\"\x04Relu\x12\x01g\
Z\x14\n\x01x\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x02\
b\x14\n\x01y\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x02B\x02\x10\r";

/// The command line without [`STARTED`] and what follows it, and what that was; `None` if the installed program runs itself.
fn command_line() -> (Vec<OsString>, Option<(Digest, PathBuf)>) {
    split(env::args_os().collect())
}

fn split(mut words: Vec<OsString>) -> (Vec<OsString>, Option<(Digest, PathBuf)>) {
    let started = match words.get(1..4) {
        Some([verb, digest, installed]) if verb == STARTED => {
            digest.to_str().and_then(|digest| digest.parse().ok()).map(|digest| (digest, installed.into()))
        }
        Some(_) | None => None,
    };
    if started.is_some() {
        words.drain(1..4);
    }
    (words, started)
}

/// The command line as it is without updates.
pub fn words() -> Vec<OsString> {
    command_line().0
}

/// Digest of the program that runs, if it is not the installed one.
pub(super) fn runs() -> Option<Digest> {
    command_line().1.map(|(digest, _)| digest)
}

/// Becomes the program that is to run. Returns if that is this one.
pub(crate) fn launch(settings: &Launching) {
    if runs().is_some() {
        return;
    }
    // A second agent leaves the journal of the one that runs alone; one that is ending is waited for.
    let began = Instant::now();
    while UnixStream::connect(settings.socket_file()).is_ok() {
        if began.elapsed() >= ENDING {
            return;
        }
        thread::sleep(TEST_POLL);
    }
    let hold = settings.inhibit_file.as_deref().is_some_and(Path::exists);
    if let Err(error) = launch_from(&settings.state_dir.join("slots"), hold) {
        tracing::warn!(%error, "the installed program runs, whatever the journal says");
    }
}

fn launch_from(dir: &Path, hold: bool) -> io::Result<()> {
    let Some((mut twin, mut journal)) = read_journal(dir)? else { return Ok(()) };
    let boot = fs::read_to_string(KERNEL_BOOT).unwrap_or_else(|_| "unknown".to_owned());
    let tried = matches!(journal.program().step(), ProgramStep::Trying { boot, .. } if !boot.is_empty());
    loop {
        let before = journal.encode();
        let launch = journal.launch(boot.trim(), crate::VERSION, hold, clock::now());
        let counted = journal.encode();
        if counted != before {
            twin.save(&counted)?;
            if tried {
                // That end is laid to the program; the models are not to blame too.
                Marker::settled(dir)?;
            }
        }
        let Some(launch) = launch else { return Ok(()) };
        let (reason, detail) = become_program(dir, &launch);
        tracing::error!(release = %launch.program.release, %reason, detail, "a program could not be started");
        journal.launch_failed(&launch, reason, &detail, clock::now());
        twin.save(&journal.encode())?;
    }
}

/// Why this process did not become the program.
#[allow(
    clippy::zombie_processes,
    reason = "the watch is a child of what this process becomes, and ends with it"
)]
fn become_program(dir: &Path, launch: &Launch) -> (ReasonCode, String) {
    let file = launch.program.file;
    let tried = || -> io::Result<io::Error> {
        let store = Store::open(&dir.join("blobs"), 0)?;
        if !store.verify(&file).map_err(io::Error::other)? {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // A power cut may have taken what the test had set.
        make_executable(&store.path(&file.digest))?;
        if launch.trial {
            let me = std::process::id().to_string();
            quiet(Command::new(this_program()?).arg(WATCH).arg(me).arg(dir)).spawn()?;
        }
        tracing::info!(release = %launch.program.release, trial = launch.trial, "becoming another program");
        let mut program = Command::new(store.path(&file.digest));
        // It is known by the name of the agent, not of its file.
        program.arg0("dunlin-agent").arg(STARTED).arg(file.digest.to_string()).arg(env::current_exe()?);
        Ok(program.args(words().into_iter().skip(1)).exec())
    };
    match tried() {
        Ok(error) => (ReasonCode::ProofCrashed, chain(&error)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            (ReasonCode::DigestMismatch, "its file is damaged or gone".to_owned())
        }
        Err(error) => (ReasonCode::ProofCrashed, chain(&error)),
    }
}

fn make_executable(program: &Path) -> io::Result<()> {
    fs::set_permissions(program, fs::Permissions::from_mode(0o700))
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Becomes the installed program, which starts whatever is to run. Returns why it could not.
pub(crate) fn start_anew() -> io::Error {
    let (words, started) = command_line();
    match started.map_or_else(env::current_exe, |(_, installed)| Ok(installed)) {
        Ok(installed) => Command::new(installed).args(words.into_iter().skip(1)).exec(),
        Err(error) => error,
    }
}

/// The journal in the folder of the slots.
fn read_journal(dir: &Path) -> io::Result<Option<(Twin, Journal)>> {
    let (twin, found) = Twin::open(dir, "journal")?;
    let journal = found.body.and_then(|bytes| Journal::decode(&bytes).ok());
    Ok(journal.map(|journal| (twin, journal)))
}

/// What the hidden verb [`WATCH`] does, in a child of a program on trial, with its process and the folder of the slots: when
/// its time is long over, it is left, and killed.
pub fn watch() -> ExitCode {
    let mut words = env::args_os().skip(2);
    let tried = words.next().and_then(|word| Pid::from_raw(word.to_str()?.parse().ok()?));
    let (Some(tried), Some(dir)) = (tried, words.next().map(PathBuf::from)) else { return ExitCode::from(2) };
    match watch_over(tried, &dir) {
        Ok(()) => ExitCode::SUCCESS,
        // One that can not be noted as left is killed all the same: its next start counts.
        Err(_) if getppid() == Some(tried) && kill_process(tried, Signal::KILL).is_ok() => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn watch_over(tried: Pid, dir: &Path) -> io::Result<()> {
    let Ok(Some((_, journal))) = read_journal(dir) else { return Ok(()) };
    let ProgramStep::Trying { program, .. } = journal.program().step() else { return Ok(()) };
    let file = program.file.digest;
    let time = Duration::from_millis(program.reach_ms.saturating_add(HANGS_AFTER_MS));
    let (exe, name) = (format!("/proc/{}/exe", tried.as_raw_nonzero()), file.to_string());
    let runs = || {
        let path = fs::read_link(&exe).unwrap_or_default();
        path.file_name().is_some_and(|found| found.to_string_lossy().starts_with(&name))
    };
    let (began, mut became) = (Instant::now(), false);
    while began.elapsed() < time {
        let runs = runs();
        // It has ended, or become another program again.
        if getppid() != Some(tried) || (became && !runs) {
            return Ok(());
        }
        became |= runs;
        thread::sleep(WATCH_EVERY);
    }
    let Some((mut twin, mut journal)) = read_journal(dir)? else { return Ok(()) };
    if !journal.overdue(file, clock::now()) {
        return Ok(());
    }
    twin.save(&journal.encode())?;
    Marker::settled(dir)?;
    if getppid() == Some(tried) {
        kill_process(tried, Signal::KILL)?;
    }
    Ok(())
}

/// Whether a program may be fetched at all: there is room, and it could be started afterwards.
pub(super) fn admits(store: &Store, file: &Blob) -> Result<(), Fault> {
    let unknown = |error: io::Error| Fault::Wrong { reason: ReasonCode::FetchFailed, detail: chain(&error) };
    if !store.is_executable().map_err(unknown)? {
        let detail = "the state folder is on a file system that is mounted with noexec".to_owned();
        return Err(Fault::Wrong { reason: ReasonCode::NotExecutable, detail });
    }
    let room = store.room(&[*file]).map_err(unknown)?;
    if room.enough() {
        return Ok(());
    }
    let detail = format!("{} bytes needed, {} free", room.missing, room.free);
    Err(Fault::Passing { reason: ReasonCode::NoSpace, detail, retry_after_ms: None })
}

/// Has a program in the store test itself in a child, with the settings and the state that it would have. Blocks until the
/// child has ended.
pub(super) fn prove(store: &Store, file: &Blob) -> Result<(), (ReasonCode, String)> {
    match store.verify(file) {
        Ok(true) => {}
        Ok(false) | Err(_) => return Err((ReasonCode::DigestMismatch, "it read back damaged".to_owned())),
    }
    let path = store.path(&file.digest);
    let run = || -> io::Result<(Option<bool>, String)> {
        make_executable(&path)?;
        // Only the handle of what it says is kept.
        let says = path.with_extension("test");
        let mut out = fs::File::options().read(true).write(true).create(true).truncate(true).open(&says)?;
        fs::remove_file(&says)?;
        let ended = run_test(&path, &out)?;
        out.rewind()?;
        let mut said = Vec::new();
        out.take(TEST_SAYS_MAX).read_to_end(&mut said)?;
        Ok((ended, String::from_utf8_lossy(&said).into_owned()))
    };
    let (ended, said) = run().map_err(|error| (ReasonCode::ProofCrashed, chain(&error)))?;
    let last = || said.lines().last().unwrap_or("it said nothing").to_owned();
    match ended {
        Some(true) if said.lines().any(|line| line == SOUND) => Ok(()),
        Some(_) => Err((ReasonCode::ProofCrashed, last())),
        None => Err((ReasonCode::ProofTimeout, last())),
    }
}

/// Runs the test of a program, which says what it has to say into `out`. Whether it ended well; `None` if its time was over.
fn run_test(path: &Path, out: &fs::File) -> io::Result<Option<bool>> {
    // As it will run, but for the verb.
    let verb = |word: OsString| if word == "run" { SELF_TEST.into() } else { word };
    let mut command = Command::new(path);
    command.args(words().into_iter().skip(1).map(verb));
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out.try_clone()?);
    let began = Instant::now();
    let mut child = loop {
        match command.spawn() {
            // Another child that was being started while the file was written holds it for a moment.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && began.elapsed() < TEST => {
                thread::sleep(TEST_POLL);
            }
            spawned => break spawned?,
        }
    };
    let limit = |resource, n| {
        prlimit(Some(Pid::from_child(&child)), resource, Rlimit { current: Some(n), maximum: Some(n) })
    };
    let limited = limit(Resource::As, TEST_BYTES)
        .and_then(|_| limit(Resource::Cpu, TEST_CPU_S))
        .and_then(|_| limit(Resource::Fsize, TEST_SAYS_MAX));
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if limited.is_err() || began.elapsed() >= TEST {
            break;
        }
        thread::sleep(TEST_POLL);
    }
    child.kill()?;
    child.wait()?;
    limited.map(|_| None).map_err(io::Error::from)
}

/// Whether this program could be this device's agent: it reads the settings, the identity holds against its pins, the pinned
/// roots verify, the journal can be read, and the engine runs a model. Nothing is written.
///
/// # Errors
/// What is wrong, for people.
pub(crate) fn self_test(settings: &Settings) -> Result<(), String> {
    let identity = Identity::load(&settings.identity_dir()).map_err(|e| chain(&e))?;
    TrustedRepo::pinned(RepoKind::Image, &identity.image_root).map_err(|e| chain(&e))?;
    TrustedRepo::pinned(RepoKind::Director, &identity.director_root).map_err(|e| chain(&e))?;
    let (_, found) = Twin::open(&settings.state_dir.join("slots"), "journal").map_err(|e| chain(&e))?;
    found.body.map(|bytes| Journal::decode(&bytes)).transpose().map_err(|e| chain(&e))?;
    let model = Model::load(MODEL, None).map_err(|e| chain(&e))?;
    let answer = model.run_f32(&[-1.0, 2.0], 1).map_err(|e| chain(&e))?;
    if answer == [0.0, 2.0] { Ok(()) } else { Err(format!("the engine answers {answer:?}")) }
}

#[cfg(test)]
mod tests;
