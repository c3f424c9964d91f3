use std::io::{Error, ErrorKind};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Settings;

/// Largest answer, bytes; a status with a hundred tasks takes a tenth of it.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A rollback is answered when the previous release serves again, which takes no load: it is warm or proved.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the running agent's local API, at the address it wrote down. HTTP/1.0, so that the answer ends where the
/// connection does.
pub(super) async fn request(settings: &Settings, method: &str, path: &str) -> Result<(u16, Vec<u8>), Error> {
    let address = std::fs::read_to_string(settings.api_addr_file())
        .map_err(|e| Error::new(e.kind(), format!("the agent is not running ({})", settings.api_addr_file().display())))?;
    let exchange = async {
        let mut stream = TcpStream::connect(address.trim()).await?;
        let request = format!("{method} {path} HTTP/1.0\r\nhost: {}\r\ncontent-length: 0\r\n\r\n", address.trim());
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(Error::from(ErrorKind::TimedOut)))?;
    let malformed = || Error::new(ErrorKind::InvalidData, "the answer is no HTTP");
    let head_end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(malformed)?;
    let head = std::str::from_utf8(&answer[..head_end]).map_err(|_| malformed())?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((status, answer[head_end + 4..].to_vec()))
}
