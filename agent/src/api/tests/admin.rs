//! Tokens, the Unix socket, load and unload, statistics, bounds.

use dunlin_protocol::ReasonCode;
use futures_util::FutureExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::*;
use crate::api::{Residency, Token};
use crate::serve::onnx::voters;

/// How long is waited for what comes at once.
const LIMIT: Duration = Duration::from_secs(30);

fn token(dir: &tempfile::TempDir, name: &str) -> (String, Token) {
    let file = dir.path().join(name);
    std::fs::write(&file, format!("token-of-the-{name}\n")).unwrap();
    (format!("Bearer token-of-the-{name}"), Token::read(&file).unwrap())
}

/// Loads and unloads as the updater does, without a store.
fn loader(api: Api) -> Api {
    let serving = Arc::clone(&api.serving);
    api.with_loader(Arc::new(move |task: TaskId, wanted| {
        match wanted {
            Residency::Unloaded => serving.unload(&task),
            Residency::Loaded => {
                let model = resident("m@3", &task, &linear(3, 3, &IDENTITY, false), 3);
                serving.switch(&task, model, None, 5, false);
            }
        }
        async { ReasonCode::Ok }.boxed()
    }))
}

#[tokio::test]
async fn tokens_are_asked_for_where_they_are_configured() {
    let dir = tempfile::tempdir().unwrap();
    let ((user, of_users), (boss, of_boss)) = (token(&dir, "user"), token(&dir, "boss"));
    let access = Access { token: Some(of_users), admin: Some(of_boss) };
    let mut served = Served::start_with(|api| loader(api).with_access(access)).await;
    let good = request(&[[1.0, 0.0, 0.0]]).to_string();
    for (method, path, bearing, status) in [
        ("GET", "/v2/health/live", "", 200),
        ("GET", "/v2/health/ready", "", 200),
        ("GET", "/v2", "", 401),
        ("GET", "/metrics", "", 401),
        ("GET", "/dunlin/status", "", 401),
        ("POST", "/v2/models/meter/infer", "", 401),
        ("POST", "/v2/models/meter/infer", "Bearer token-of-somebody-else", 401),
        ("POST", "/v2/models/meter/infer", &user, 200),
        ("POST", "/v2/models/meter/infer", &boss, 200),
        ("POST", "/v2/repository/models/meter/unload", "", 401),
        ("POST", "/v2/repository/models/meter/unload", &user, 403),
        ("POST", "/v2/repository/models/meter/unload", &boss, 200),
    ] {
        let headers = [("authorization", bearing)];
        let body = if path.ends_with("infer") { good.clone() } else { String::new() };
        let got = served.send(method, path, &headers[..usize::from(!bearing.is_empty())], body).await;
        assert_eq!(got.status.as_u16(), status, "{method} {path} {bearing:?} -> {:?}", got.body);
        assert_eq!(got.headers.contains_key("www-authenticate"), status == 401);
        if status != 200 {
            assert!(!got.json()["error"].as_str().unwrap().is_empty());
        }
    }
    served.end().await;
}

#[tokio::test]
async fn an_unloaded_model_is_refused_until_something_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (boss, of_boss) = token(&dir, "boss");
    let access = Access { token: None, admin: Some(of_boss) };
    let mut served = Served::start_with(|api| loader(api).with_access(access)).await;
    let bearing = [("authorization", boss.as_str())];
    let change = |verb: &str| format!("/v2/repository/models/meter/{verb}");
    let good = request(&[[1.0, 0.0, 0.0]]);
    assert_eq!(served.send("POST", &change("unload"), &bearing, "{}").await.status, StatusCode::OK);
    assert_eq!(served.infer(&good).await.status, StatusCode::BAD_REQUEST, "not even the baseline answers");
    for path in ["/v2/models/meter/ready", "/v2/models/meter/versions/m@3/ready"] {
        assert!(served.send("GET", path, &[], "").await.status.is_client_error(), "{path}");
    }
    let all = served.send("GET", "/v2/health/ready", &[], "").await;
    assert_eq!(all.status, StatusCode::OK, "what was unloaded on purpose is not waited for");
    let index = served.send("POST", "/v2/repository/index", &[], "").await.json();
    let line = json!({ "name": "meter", "version": "m@3", "state": "UNAVAILABLE", "reason": "unloaded" });
    assert_eq!(index, json!([line]));
    let index = served.send("POST", "/v2/repository/index", &[], "{\"ready\":true}").await.json();
    assert_eq!(index, json!([]));
    let brought = json!({ "parameters": { "config": "{}", "file:1/model.onnx": "AA==" } }).to_string();
    for (verb, body) in [("load", brought.as_str()), ("load", "["), ("reload", "")] {
        let got = served.send("POST", &change(verb), &bearing, body.to_owned()).await;
        assert!(got.status.is_client_error(), "{verb} {body}: {:?}", got.body);
    }
    assert_eq!(served.send("POST", &change("load"), &bearing, "").await.status, StatusCode::OK);
    assert_eq!(served.infer(&good).await.status, StatusCode::OK);
    assert_eq!(served.send("POST", &change("unload"), &bearing, "").await.status, StatusCode::OK);
    // A new generation.
    let model = resident("m@4", &task(), &linear(3, 3, &IDENTITY, false), 3);
    served.serving.switch(&task(), model, None, 6, false);
    assert_eq!(served.infer(&good).await.json()["model_version"], "m@4");
    served.end().await;
}

#[tokio::test]
async fn the_unix_socket_has_its_mode_and_its_owner_administers() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    std::fs::write(&path, "not a socket").unwrap();
    assert!(Door::unix(&path, 0o600).is_err(), "a file that is no socket stays");
    std::fs::remove_file(&path).unwrap();
    drop(Door::unix(&path, 0o600).unwrap());
    let door = Door::unix(&path, 0o640).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let (_, of_users) = token(&dir, "user");
    let access = Access { token: Some(of_users), admin: None };
    let mut served = Served::start_at(
        door,
        |api| loader(api).with_access(access),
        async || TokioIo::new(UnixStream::connect(&path).await.unwrap()),
    )
    .await;
    let good = request(&[[1.0, 0.0, 0.0]]);
    assert_eq!(served.infer(&good).await.status, StatusCode::OK, "the file's mode stands for the token");
    let unloaded = served.send("POST", "/v2/repository/models/meter/unload", &[], "").await;
    assert_eq!(unloaded.status, StatusCode::OK);
    served.end().await;
}

#[tokio::test]
async fn statistics_count_requests_rows_and_failures() {
    let mut served = Served::start().await;
    let brittle = resident("m@4", &task(), &linear(3, 3, &IDENTITY, true), 3);
    served.serving.switch(&task(), brittle, None, 6, false);
    served.infer(&request(&[[1.0, 2.0, 3.0]])).await;
    served.infer(&request(&[[1.0, 2.0, 3.0]; 8])).await;
    served.infer(&request(&[[1.0, 2.0, 3.0]; 8])).await;
    served.infer(&request(&[[-1.0, 2.0, 3.0]])).await;
    for path in ["/v2/models/meter/stats", "/v2/models/meter/versions/4/stats", "/v2/models/stats"] {
        let stats = served.send("GET", path, &[], "").await.json();
        let of = &stats["model_stats"][0];
        assert_eq!((&of["name"], &of["version"]), (&json!("meter"), &json!("m@4")), "{path}");
        assert_eq!((&of["inference_count"], &of["execution_count"]), (&json!(17), &json!(3)));
        let spans = &of["inference_stats"];
        assert_eq!((&spans["success"]["count"], &spans["fail"]["count"]), (&json!(3), &json!(1)));
        for name in ["queue", "compute_input", "compute_infer", "compute_output"] {
            assert_eq!(spans[name]["count"], 3, "{name}");
        }
        assert!(spans["success"]["ns"].as_u64() >= spans["compute_infer"]["ns"].as_u64());
        let keys = |value: &Value| {
            let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys.join(" ")
        };
        assert_eq!(
            keys(of),
            "batch_stats execution_count inference_count inference_stats last_inference name version"
        );
        assert_eq!(
            keys(spans),
            "cache_hit cache_miss compute_infer compute_input compute_output fail queue success"
        );
        assert_eq!(spans["cache_hit"], json!({ "count": 0, "ns": 0 }));
        assert_eq!(spans["cache_miss"], json!({ "count": 0, "ns": 0 }));
        let batch = &of["batch_stats"][1];
        assert_eq!(keys(batch), "batch_size compute_infer compute_input compute_output");
        assert_eq!(batch["batch_size"], 8);
        for name in ["compute_input", "compute_infer", "compute_output"] {
            assert_eq!(keys(&batch[name]), "count ns");
            assert_eq!(batch[name]["count"], 2, "{name}");
        }
    }
    assert_eq!(served.send("GET", "/v2/models/other/stats", &[], "").await.status, StatusCode::NOT_FOUND);
    served.end().await;
}

#[tokio::test]
async fn statistics_count_each_of_several_that_answer_together() {
    let mut served = Served::start().await;
    served.serving.line_up(&task(), voters(&task()), 6, false);
    served.infer(&request(&[[1.0, 2.0, 3.0]; 4])).await;
    served.infer(&request(&[[-1.0, 2.0, 3.0]; 2])).await;
    let stats = served.send("GET", "/v2/models/meter/stats", &[], "").await.json();
    let of = |i: usize| {
        let of = &stats["model_stats"][i];
        let spans = &of["inference_stats"];
        let count = |name: &str| spans[name]["count"].as_u64().unwrap();
        assert!(spans["success"]["ns"].as_u64() >= spans["compute_infer"]["ns"].as_u64());
        assert_eq!(count("success"), count("compute_infer"));
        (
            of["version"].as_str().unwrap().to_owned(),
            of["inference_count"].as_u64().unwrap(),
            of["execution_count"].as_u64().unwrap(),
            count("success"),
            count("fail"),
        )
    };
    assert_eq!(of(0), ("m@3".into(), 6, 2, 2, 0));
    assert_eq!(of(1), ("v@1".into(), 6, 2, 2, 0));
    assert_eq!(of(2), ("v@2".into(), 4, 1, 1, 1));
    served.end().await;
}

#[tokio::test]
async fn what_would_change_the_answer_is_refused_by_name_and_all_else_ignored() {
    let mut served = Served::start().await;
    let one = request(&[[1.0, 0.0, 0.0]]);
    for (name, status) in [
        ("sequence_id", 400),
        ("sequence_start", 400),
        ("sequence_end", 400),
        ("priority", 200),
        ("timeout", 200),
        ("other", 200),
    ] {
        let mut asked = one.clone();
        asked["parameters"] = json!({ name: 7 });
        let got = served.infer(&asked).await;
        assert_eq!(got.status.as_u16(), status, "{name}: {:?}", got.body);
        assert!(status == 200 || got.json()["error"].as_str().unwrap().contains(name), "{:?}", got.body);
    }
    for (method, path) in [
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/r/register"),
        ("POST", "/v2/cudasharedmemory/unregister"),
    ] {
        let got = served.send(method, path, &[], "").await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST, "{path}");
        assert!(got.json()["error"].as_str().unwrap().contains("shares no memory"), "{:?}", got.body);
    }
    served.end().await;
}

#[tokio::test]
async fn bounds_of_requests_are_kept() {
    let limits = ApiLimits { body_bytes_max: 2000, requests_max: 1, tensors_max: 2, ..ApiLimits::default() };
    let mut served = Served::start_limited(limits).await;
    let one = request(&[[1.0, 0.0, 0.0]]);
    let mut three = one.clone();
    three["inputs"] = json!([one["inputs"][0], one["inputs"][0], one["inputs"][0]]);
    assert!(served.infer(&three).await.json()["error"].as_str().unwrap().contains("at most 2"));
    let got = served.send("POST", "/v2/models/meter/infer", &[], vec![b' '; 2001]).await;
    assert_eq!(got.status, StatusCode::PAYLOAD_TOO_LARGE);
    let coded = [("content-encoding", "gzip")];
    let got = served.send("POST", "/v2/models/meter/infer", &coded, one.to_string()).await;
    assert_eq!(got.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for parameter in ["shared_memory_region", "classification"] {
        let mut asked = one.clone();
        asked["outputs"] = json!([{ "name": "scores", "parameters": { parameter: "1" } }]);
        assert!(served.infer(&asked).await.json()["error"].as_str().unwrap().contains(parameter));
    }
    // Lists of what takes more memory than its text.
    for (place, many) in
        [("outputs", json!(vec![json!({ "name": "" }); 1025])), ("shape", json!(vec![1; 1025]))]
    {
        let mut asked = one.clone();
        match place {
            "shape" => asked["inputs"][0][place] = many,
            _ => asked[place] = many,
        }
        let got = Served::start().await.infer(&asked).await;
        assert!(got.json()["error"].as_str().unwrap().contains("at most 1024"), "{:?}", got.body);
    }
    // Somebody who has announced a body and does not send it holds the one place.
    let mut slow = TcpStream::connect(served.address.unwrap()).await.unwrap();
    slow.write_all(b"POST /v2/models/meter/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        .await
        .unwrap();
    while served.infer(&one).await.status != StatusCode::TOO_MANY_REQUESTS {
        tokio::task::yield_now().await;
    }
    drop(slow);
    while served.infer(&one).await.status != StatusCode::OK {
        tokio::task::yield_now().await;
    }
    served.end().await;
}

#[tokio::test]
async fn bodies_have_so_many_bytes_together() {
    let one = request(&[[1.0, 0.0, 0.0]]);
    let bytes = one.to_string().len();
    let limits = ApiLimits { body_bytes_max: bytes, bodies_bytes_max: 2 * bytes, ..ApiLimits::default() };
    let mut served = Served::start_limited(limits).await;
    assert_eq!(served.infer(&one).await.status, StatusCode::OK);
    // Two that have sent all but a byte leave no room for a third.
    let address = served.address.unwrap();
    let slow = async || {
        let mut slow = TcpStream::connect(address).await.unwrap();
        let head =
            format!("POST /v2/models/meter/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n");
        slow.write_all(head.as_bytes()).await.unwrap();
        slow.write_all(&one.to_string().as_bytes()[1..]).await.unwrap();
        slow
    };
    let two = [slow().await, slow().await];
    let full = async {
        loop {
            let got = served.infer(&one).await;
            if got.status != StatusCode::OK {
                return got;
            }
            tokio::task::yield_now().await;
        }
    };
    let refused = timeout(LIMIT, full).await.expect("two bodies leave no room");
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.json()["error"].as_str().unwrap().contains("bodies"), "{:?}", refused.body);
    drop(two);
    let free = async {
        while served.infer(&one).await.status != StatusCode::OK {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, free).await.expect("what they held is free");
    served.end().await;
}
