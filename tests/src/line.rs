//! What passes between a device and the controller inside TLS, byte for byte.
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dunlin_agent::identity::Identity;
use dunlin_agent::update::check_path;
use dunlin_protocol::{Assignment, Check, RepoFiles, RepoVersions, TaskId, cbor};
use dunlin_trust::{roles_digest, task_of, write};
use rustls::{ClientConnection, StreamOwned};

use crate::agent::Agent;

/// Longest wait for an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// Largest answer read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Versions of both repositories.
#[derive(Debug, Clone, Default)]
pub struct Versions {
    /// Of the image repository.
    pub image: RepoVersions,
    /// Of the device's director repository.
    pub director: RepoVersions,
    /// Of the roles of single tasks.
    pub roles: BTreeMap<String, u64>,
    /// The tasks that the device is assigned.
    pub tasks: BTreeSet<TaskId>,
}

/// A connection to the controller with the device's certificate, which counts what passes inside TLS.
#[derive(Debug)]
pub struct Line {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// A request as the agent's HTTP client writes it, with `PATH` for the path.
    request: String,
}

impl Line {
    /// Connects as this device.
    pub fn open(api: SocketAddr, agent: &Agent) -> Result<Self> {
        let identity = Identity::load(&agent.folder.join("state/identity"))?;
        let tcp = TcpStream::connect(api)?;
        tcp.set_read_timeout(Some(SILENCE))?;
        let connection =
            ClientConnection::new(Arc::new(identity.tls()?), rustls::pki_types::ServerName::from(api.ip()))?;
        Ok(Self { stream: StreamOwned::new(connection, tcp), request: request(api)? })
    }

    /// Content of an answer, and bytes of request and answer.
    pub fn get(&mut self, path: &str) -> Result<(Vec<u8>, usize)> {
        let request = self.request.replace("PATH", path);
        self.stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let end = loop {
            self.more(&mut answer)?;
            if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
        ensure!(
            head.starts_with("http/1.1 200 "),
            "{path}: {head}{}",
            String::from_utf8_lossy(&answer[end..])
        );
        let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let content = if let Some(length) = value("content-length:") {
            let whole = end + length.parse::<usize>()?;
            while answer.len() < whole {
                self.more(&mut answer)?;
            }
            answer[end..].to_vec()
        } else {
            ensure!(value("transfer-encoding:") == Some("chunked"), "{path}: an answer without an end");
            let mut chunks = Chunks { at: end, content: Vec::new() };
            while !chunks.read(&answer)? {
                self.more(&mut answer)?;
            }
            chunks.content
        };
        Ok((content, request.len() + answer.len()))
    }

    fn more(&mut self, answer: &mut Vec<u8>) -> Result<()> {
        let mut chunk = [0; 16 * 1024];
        let n = self.stream.read(&mut chunk)?;
        ensure!(n > 0 && answer.len() + n <= ANSWER_BYTES_MAX, "the controller's answer broke off");
        answer.extend_from_slice(&chunk[..n]);
        Ok(())
    }

    /// What a device that holds `held` gets to know, and at what cost.
    fn ask(&mut self, device: &str, held: &Versions) -> Result<(Check, usize)> {
        let roles = roles_digest(&held.roles, &held.tasks);
        let path = check_path(&device.parse()?, held.image, held.director, &roles);
        let (content, bytes) = self.get(&path)?;
        Ok((cbor::decode(&content, ANSWER_BYTES_MAX)?, bytes))
    }

    /// Versions that the device holds afterwards, and what the check cost.
    pub fn check(&mut self, device: &str, held: Versions) -> Result<(Versions, usize)> {
        let (check, bytes) = self.ask(device, &held)?;
        let mut roles = held.roles;
        for (role, file) in check.image.delegated.iter().filter(|(role, _)| task_of(role).is_some()) {
            let version = write::signed_value(file.as_slice())?["version"].as_u64().context("a version")?;
            roles.insert(role.clone(), version);
        }
        let tasks = match &check.director.targets {
            Some(file) => {
                let assignment: Assignment =
                    serde_json::from_value(write::signed_value(file.as_slice())?["custom"].take())?;
                assignment.tasks.into_iter().map(|task| task.task).collect()
            }
            None => held.tasks,
        };
        let (image, director) = (newer(held.image, &check.image)?, newer(held.director, &check.director)?);
        Ok((Versions { image, director, roles, tasks }, bytes))
    }

    /// All metadata of the image repository.
    pub fn metadata(&mut self, device: &str) -> Result<(RepoFiles, usize)> {
        let (check, bytes) = self.ask(device, &Versions::default())?;
        Ok((check.image, bytes))
    }
}

/// Versions after taking `files` in.
fn newer(held: RepoVersions, files: &RepoFiles) -> Result<RepoVersions> {
    let version = |file: Option<&[u8]>, held: u64| match file {
        Some(file) if !file.is_empty() => write::signed_value(file)?["version"].as_u64().context("a version"),
        _ => Ok(held),
    };
    Ok(RepoVersions {
        root: version(files.roots.last().map(|file| file.as_slice()), held.root)?,
        timestamp: version(Some(files.timestamp.as_slice()), held.timestamp)?,
        snapshot: version(files.snapshot.as_ref().map(|file| file.as_slice()), held.snapshot)?,
        targets: version(files.targets.as_ref().map(|file| file.as_slice()), held.targets)?,
        retrained: version(files.delegated.get("retrained").map(|file| file.as_slice()), held.retrained)?,
    })
}

/// A request as the HTTP library of the agent writes it to `api`, seen by asking a socket of our own.
fn request(api: SocketAddr) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let own = listener.local_addr()?;
    let seen = std::thread::spawn(move || -> Result<String> {
        let (mut stream, _) = listener.accept()?;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        Ok(String::from_utf8(request)?)
    });
    let asking = std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            reqwest::Client::builder()
                .no_proxy()
                .build()?
                .get(format!("http://{own}/PATH"))
                .send()
                .await
                .map(drop)
                .map_err(Into::into)
        })
    });
    asking.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))??;
    let request = seen.join().map_err(|_| anyhow::anyhow!("the listening thread panicked"))??;
    Ok(request.replace("/PATH", "PATH").replace(&own.to_string(), &api.to_string()))
}

/// Chunked content (RFC 9112 §7.1) as far as it has come.
struct Chunks {
    at: usize,
    content: Vec<u8>,
}

impl Chunks {
    /// Takes whole chunks; true after the last one.
    fn read(&mut self, answer: &[u8]) -> Result<bool> {
        loop {
            let rest = &answer[self.at..];
            let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(false) };
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?.trim(), 16)?;
            let Some(chunk) = rest.get(line + 2..line + 2 + size + 2) else { return Ok(false) };
            self.content.extend_from_slice(&chunk[..size]);
            self.at += line + 2 + size + 2;
            if size == 0 {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together_however_they_come() {
        let answer = b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        let mut chunks = Chunks { at: 0, content: Vec::new() };
        let ends: Vec<bool> = (0..=answer.len()).map(|n| chunks.read(&answer[..n]).unwrap()).collect();
        assert!(chunks.content == b"abcd" && ends.last() == Some(&true) && !ends[answer.len() - 1]);
    }

    #[test]
    fn a_request_asks_for_the_path_at_the_host() {
        // Another test of this process may have installed one.
        drop(rustls::crypto::ring::default_provider().install_default());
        let text = request("127.0.0.1:8443".parse().unwrap()).unwrap();
        assert!(
            text.starts_with("GET PATH HTTP/1.1\r\n")
                && text.contains("host: 127.0.0.1:8443\r\n")
                && text.ends_with("\r\n\r\n"),
            "{text}"
        );
    }
}
