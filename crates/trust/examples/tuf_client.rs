//! A TUF client that fetches file by file, with the command line of tuf-conformance's `CLIENT-CLI.md`:
//!
//! ```sh
//! cargo build -p dunlin-trust --example tuf_client
//! pytest tuf_conformance --entrypoint target/debug/examples/tuf_client
//! ```
//!
//! It shows how the single steps of [`TrustedRepo`] are driven. It keeps no floors record and writes in place,
//! so it is no model for a device.
#![allow(clippy::disallowed_methods, reason = "a client has files, sockets and a clock; the crate has none")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use dunlin_protocol::{Bytes, Now, RepoVersions};
use dunlin_trust::{Lookup, ROOTS_MAX, RepoKind, StoredFiles, TrustedRepo};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Arguments {
    metadata_dir: PathBuf,
    metadata_url: String,
    targets: Vec<String>,
    target_base_url: String,
    target_dir: PathBuf,
    verb: Vec<String>,
}

fn run() -> Outcome<()> {
    let mut arguments = Arguments::default();
    let mut rest = env::args().skip(1);
    while let Some(word) = rest.next() {
        let mut value = || rest.next().ok_or("an option lacks its value");
        match word.as_str() {
            "--metadata-dir" => arguments.metadata_dir = value()?.into(),
            "--metadata-url" => arguments.metadata_url = value()?.trim_end_matches('/').to_owned(),
            "--target-name" => arguments.targets.push(value()?),
            "--target-base-url" => arguments.target_base_url = value()?.trim_end_matches('/').to_owned(),
            "--target-dir" => arguments.target_dir = value()?.into(),
            _ => arguments.verb.push(word),
        }
    }
    let verb: Vec<&str> = arguments.verb.iter().map(String::as_str).collect();
    match verb[..] {
        ["init", root] => {
            fs::copy(root, arguments.metadata_dir.join("root.json"))?;
            Ok(())
        }
        ["refresh"] => Client::open(arguments)?.refresh(),
        ["download"] => {
            let mut client = Client::open(arguments)?;
            client.refresh()?;
            let names = std::mem::take(&mut client.arguments.targets);
            names.iter().try_for_each(|name| client.download(name))
        }
        _ => Err("usage: [options] init ROOT | refresh | download".into()),
    }
}

struct Client {
    arguments: Arguments,
    repo: TrustedRepo,
    now: Now,
}

impl Client {
    fn open(arguments: Arguments) -> Outcome<Self> {
        let mut stored = StoredFiles::default();
        for entry in fs::read_dir(&arguments.metadata_dir)? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let bytes = Bytes(fs::read(&path)?);
            match name {
                "root" => stored.root = bytes,
                "timestamp" => stored.timestamp = Some(bytes),
                "snapshot" => stored.snapshot = Some(bytes),
                "targets" => stored.targets = Some(bytes),
                role => drop(stored.delegated.insert(unquote(role)?, bytes)),
            }
        }
        let repo = TrustedRepo::restore(RepoKind::Image, &stored, &RepoVersions::default())?;
        let wall_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        Ok(Self { arguments, repo, now: Now { mono_ms: 0, wall_ms: Some(wall_ms) } })
    }

    /// §5.3–5.6.
    fn refresh(&mut self) -> Outcome<()> {
        let url = self.arguments.metadata_url.clone();
        for _ in 0..ROOTS_MAX {
            let Some(root) = get(&format!("{url}/{}.root.json", self.repo.versions().root + 1))? else {
                break;
            };
            self.repo.step_root(&root)?;
            self.save("root", &root)?;
        }
        self.repo.check_root(self.now)?;
        let timestamp = get(&format!("{url}/timestamp.json"))?.ok_or("the timestamp is missing")?;
        self.repo.step_timestamp(&timestamp, self.now)?;
        self.save("timestamp", self.repo.stored().timestamp.unwrap_or_default().as_slice())?;
        if let Some(version) = self.repo.snapshot_wanted() {
            let snapshot = self.metadata("snapshot", version)?;
            self.repo.step_snapshot(&snapshot, self.now)?;
            self.save("snapshot", &snapshot)?;
        }
        self.repo.check_snapshot(self.now)?;
        if let Some(version) = self.repo.targets_wanted() {
            let targets = self.metadata("targets", version)?;
            self.repo.step_targets(&targets, self.now)?;
            self.save("targets", &targets)?;
        }
        Ok(self.repo.check_targets(self.now)?)
    }

    /// §5.6.7 and §5.7: looks for the target, fetching delegated roles as the search asks for them.
    fn download(&mut self, name: &str) -> Outcome<()> {
        loop {
            let (delegator, role, version) = match self.repo.lookup(name) {
                Lookup::Absent => return Err(format!("no trusted role names {name}").into()),
                Lookup::Found { .. } => return self.fetch_target(name),
                Lookup::Needs { delegator, role, version } => {
                    (delegator.to_owned(), role.to_owned(), version)
                }
            };
            let held = self.repo.stored().delegated.remove(&role);
            let held = held.is_some_and(|held| {
                self.repo.step_delegated(&delegator, &role, held.as_slice(), self.now).is_ok()
            });
            if !held {
                let bytes = self.metadata(&role, version)?;
                self.repo.step_delegated(&delegator, &role, &bytes, self.now)?;
                self.save(&role, &bytes)?;
            }
        }
    }

    fn fetch_target(&self, name: &str) -> Outcome<()> {
        let Lookup::Found { file, .. } = self.repo.lookup(name) else {
            return Err("the target is gone".into());
        };
        let path = self.arguments.target_dir.join(quote(name));
        if fs::read(&path).is_ok_and(|held| file.matches(&held).is_ok()) {
            return Ok(());
        }
        let digest = file.hashes.values().next().ok_or("the target has no digest")?;
        let (folder, base) =
            name.rsplit_once('/').map_or((String::new(), name), |(a, b)| (format!("{a}/"), b));
        let served = if self.repo.root().consistent_snapshot {
            format!("{folder}{digest}.{base}")
        } else {
            name.to_owned()
        };
        let served: Vec<String> = served.split('/').map(quote).collect();
        let url = format!("{}/{}", self.arguments.target_base_url, served.join("/"));
        let bytes = get(&url)?.ok_or("the target is missing")?;
        file.matches(&bytes)?;
        Ok(fs::write(path, bytes)?)
    }

    fn metadata(&self, role: &str, version: u64) -> Outcome<Vec<u8>> {
        let role = quote(role);
        let name = if self.repo.root().consistent_snapshot {
            format!("{version}.{role}.json")
        } else {
            format!("{role}.json")
        };
        get(&format!("{}/{name}", self.arguments.metadata_url))?
            .ok_or_else(|| format!("{name} is missing").into())
    }

    fn save(&self, role: &str, bytes: &[u8]) -> Outcome<()> {
        let path: &Path = &self.arguments.metadata_dir;
        Ok(fs::write(path.join(format!("{}.json", quote(role))), bytes)?)
    }
}

/// HTTP/1.0, so that the end of the answer is the end of the connection; `None` for 403 and 404.
fn get(url: &str) -> Outcome<Option<Vec<u8>>> {
    let (host, path) =
        url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or("not a http url")?;
    let mut stream = TcpStream::connect(host)?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or("not an HTTP answer")?;
    let body = answer.split_off(end + 4);
    let status = String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned();
    match status.as_str() {
        "200" => Ok(Some(body)),
        "403" | "404" => Ok(None),
        other => Err(format!("{url}: HTTP status {other}").into()),
    }
}

/// Percent-encoding of all but unreserved characters (RFC 3986 §2.3).
fn quote(text: &str) -> String {
    let quoted = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(quoted).collect()
}

fn unquote(text: &str) -> Outcome<String> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'%' {
            let (hex, tail) = rest.split_at_checked(2).ok_or("a cut escape")?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex)?, 16)?);
            rest = tail;
        } else {
            bytes.push(first);
        }
    }
    Ok(String::from_utf8(bytes)?)
}
