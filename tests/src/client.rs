//! A client of the inference API with nothing between it and the socket: one kept connection, one write for each
//! request.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Longest wait for an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// Largest answer read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
    /// What one read brings.
    chunk: Box<[u8]>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nothing listens there.
    pub fn connect(api: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(api).with_context(|| format!("connecting to {api}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self { stream, answer: Vec::new(), chunk: vec![0; 16 * 1024].into() })
    }

    /// Sends a whole request and reads its answer, which must be a success.
    ///
    /// # Errors
    /// The connection broke, or the answer is none of success.
    pub fn ask(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.stream.write_all(request)?;
        self.answer.clear();
        let mut whole = None;
        while whole.is_none_or(|whole| self.answer.len() < whole) {
            let n = self.stream.read(&mut self.chunk)?;
            ensure!(
                n > 0 && self.answer.len() + n <= ANSWER_BYTES_MAX,
                "the connection broke in the middle of an answer"
            );
            self.answer.extend_from_slice(&self.chunk[..n]);
            if whole.is_none() {
                whole = length(&self.answer)?;
            }
        }
        ensure!(self.answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&self.answer));
        Ok(&self.answer)
    }
}

/// Length of the whole answer, once its head is there.
fn length(answer: &[u8]) -> Result<Option<usize>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..end])?;
    let value = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let (_, value) = value.context("an answer without a length")?;
    Ok(Some(end + 4 + value.trim().parse::<usize>()?))
}

fn head(task: &str, json: usize, body: usize, binary: bool) -> Vec<u8> {
    let kind = if binary {
        format!("Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {json}\r\n")
    } else {
        "Content-Type: application/json\r\n".into()
    };
    format!(
        "POST /v2/models/{task}/infer HTTP/1.1\r\nHost: localhost\r\n{kind}Content-Length: {body}\r\n\r\n"
    )
    .into_bytes()
}

/// One row as JSON, answered as JSON.
pub fn json_request(task: &str, shape: &[usize], row: &[f32]) -> Vec<u8> {
    let body =
        serde_json::json!({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": row}]})
            .to_string();
    let mut request = head(task, 0, body.len(), false);
    request.extend_from_slice(body.as_bytes());
    request
}

/// One row as a binary tensor, answered as one.
pub fn binary_request(task: &str, shape: &[usize], row: &[f32]) -> Vec<u8> {
    let text = serde_json::json!({
        "parameters": {"binary_data_output": true},
        "inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": row.len() * 4}}],
    })
    .to_string();
    let mut request = head(task, text.len(), text.len() + row.len() * 4, true);
    request.extend_from_slice(text.as_bytes());
    request.extend(row.iter().flat_map(|value| value.to_le_bytes()));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_head_says() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\ncontent-len").unwrap(), None);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(length(answer).unwrap(), Some(answer.len()));
        assert!(length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
