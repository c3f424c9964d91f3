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
pub(super) async fn command(settings: &Settings, command: &LocalCommand) -> Result<Value, Error> {
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

/// Asks the running agent's local API, at the address it wrote down. HTTP/1.0, so that the answer ends where the
/// connection does.
pub(super) async fn get(settings: &Settings, path: &str) -> Result<(u16, Vec<u8>), Error> {
    let file = settings.api_addr_file();
    let address = std::fs::read_to_string(&file).map_err(|e| not_running(&e, &file))?;
    let exchange = async {
        let mut stream = TcpStream::connect(address.trim()).await?;
        let token = match &settings.api.token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file)?;
                format!("authorization: Bearer {}\r\n", text.lines().next().unwrap_or_default().trim())
            }
            None => String::new(),
        };
        let request = format!("GET {path} HTTP/1.0\r\nhost: {}\r\n{token}\r\n", address.trim());
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = in_time(exchange).await?;
    let malformed = || Error::new(ErrorKind::InvalidData, "the answer is no HTTP");
    let head_end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(malformed)?;
    let head = std::str::from_utf8(&answer[..head_end]).map_err(|_| malformed())?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((status, answer[head_end + 4..].to_vec()))
}
