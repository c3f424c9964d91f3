use reqwest::header::CONTENT_TYPE;

use crate::update::retry_after_ms;

/// An answer of the controller, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The wait it asks for, milliseconds.
    pub(crate) retry_after_ms: Option<u64>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as text for people, cut.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().filter(|c| !c.is_control()).take(500).collect()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum ExchangeError {
    /// No connection, or it broke; also when the server does not take the certificate.
    Link(reqwest::Error),
    /// The answer is longer than it may be.
    TooLong,
}

/// Posts JSON and reads an answer of at most `bytes_max` bytes.
pub(crate) async fn post_json(
    client: &reqwest::Client,
    url: &str,
    body: Vec<u8>,
    bytes_max: usize,
) -> Result<Answer, ExchangeError> {
    let sent = client.post(url).header(CONTENT_TYPE, "application/json").body(body).send().await;
    let mut response = sent.map_err(ExchangeError::Link)?;
    let retry_after_ms = retry_after_ms(response.headers());
    let mut answer = Answer { status: response.status().as_u16(), retry_after_ms, body: Vec::new() };
    while let Some(chunk) = response.chunk().await.map_err(ExchangeError::Link)? {
        answer.body.extend_from_slice(&chunk);
        if answer.body.len() > bytes_max {
            return Err(ExchangeError::TooLong);
        }
    }
    Ok(answer)
}
