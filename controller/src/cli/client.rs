use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Body, Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::ErrorBody;

/// A request that is not an upload or download ends within this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A controller that is there answers a connect within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The controller said no.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct ApiFailure {
    /// HTTP status.
    pub status: u16,
    /// What went wrong.
    pub error: String,
    /// What to do.
    pub hint: String,
}

/// The one HTTP client of the command line: pinned authority, token, time limits.
#[derive(Debug, Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl ApiClient {
    /// A client for the controller at `base` whose certificate was issued by `ca` (PEM).
    pub fn new(base: &str, token: Option<&str>, ca: Option<&Path>) -> Result<Self> {
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).https_only(true);
        if let Some(path) = ca {
            let pem = std::fs::read(path)
                .with_context(|| format!("could not read the authority's certificate {}", path.display()))?;
            builder = builder.tls_certs_only([reqwest::Certificate::from_pem(&pem)?]);
        }
        let http = builder.build().context("could not set up TLS")?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), token: token.map(str::to_owned) })
    }

    /// Sends a request and returns the answer if it is a success.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(Body, &str)>,
        timeout: Option<Duration>,
    ) -> Result<Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some((body, content_type)) = body {
            request = request.header("content-type", content_type).body(body);
        }
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        let response = request.send().await.with_context(|| {
            format!("could not reach the controller at {}; is it running, and are DUNLIN_SERVER and DUNLIN_CA right?", self.base)
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let body = serde_json::from_str(&text).unwrap_or_else(|_| ErrorBody {
            error: format!("the server answered {status}"),
            hint: String::new(),
        });
        Err(ApiFailure { status: status.as_u16(), error: body.error, hint: body.hint }.into())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T> {
        let body = body.map(|body| (Body::from(body), "application/json"));
        let response = self.send(method, path, body, Some(REQUEST_TIMEOUT)).await?;
        let bytes = response.bytes().await.context("the answer broke off")?;
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).context("the answer is not of the form this release expects")
    }

    /// `GET` of a JSON document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::GET, path, None).await
    }

    /// `POST` of a JSON document.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(Method::POST, path, Some(serde_json::to_vec(body)?)).await
    }

    /// `PUT` of a JSON document.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(Method::PUT, path, Some(serde_json::to_vec(body)?)).await
    }

    /// `DELETE`.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::DELETE, path, None).await
    }

    /// `POST` of bytes, without a time limit on the whole.
    pub async fn upload<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T> {
        let response =
            self.send(Method::POST, path, Some((Body::from(body), "application/octet-stream")), None).await?;
        serde_json::from_slice(&response.bytes().await?)
            .context("the answer is not of the form this release expects")
    }

    /// `GET` of bytes, without a time limit on the whole.
    pub async fn download(&self, path: &str) -> Result<Vec<u8>> {
        Ok(self.send(Method::GET, path, None, None).await?.bytes().await?.to_vec())
    }
}
