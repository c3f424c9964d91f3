//! What reading a request takes from the heap.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use std::sync::Arc;

use bytes::Bytes;
use dunlin_agent::api::{Api, Door, Limits};
use dunlin_agent::serve::{self, Serving};
use dunlin_protocol::Now;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use peak_alloc::PeakAlloc;
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Bytes of a body.
const BODY: usize = 4 * 1024 * 1024;
/// Most that is held for each byte of it, and beside that: buffers of two ends of a connection.
const TIMES: usize = 6;
const BESIDE: usize = 512 * 1024;

/// A body of one input whose data is `item`, again and again.
fn body(kind: &str, item: &str) -> Bytes {
    let count = BODY / (item.len() + 1);
    let data = vec![item; count].join(",");
    format!(r#"{{"inputs":[{{"data":[{data}],"name":"x","shape":[1,{count}],"datatype":"{kind}"}}]}}"#).into()
}

// One test, so that nothing else allocates meanwhile.
#[tokio::test]
async fn a_body_takes_a_few_times_its_length_whatever_is_in_it() {
    let clock = Arc::new(|| Now { mono_ms: 1, wall_ms: None });
    let api = Api::new(Serving::new(serve::Limits::default()), clock, Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    tokio::spawn(api.serve(Door::Tcp(listener), std::future::pending()));
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (kind, item, problem) in [
        ("FP64", "0", "no model"),
        ("INT64", "0", "no model"),
        ("FP32", "0", "no model"),
        ("UINT8", "0", "no model"),
        ("BYTES", "\"\"", "no model"),
        ("BYTES", "\"some words\"", "no model"),
        ("FP64", "[]", "0 values"),
        ("FP64", "{}", "map"),
        ("FP64", "null", "null"),
    ] {
        let body = body(kind, item);
        let length = body.len();
        let request =
            Request::post("/v2/models/none/infer").header("host", "x").body(Full::new(body)).unwrap();
        client.ready().await.unwrap();
        HEAP.reset_peak_usage();
        let before = HEAP.current_usage();
        let answer = client.send_request(request).await.unwrap();
        let taken = HEAP.peak_usage() - before;
        let status = answer.status();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_client_error() && status != StatusCode::PAYLOAD_TOO_LARGE, "{status}: {text:?}");
        assert!(String::from_utf8_lossy(&text).contains(problem), "{kind} {item}: {text:?}");
        assert!(taken <= TIMES * length + BESIDE, "{kind} {item}: {taken} bytes for {length}");
    }
}
