use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dunlin_protocol::{Now, ReasonCode, TaskId, TaskType};
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tonic::Code;

use super::message::*;
use crate::api::{Api, Door, Limits};
use crate::serve::onnx::{IDENTITY, linear, resident, texts, voters};
use crate::serve::{self, Serving};

struct Served {
    serving: Arc<Serving>,
    /// Bytes of bodies that may still be read.
    bodies: Arc<Semaphore>,
    client: SendRequest<Full<Bytes>>,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start() -> Self {
        Self::start_limited(Limits { body_bytes_max: 4096, ..Limits::default() }).await
    }

    async fn start_limited(limits: Limits) -> Self {
        let serving = Serving::new(serve::Limits::default());
        let task: TaskId = "meter".parse().unwrap();
        serving.switch(&task, resident("m@3", &task, &linear(3, 3, &IDENTITY, false), 3), None, 5, false);
        let clock = Arc::new(|| Now { mono_ms: 1, wall_ms: Some(7) });
        let api = Api::new(Arc::clone(&serving), clock, limits)
            .with_loader(Arc::new(|_, _| async { ReasonCode::Ok }.boxed()));
        let bodies = Arc::clone(&api.bodies);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(api.serve_grpc(Door::Tcp(listener), async {
            let _either = stopped.await;
        }));
        let stream = TcpStream::connect(address).await.unwrap();
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async {
            let _ended = connection.await;
        });
        Self { serving, bodies, client, stop, server }
    }

    async fn call<A: Message + Default>(&mut self, method: &str, asked: &impl Message) -> Result<A, Code> {
        self.told(method, asked, None).await.map_err(|(code, _)| code)
    }

    /// One unary call: a message behind five bytes of framing, the status in the trailers; with what is said of an error.
    async fn told<A: Message + Default>(
        &mut self,
        method: &str,
        asked: &impl Message,
        coding: Option<&str>,
    ) -> Result<A, (Code, String)> {
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(asked.encoded_len() as u32);
        asked.encode(&mut body).unwrap();
        let mut request = Request::post(format!("http://device/inference.GRPCInferenceService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(coding) = coding {
            request = request.header("grpc-encoding", coding);
        }
        let request = request.body(Full::new(body.freeze())).unwrap();
        let response = self.client.send_request(request).await.unwrap();
        let mut early = response.headers().clone();
        let collected = response.into_body().collect().await.unwrap();
        early.extend(collected.trailers().cloned().unwrap_or_default());
        let code = Code::from_bytes(early["grpc-status"].as_bytes());
        if code != Code::Ok {
            let message = early.get("grpc-message").map_or("", |text| text.to_str().unwrap());
            return Err((code, message.replace("%20", " ")));
        }
        let mut body = collected.to_bytes();
        body.advance(5);
        Ok(A::decode(body).unwrap())
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap();
    }
}

fn request(rows: &[[f32; 3]]) -> InferRequest {
    InferRequest {
        model_name: "meter".into(),
        id: "r1".into(),
        inputs: vec![InputTensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![rows.len() as i64, 3],
            ..InputTensor::default()
        }],
        raw_input_contents: vec![rows.as_flattened().iter().flat_map(|x| x.to_le_bytes()).collect()],
        ..InferRequest::default()
    }
}

#[tokio::test]
async fn inference_metadata_and_statistics() {
    let mut served = Served::start().await;
    assert!(served.call::<LiveResponse>("ServerLive", &Empty {}).await.unwrap().live);
    assert!(served.call::<ReadyResponse>("ServerReady", &Empty {}).await.unwrap().ready);
    let model = ModelRequest { name: "meter".into(), version: "3".into() };
    assert!(served.call::<ReadyResponse>("ModelReady", &model).await.unwrap().ready);
    let unknown = ModelRequest { name: "other".into(), version: String::new() };
    assert!(!served.call::<ReadyResponse>("ModelReady", &unknown).await.unwrap().ready);
    let meta: ModelMetadataResponse = served.call("ModelMetadata", &model).await.unwrap();
    assert_eq!((meta.versions, meta.inputs[0].shape.clone()), (vec!["m@3".to_owned()], vec![-1, 3]));

    let raw: InferResponse = served.call("ModelInfer", &request(&[[1.0, 0.0, 0.0], [0.0; 3]])).await.unwrap();
    assert_eq!((raw.model_version.as_str(), raw.id.as_str()), ("m@3", "r1"));
    assert_eq!(raw.outputs[0].shape, [2, 3]);
    assert_eq!(raw.raw_output_contents[0].len(), 24);
    assert_eq!(raw.parameters["generation"].choice, Some(ParameterChoice::Uint64(5)));
    let mut typed = request(&[]);
    typed.raw_input_contents.clear();
    typed.inputs[0].shape = vec![2, 3];
    typed.inputs[0].contents =
        Some(Contents { fp32s: vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0], ..Contents::default() });
    let typed: InferResponse = served.call("ModelInfer", &typed).await.unwrap();
    assert_eq!(typed.raw_output_contents, raw.raw_output_contents);

    let stats: StatisticsResponse = served.call("ModelStatistics", &model).await.unwrap();
    let of = &stats.model_stats[0];
    assert_eq!((of.inference_count, of.execution_count, of.last_inference), (4, 2, 7));
    let spans = of.inference_stats.as_ref().unwrap();
    assert_eq!(spans.compute_infer.as_ref().unwrap().count, 2);
    let none = Some(StatisticDuration { count: 0, ns: 0 });
    assert_eq!((&spans.cache_hit, &spans.cache_miss), (&none, &none));
    let batch = &of.batch_stats[0];
    assert_eq!(batch.batch_size, 2);
    for span in [&batch.compute_input, &batch.compute_infer, &batch.compute_output] {
        assert_eq!(span.as_ref().unwrap().count, 2);
    }
    let index: IndexResponse = served.call("RepositoryIndex", &IndexRequest { ready: true }).await.unwrap();
    assert_eq!((index.models[0].name.as_str(), index.models[0].state.as_str()), ("meter", "READY"));
    served.end().await;
}

#[tokio::test]
async fn an_answer_of_several_names_who_voted_and_who_was_left_out() {
    let mut served = Served::start().await;
    let task: TaskId = "meter".parse().unwrap();
    served.serving.line_up(&task, voters(&task), 6, false);
    let text = |answer: &InferResponse, name: &str| {
        let Some(ParameterChoice::String(text)) = answer.parameters.get(name)?.choice.clone() else {
            panic!("{answer:?}")
        };
        Some(text)
    };

    let all: InferResponse = served.call("ModelInfer", &request(&[[3.0, 1.0, 1.0]])).await.unwrap();
    assert_eq!(all.model_version, "m@3");
    assert_eq!(text(&all, "answered_by").as_deref(), Some("vote"));
    assert_eq!(text(&all, "voters").as_deref(), Some("m@3,v@1,v@2"));
    assert_eq!(text(&all, "left_out"), None);
    assert_eq!(all.parameters["generation"].choice, Some(ParameterChoice::Uint64(6)));
    assert_eq!((all.outputs.len(), all.outputs[0].shape.clone()), (1, vec![1, 3]));

    let two: InferResponse = served.call("ModelInfer", &request(&[[3.0, 1.0, -1.0]])).await.unwrap();
    assert_eq!(text(&two, "voters").as_deref(), Some("m@3,v@1"));
    assert_eq!(text(&two, "left_out").as_deref(), Some("v@2:failed"));
    served.end().await;
}

#[tokio::test]
async fn wrong_calls_have_their_status() {
    let mut served = Served::start().await;
    let with = |change: &dyn Fn(&mut InferRequest)| {
        let mut asked = request(&[[0.0; 3]]);
        change(&mut asked);
        asked
    };
    for (asked, code) in [
        (with(&|r| r.model_name = "other".into()), Code::NotFound),
        (with(&|r| r.model_version = "4".into()), Code::NotFound),
        (with(&|r| r.inputs[0].name = "y".into()), Code::InvalidArgument),
        (with(&|r| r.inputs[0].datatype = "INT32".into()), Code::InvalidArgument),
        (with(&|r| r.inputs[0].shape = vec![1, 4]), Code::InvalidArgument),
        (with(&|r| r.inputs.clear()), Code::InvalidArgument),
        (with(&|r| r.raw_input_contents[0].truncate(11)), Code::InvalidArgument),
        (
            with(&|r| r.outputs.push(WantedTensor { name: "z".into(), ..WantedTensor::default() })),
            Code::InvalidArgument,
        ),
        (with(&|r| r.id = "i".repeat(1000)), Code::InvalidArgument),
        (with(&|r| r.raw_input_contents[0] = vec![0; 100_000].into()), Code::OutOfRange),
    ] {
        assert_eq!(served.call::<InferResponse>("ModelInfer", &asked).await.unwrap_err(), code, "{asked:?}");
    }
    let change = RepositoryRequest { model_name: "meter".into(), ..RepositoryRequest::default() };
    let refused = served.call::<Empty>("RepositoryModelUnload", &change).await;
    assert_eq!(refused.unwrap_err(), Code::PermissionDenied, "nobody over TCP is the administrator");
    assert_eq!(served.call::<Empty>("ModelConfig", &change).await.unwrap_err(), Code::Unimplemented);
    served.end().await;
}

#[tokio::test]
async fn what_would_change_the_answer_is_refused_by_name_and_all_else_ignored() {
    let mut served = Served::start().await;
    let with = |name: &str| {
        let mut asked = request(&[[0.0; 3]]);
        let value = Parameter { choice: Some(ParameterChoice::Int64(7)) };
        asked.parameters.insert(name.to_owned(), value);
        asked
    };
    for name in ["sequence_id", "sequence_start", "sequence_end", "classification"] {
        let (code, said) = served.told::<InferResponse>("ModelInfer", &with(name), None).await.unwrap_err();
        assert!(code == Code::InvalidArgument && said.contains(name), "{code}: {said}");
    }
    for name in ["priority", "timeout", "binary_data_output"] {
        served.call::<InferResponse>("ModelInfer", &with(name)).await.unwrap();
    }
    for method in ["SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "CudaSharedMemoryUnregister"] {
        let (code, said) = served.told::<Empty>(method, &Empty {}, None).await.unwrap_err();
        assert!(code == Code::Unimplemented && said.contains("shares no memory"), "{code}: {said}");
    }
    let (code, said) =
        served.told::<InferResponse>("ModelInfer", &request(&[[0.0; 3]]), Some("gzip")).await.unwrap_err();
    assert!(code == Code::Unimplemented && said.contains("gzip"), "{code}: {said}");
    served.end().await;
}

#[tokio::test]
async fn text_goes_in_and_out_typed_and_raw() {
    let mut served = Served::start().await;
    let task: TaskId = "meter".parse().unwrap();
    let mut model = resident("m@4", &task, &texts(2, &["red", "grün"]), 0);
    Arc::get_mut(&mut model.bundle).unwrap().task_type = TaskType::Regression;
    served.serving.switch(&task, model, None, 6, false);
    let input = |contents| InputTensor {
        name: "x".into(),
        datatype: "BYTES".into(),
        shape: vec![1, 2],
        contents,
        ..InputTensor::default()
    };
    let typed = |words: [&'static str; 2]| InferRequest {
        model_name: "meter".into(),
        inputs: vec![input(Some(Contents {
            texts: words.map(|word| Bytes::from_static(word.as_bytes())).into(),
            ..Contents::default()
        }))],
        ..InferRequest::default()
    };
    let bytes = Bytes::from_static("\u{3}\0\0\0red\u{5}\0\0\0grün".as_bytes());
    let raw = InferRequest {
        inputs: vec![input(None)],
        raw_input_contents: vec![bytes.clone()],
        ..typed(["", ""])
    };
    for asked in [typed(["red", "grün"]), raw] {
        let answer: InferResponse = served.call("ModelInfer", &asked).await.unwrap();
        assert_eq!(
            (answer.outputs[0].datatype.as_str(), &answer.outputs[0].shape[..]),
            ("BYTES", &[1, 2][..])
        );
        assert_eq!(answer.raw_output_contents, std::slice::from_ref(&bytes));
    }
    // That word has no place in the model, which is the request's fault.
    let (code, said) =
        served.told::<InferResponse>("ModelInfer", &typed(["red", "blue"]), None).await.unwrap_err();
    assert!(code == Code::InvalidArgument && said.contains("no word"), "{code}: {said}");
    served.end().await;
}

#[tokio::test]
async fn fields_that_are_large_in_memory_are_refused_before_they_are_there() {
    let mut served = Served::start_limited(Limits::default()).await;
    let inputs = vec![InputTensor::default(); 1_000_000];
    let many = InferRequest { inputs, ..request(&[[1.0; 3]]) };
    let (code, said) = served.told::<InferResponse>("ModelInfer", &many, None).await.unwrap_err();
    assert!(code == Code::OutOfRange && said.contains("raw contents"), "{code}: {said}");
    served.call::<InferResponse>("ModelInfer", &request(&[[1.0; 3]])).await.unwrap();
    served.end().await;
}

#[tokio::test]
async fn bodies_have_so_many_bytes_together() {
    let large = request(&[[0.0; 3]; 300]);
    let size = large.encoded_len();
    let limits = Limits { body_bytes_max: size, bodies_bytes_max: size, ..Limits::default() };
    let mut served = Served::start_limited(limits).await;
    served.call::<InferResponse>("ModelInfer", &large).await.unwrap();
    let room = served.bodies.clone().try_acquire_many_owned(size as u32 / 2).unwrap();
    let (code, said) = served.told::<InferResponse>("ModelInfer", &large, None).await.unwrap_err();
    assert!(code == Code::ResourceExhausted && said.contains("bodies"), "{code}: {said}");
    drop(room);
    served.call::<InferResponse>("ModelInfer", &large).await.unwrap();
    served.end().await;
}
