//! The running agent of this device, asked by its own command line.

use std::future::Future;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::Settings;
use crate::run::LocalCommand;

/// Largest answer, bytes; a status with a hundred tasks takes a tenth of it.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A rollback is answered when the previous release serves again.
const TIMEOUT: Duration = Duration::from_secs(20);

fn not_running(error: &Error, path: &Path) -> Error {
    Error::new(error.kind(), format!("the agent is not running ({}: {error})", path.display()))
}

async fn in_time<T>(exchange: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(Error::from(ErrorKind::TimedOut)))
}

/// Gives the running agent a command on its control socket.
pub(crate) async fn command(settings: &Settings, command: &LocalCommand) -> Result<Value, Error> {
    let path = settings.socket_file();
    let mut stream = UnixStream::connect(&path).await.map_err(|e| not_running(&e, &path))?;
    let exchange = async {
        let line = serde_json::to_string(command).map_err(Error::other)?;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        serde_json::from_slice(&answer).map_err(Error::other)
    };
    in_time(exchange).await
}

/// The local API of the running agent.
#[derive(Debug, Clone)]
pub struct Local {
    address: String,
    token: Option<String>,
}

/// What it answered.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) status: u16,
    /// How many bytes of the body are JSON, where others follow.
    pub(crate) json_length: Option<usize>,
    pub(crate) body: Vec<u8>,
}

impl Local {
    /// The API at the address that the agent wrote down.
    ///
    /// # Errors
    /// It wrote none: it is not running. Or its token can not be read.
    pub fn find(settings: &Settings) -> Result<Self, Error> {
        let file = settings.api_addr_file();
        let address = std::fs::read_to_string(&file).map_err(|e| not_running(&e, &file))?;
        let token = match &settings.api.token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file)?;
                Some(text.lines().next().unwrap_or_default().trim().to_owned())
            }
            None => None,
        };
        Ok(Self { address: address.trim().to_owned(), token })
    }

    /// One request. HTTP/1.0, so that the answer ends where the connection does. `headers` are whole lines.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Result<Asked, Error> {
        let exchange = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            let token = self.token.as_ref().map(|token| format!("authorization: Bearer {token}\r\n"));
            let head = format!(
                "{method} {path} HTTP/1.0\r\nhost: {}\r\ncontent-length: {}\r\n{}{headers}\r\n",
                self.address,
                body.len(),
                token.unwrap_or_default()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body).await?;
            let mut answer = Vec::new();
            stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
            Ok(answer)
        };
        let answer = in_time(exchange).await?;
        let malformed = || Error::new(ErrorKind::InvalidData, "the answer is no HTTP");
        let head_end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(malformed)?;
        let head = std::str::from_utf8(&answer[..head_end]).map_err(|_| malformed())?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
        let length = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("inference-header-content-length").then(|| value.trim().parse().ok())?
        };
        let json_length = head.lines().find_map(length);
        Ok(Asked { status, json_length, body: answer[head_end + 4..].to_vec() })
    }
}
