//! As much HTTP and percent-encoding as a client of static files needs.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::client::Outcome;

/// Longest silence of a server.
const SILENCE: Duration = Duration::from_secs(20);
/// Longest head of an answer.
const HEAD_BYTES_MAX: u64 = 16 * 1024;

/// HTTP/1.0, so that the end of the answer is the end of the connection; `None` for 403 and 404. A body over `max`
/// bytes is refused unread.
pub(crate) fn get(url: &str, max: u64) -> Outcome<Option<Vec<u8>>> {
    let (host, path) =
        url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or("not a http url")?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(SILENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(HEAD_BYTES_MAX.saturating_add(max)).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or("not an HTTP answer")?;
    let body = answer.split_off(end + 4);
    if body.len() as u64 > max {
        return Err(format!("{url}: the answer is over {max} bytes").into());
    }
    let status = String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned();
    match status.as_str() {
        "200" => Ok(Some(body)),
        "403" | "404" => Ok(None),
        other => Err(format!("{url}: HTTP status {other}").into()),
    }
}

/// Percent-encoding of all but unreserved characters (RFC 3986 §2.3).
pub(crate) fn quote(text: &str) -> String {
    let quoted = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(quoted).collect()
}

pub(crate) fn unquote(text: &str) -> Outcome<String> {
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
