use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::{Now, ResourceUse, TaskId, TaskType};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Access, Api, Door, Limits as ApiLimits};
use crate::serve::onnx::{IDENTITY, linear, policy, resident};
use crate::serve::{Limits, Resident, Serving};

mod admin;
mod explain;
mod text;
mod types;

/// A server of its own for each test, and one connection to it.
struct Served {
    serving: Arc<Serving>,
    /// Of a server on TCP.
    address: Option<SocketAddr>,
    client: SendRequest<Full<Bytes>>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    connection: JoinHandle<()>,
}

struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }
}

fn task() -> TaskId {
    "meter".parse().unwrap()
}

/// The same without classes, so that any output will do.
fn regression(mut resident: Resident) -> Resident {
    Arc::get_mut(&mut resident.bundle).unwrap().task_type = TaskType::Regression;
    resident
}

fn api(limits: ApiLimits) -> Api {
    let serving = Serving::new(Limits::default());
    serving.set_policy(&policy(&task()));
    serving.switch(&task(), resident("m@3", &task(), &linear(3, 3, &IDENTITY, false), 3), None, 5, false);
    let extra = Arc::new(|method: &str, path: &str| {
        (method == "GET" && path == "/dunlin/status").then(|| json!({ "agent": "ok" }))
    });
    Api::new(serving, Arc::new(|| Now { mono_ms: 1, wall_ms: None }), limits).with_extra(extra)
}

impl Served {
    async fn start() -> Self {
        Self::start_with(|api| api).await
    }

    async fn start_limited(limits: ApiLimits) -> Self {
        Self::start_as(api(limits)).await
    }

    async fn start_with(change: impl FnOnce(Api) -> Api) -> Self {
        Self::start_as(change(api(ApiLimits::default()))).await
    }

    async fn start_as(api: Api) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connect = async || TokioIo::new(TcpStream::connect(address).await.unwrap());
        let served = Self::start_at(Door::Tcp(listener), |_| api, connect).await;
        Self { address: Some(address), ..served }
    }

    async fn start_at<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        door: Door,
        change: impl FnOnce(Api) -> Api,
        connect: impl AsyncFn() -> TokioIo<S>,
    ) -> Self {
        let api = change(api(ApiLimits::default()));
        let serving = Arc::clone(&api.serving);
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(api.serve(door, async {
            let _either = stopped.await;
        }));
        let (client, connection) = hyper::client::conn::http1::handshake(connect().await).await.unwrap();
        let connection = tokio::spawn(async {
            let _ended = connection.await;
        });
        Self { serving, address: None, client, stop: Some(stop), server, connection }
    }

    async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Got {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client.ready().await.unwrap();
        let response = self.client.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        Got { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    async fn infer(&mut self, body: &Value) -> Got {
        self.send("POST", "/v2/models/meter/infer", &[], body.to_string()).await
    }

    async fn end(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.server.await.unwrap();
        self.connection.abort();
    }
}

fn request(rows: &[[f32; 3]]) -> Value {
    json!({ "id": "r1", "inputs": [{ "name": "x", "shape": [rows.len(), 3], "datatype": "FP32", "data": rows }] })
}

fn scores(got: &Got) -> Vec<f64> {
    let body = got.json();
    assert_eq!(body["outputs"][0]["name"], "scores", "{body}");
    body["outputs"][0]["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[tokio::test]
async fn json_requests_are_answered_for_one_row_and_many() {
    let mut served = Served::start().await;
    let one = served.infer(&request(&[[1.0, 0.0, 0.0]])).await;
    assert_eq!(one.status, StatusCode::OK);
    let e = std::f64::consts::E;
    assert!((scores(&one)[0] - e / (e + 2.0)).abs() < 1e-6);
    let body = one.json();
    assert_eq!(
        (&body["model_name"], &body["model_version"], &body["id"]),
        (&json!("meter"), &json!("m@3"), &json!("r1"))
    );
    assert_eq!(body["parameters"], json!({ "generation": 5, "answered_by": "champion" }));
    let many = served.infer(&request(&[[0.5, 1.0, 2.0]; 50])).await;
    assert_eq!(many.json()["outputs"][0]["shape"], json!([50, 3]));
    assert_eq!(scores(&many).len(), 150);
    let flat = json!({ "model_name": "ignored", "inputs": [{ "name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 0] }] });
    let flat = served.infer(&flat).await;
    assert_eq!(scores(&flat), scores(&one));
    assert!(!flat.json()["id"].as_str().unwrap().is_empty(), "an id is made where none came");
    // In whatever order its parts come.
    let backwards =
        r#"{"inputs": [{"data": [[1, 0, 0]], "datatype": "FP32", "shape": [1, 3], "name": "x"}]}"#;
    let backwards = served.send("POST", "/v2/models/meter/infer", &[], backwards).await;
    assert_eq!(scores(&backwards), scores(&one));
    served.end().await;
}

#[tokio::test]
async fn an_answer_is_counted_once_it_is_written_though_nobody_looks() {
    let mut served = Served::start().await;
    served.infer(&request(&[[1.0, 0.0, 0.0]])).await;
    let counted = async {
        while served.serving.noted(&task()) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.expect("it waits to be counted");
    let windows = served.serving.close_windows(Now { mono_ms: 9, wall_ms: None }, &ResourceUse::default());
    assert_eq!(windows[0].n, 1);
    served.end().await;
}

#[tokio::test]
async fn binary_tensors_go_in_and_out() {
    let mut served = Served::start().await;
    let want = scores(&served.infer(&request(&[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])).await);
    let head = json!({
        "inputs": [{ "name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": { "binary_data_size": 24 } }],
        "parameters": { "binary_data_output": true },
    })
    .to_string();
    let mut body = head.clone().into_bytes();
    body.extend(le(&[1.0, 0.0, 0.0, 0.0, 2.0, 0.0]));
    let length = head.len().to_string();
    for name in ["Inference-Header-Content-Length", "inference-header-content-length"] {
        let got = served.send("POST", "/v2/models/meter/infer", &[(name, &length)], body.clone()).await;
        assert_eq!(got.status, StatusCode::OK, "{:?}", got.body);
        let json_len: usize =
            got.headers["inference-header-content-length"].to_str().unwrap().parse().unwrap();
        let (text, tail) = got.body.split_at(json_len);
        let text: Value = serde_json::from_slice(text).unwrap();
        assert_eq!(text["outputs"][0]["parameters"]["binary_data_size"], 24);
        let got = floats(tail);
        assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{got:?}");
    }
    // JSON in, one output wanted as binary.
    let mut mixed = request(&[[1.0, 0.0, 0.0]]);
    mixed["outputs"] = json!([{ "name": "scores", "parameters": { "binary_data": true } }]);
    let got = served.infer(&mixed).await;
    assert!(got.headers.contains_key("inference-header-content-length"));
    // Raw: the whole body is the input, one row.
    let raw = [("Inference-Header-Content-Length", "0")];
    let got = served.send("POST", "/v2/models/meter/infer", &raw, le(&[1.0, 0.0, 0.0])).await;
    let json_len: usize = got.headers["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    assert_eq!(floats(&got.body[json_len..]).len(), 3);
    served.end().await;
}

#[tokio::test]
async fn wrong_requests_are_4xx_with_an_error() {
    let mut served = Served::start().await;
    let good = request(&[[1.0, 0.0, 0.0]]);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = good.clone();
        change(&mut body["inputs"][0]);
        body
    };
    let wrong = [
        with(&|i| i["name"] = json!("y")),
        with(&|i| i["datatype"] = json!("INT32")),
        with(&|i| i["datatype"] = json!("FP33")),
        with(&|i| i["shape"] = json!([1, 4])),
        with(&|i| i["shape"] = json!([3])),
        with(&|i| i["shape"] = json!([0, 3])),
        with(&|i| i["shape"] = json!([u64::MAX, 3])),
        with(&|i| i["data"] = json!([1, 2])),
        with(&|i| i["data"] = json!(["a", "b", "c"])),
        with(&|i| i["data"] = Value::Null),
        json!({}),
        json!({ "inputs": [] }),
        json!({ "inputs": [good["inputs"][0], good["inputs"][0]] }),
        json!({ "inputs": good["inputs"], "outputs": [{ "name": "nope" }] }),
    ];
    for body in wrong {
        let got = served.infer(&body).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST, "{body} -> {:?}", got.body);
        assert!(!got.json()["error"].as_str().unwrap().is_empty());
    }
    let text = good.to_string();
    let beyond = (text.len() + 1).to_string();
    let binary = json!({ "inputs": [{ "name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": { "binary_data_size": 12 } }] }).to_string();
    let own = binary.len().to_string();
    let header = "Inference-Header-Content-Length";
    for (path, headers, body, status) in [
        ("/v2/models/other/infer", vec![], text.clone().into_bytes(), 404),
        ("/v2/models/UPPER/infer", vec![], text.clone().into_bytes(), 404),
        ("/v2/models/meter/versions/4/infer", vec![], text.clone().into_bytes(), 404),
        ("/v2/models/meter/infer", vec![], b"{".to_vec(), 400),
        ("/v2/models/meter/infer", vec![(header, beyond.as_str())], text.clone().into_bytes(), 400),
        ("/v2/models/meter/infer", vec![(header, "-1")], text.clone().into_bytes(), 400),
        ("/v2/models/meter/infer", vec![(header, own.as_str())], [binary.as_bytes(), &[0; 11]].concat(), 400),
        ("/v2/models/meter/infer", vec![(header, own.as_str())], [binary.as_bytes(), &[0; 13]].concat(), 400),
        ("/v2/models/meter/infer", vec![(header, "0")], vec![0; 11], 400),
        ("/v2/models/meter/load", vec![], vec![], 404),
        ("/v2/health/live", vec![], vec![], 405),
        ("/v2/repository/models/meter/unload", vec![], vec![], 403),
    ] {
        let got = served.send("POST", path, &headers, body).await;
        assert_eq!(got.status.as_u16(), status, "{path} {headers:?} -> {:?}", got.body);
        assert!(!got.json()["error"].as_str().unwrap().is_empty());
    }
    let got = served
        .send("POST", "/v2/models/meter/infer", &[], vec![b' '; ApiLimits::default().body_bytes_max + 1])
        .await;
    assert_eq!(got.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(got.json()["error"].as_str().unwrap().contains("over"));
    served.end().await;
}

#[tokio::test]
async fn metadata_readiness_index_metrics_and_further_routes() {
    let mut served = Served::start().await;
    for path in [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/meter/ready",
        "/v2/models/meter/versions/m@3/ready",
        "/v2/models/meter/versions/3/ready",
    ] {
        assert_eq!(served.send("GET", path, &[], "").await.status, StatusCode::OK, "{path}");
    }
    let server = served.send("GET", "/v2", &[], "").await.json();
    assert!(server["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));
    let meta = served.send("GET", "/v2/models/meter", &[], "").await.json();
    assert_eq!(meta["versions"], json!(["m@3"]));
    // In probation the one before is the fallback as well.
    let good = |release: &str| resident(release, &task(), &linear(3, 3, &IDENTITY, false), 3);
    served.serving.switch(&task(), good("m@4"), Some(good("m@3")), 6, true);
    assert_eq!(served.send("GET", "/v2/models/meter/versions/3/ready", &[], "").await.status, StatusCode::OK);
    let meta = served.send("GET", "/v2/models/meter", &[], "").await.json();
    assert_eq!(meta["versions"], json!(["m@4", "m@3"]));
    let index = served.send("POST", "/v2/repository/index", &[], "").await.json();
    assert_eq!(index.as_array().unwrap().len(), 2);
    served.serving.switch(&task(), good("m@3"), None, 7, false);
    assert_eq!(meta["inputs"], json!([{ "name": "x", "datatype": "FP32", "shape": [-1, 3] }]));
    for body in ["", "{}", "{\"ready\":true}"] {
        let index = served.send("POST", "/v2/repository/index", &[], body).await.json();
        assert_eq!(index, json!([{ "name": "meter", "version": "m@3", "state": "READY", "reason": "" }]));
    }
    served.infer(&request(&[[1.0, 0.0, 0.0]])).await;
    let named = served
        .send("POST", "/v2/models/meter/versions/3/infer", &[], request(&[[1.0, 0.0, 0.0]]).to_string())
        .await;
    assert_eq!(named.json()["parameters"]["answered_by"], "champion");
    let metrics = served.send("GET", "/metrics", &[], "").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(text.contains("dunlin_requests_total{task=\"meter\",by=\"champion\"} 2"), "{text}");
    assert_eq!(served.send("GET", "/dunlin/status", &[], "").await.json(), json!({ "agent": "ok" }));
    assert_eq!(served.send("GET", "/dunlin/else", &[], "").await.status, StatusCode::NOT_FOUND);
    served.end().await;
}

#[tokio::test]
async fn labels_by_index_and_name_reach_the_window() {
    let mut served = Served::start().await;
    served.infer(&request(&[[9.0, 0.0, 0.0]])).await;
    let path = "/v2/models/meter/feedback";
    for (body, status) in [
        (json!({ "id": "nobody", "label": 0 }), 404),
        (json!({ "id": "r1", "label": 17 }), 400),
        (json!({ "id": "r1", "label": "c17" }), 400),
        (json!({ "id": "r1" }), 400),
        (json!({ "id": "r1", "label": "c2" }), 200),
        (json!({ "id": "r1", "label": "c2" }), 404),
    ] {
        let got = served.send("POST", path, &[], body.to_string()).await;
        assert_eq!(got.status.as_u16(), status, "{body} -> {:?}", got.body);
    }
    let windows = served.serving.close_windows(Now { mono_ms: 9, wall_ms: None }, &ResourceUse::default());
    let mut confusion = vec![0; 9];
    confusion[6] = 1;
    assert_eq!(windows[0].confusion.counts.unpack(9).unwrap(), confusion);
    served.end().await;
}

#[tokio::test]
async fn a_model_without_finite_scores_is_answered_for() {
    let mut served = Served::start().await;
    let brittle = || linear(3, 3, &IDENTITY, true);
    let fallback = resident("m@1", &task(), &linear(3, 3, &IDENTITY, false), 3);
    served.serving.switch(&task(), resident("m@4", &task(), &brittle(), 3), Some(fallback), 6, false);
    let got = served.infer(&request(&[[-1.0, 1.0, 1.0]])).await.json();
    assert_eq!(
        (&got["parameters"]["answered_by"], &got["model_version"]),
        (&json!("fallback"), &json!("m@1"))
    );
    served.serving.switch(&task(), resident("m@4", &task(), &brittle(), 3), None, 7, false);
    let got = served.infer(&request(&[[-1.0, 1.0, 1.0]])).await;
    assert_eq!(got.json()["parameters"]["answered_by"], "baseline");
    assert_eq!(scores(&got), [0.0, 1.0, 0.0]);
    served.end().await;
}
