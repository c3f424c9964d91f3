//! Questions to an agent's API.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// GET, or POST if there is something to send; an answer that is no success, or comes after `limit`, is an error.
pub(super) fn ask(api: SocketAddr, path: &str, body: Option<&Value>, limit: Duration) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&api, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let (method, body) = body.map_or(("GET", String::new()), |body| ("POST", body.to_string()));
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: board\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer).context("an answer that is no text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer that was cut off")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{path}: {} {body}", head.lines().next().unwrap_or_default());
    }
    serde_json::from_str(body).with_context(|| format!("{path} answered {body:?}"))
}
