//! The explain verb.

use super::*;
use crate::serve::onnx::{chain, identity};

const PATH: &str = "/v2/models/meter/explain";

fn with(parameters: Value) -> Value {
    let mut body = request(&[[2.0, 0.5, -1.0]]);
    body["parameters"] = parameters;
    body
}

/// The contributions of each output, checked to add up.
fn contributions(explanation: &Value) -> Vec<Vec<f64>> {
    let outputs = explanation["outputs"].as_array().unwrap();
    let one = |output: &Value| -> Vec<f64> {
        let parts: Vec<f64> =
            output["contributions"].as_array().unwrap().iter().map(|c| c.as_f64().unwrap()).collect();
        let gain = output["value"].as_f64().unwrap() - output["base_value"].as_f64().unwrap();
        assert!((parts.iter().sum::<f64>() - gain).abs() < 1e-5, "{explanation}");
        parts
    };
    outputs.iter().map(one).collect()
}

#[tokio::test]
async fn the_predicted_class_is_explained_and_all_of_them_if_asked() {
    let mut served = Served::start().await;
    let got = served.send("POST", PATH, &[], with(json!({})).to_string()).await;
    assert_eq!(got.status, StatusCode::OK, "{:?}", got.body);
    let body = got.json();
    assert_eq!((&body["model_version"], &body["id"]), (&json!("m@3"), &json!("r1")));
    assert_eq!(body["features"], json!(["x[0]", "x[1]", "x[2]"]));
    let explanation = &body["explanations"][0];
    assert_eq!(
        (&explanation["method"], &explanation["explains"], &explanation["predicted"]),
        (&json!("permutation"), &json!("output"), &json!("c0"))
    );
    assert_eq!((&explanation["complete"], &explanation["background_rows"]), (&json!(true), &json!(2)));
    let parts = contributions(explanation);
    assert_eq!((parts.len(), parts[0].len()), (1, 3));
    assert!(parts[0][0] > parts[0][1].abs(), "the largest feature decides: {parts:?}");

    let all =
        served.send("POST", PATH, &[], with(json!({ "classes": "all", "seed": 3 })).to_string()).await.json();
    assert_eq!(contributions(&all["explanations"][0]).len(), 3);
    let named =
        served.send("POST", "/v2/models/meter/versions/3/explain", &[], with(json!({})).to_string()).await;
    assert_eq!(named.json()["explanations"], body["explanations"], "the same seed gives the same values");

    let instances = json!({ "instances": [[2.0, 0.5, -1.0], [0.0, 0.0, 1.0]] });
    let first = served.send("POST", "/v1/models/meter:explain", &[], instances.to_string()).await;
    assert_eq!(first.status, StatusCode::OK, "{:?}", first.body);
    let first = first.json();
    assert_eq!(first["explanations"][0], body["explanations"][0]);
    assert_eq!(first["explanations"][1]["predicted"], "c2");
    let windows = served.serving.close_windows(Now { mono_ms: 9, wall_ms: None }, &ResourceUse::default());
    assert!(windows.is_empty(), "nothing is counted of explanations");
    served.end().await;
}

#[tokio::test]
async fn what_can_not_be_explained_is_refused_with_the_reason() {
    let mut served = Served::start().await;
    let good = request(&[[1.0, 0.0, 0.0]]);
    let mut typed = good.clone();
    typed["inputs"][0]["datatype"] = json!("INT32");
    let mut named = good.clone();
    named["inputs"][0]["name"] = json!("y");
    let mut wide = good.clone();
    wide["inputs"][0] = json!({ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0] });
    let v1 = "/v1/models/meter:explain";
    for (path, body, status, word) in [
        (PATH, typed, 400, "INT32"),
        (PATH, named, 400, "\"y\""),
        (PATH, wide, 400, "shape"),
        (PATH, json!({ "inputs": [] }), 400, "one belongs"),
        (PATH, request(&[[0.0; 3]; 17]), 400, "16"),
        (PATH, with(json!({ "budget_ms": 0 })), 400, "budget_ms"),
        (PATH, with(json!({ "budget_ms": 4001 })), 400, "4000"),
        (PATH, with(json!({ "permutations": 0 })), 400, "permutations"),
        (PATH, with(json!({ "permutations": 1025 })), 400, "1024"),
        (PATH, with(json!({ "method": "guess" })), 400, "guess"),
        (PATH, with(json!({ "classes": 1 })), 400, "parameters"),
        ("/v2/models/other/explain", good.clone(), 404, "other"),
        ("/v2/models/meter/versions/4/explain", good.clone(), 404, "version"),
        ("/v1/models/other:explain", json!({ "instances": [[0, 0, 0]] }), 404, "other"),
        ("/v1/models/meter:predict", json!({ "instances": [[0, 0, 0]] }), 404, "nothing"),
        (v1, json!({ "instances": [] }), 400, "instances"),
        (v1, json!({ "instances": [[0, 0, 0], [0]] }), 400, "length"),
        (v1, json!({ "instances": [[0, 0]] }), 400, "shape"),
        (v1, json!({ "rows": [[0, 0, 0]] }), 400, "instances"),
    ] {
        let got = served.send("POST", path, &[], body.to_string()).await;
        assert_eq!(got.status.as_u16(), status, "{path} {body} -> {:?}", got.body);
        let error = got.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(word), "{path} {body} -> {error}");
    }
    for path in [PATH, v1] {
        assert_eq!(served.send("GET", path, &[], "").await.status, StatusCode::METHOD_NOT_ALLOWED);
    }
    let raw = [("content-type", "application/octet-stream")];
    assert_eq!(served.send("POST", PATH, &raw, le(&[0.0; 3])).await.status, StatusCode::BAD_REQUEST);

    let whole = regression(resident("m@4", &task(), &identity(7, 3), 0));
    served.serving.switch(&task(), whole, None, 6, false);
    let got = served.send("POST", PATH, &[], good.to_string()).await;
    assert_eq!(got.status, StatusCode::BAD_REQUEST);
    assert!(got.json()["error"].as_str().unwrap().contains("only rows of FP32 features"));
    let mut blind = resident("m@5", &task(), &linear(3, 3, &IDENTITY, false), 3);
    blind.background = Arc::default();
    served.serving.switch(&task(), blind, None, 7, false);
    let got = served.send("POST", PATH, &[], good.to_string()).await;
    assert!(got.json()["error"].as_str().unwrap().contains("background"), "{:?}", got.body);
    served.serving.unload(&task());
    assert_eq!(served.send("POST", PATH, &[], good.to_string()).await.status, StatusCode::BAD_REQUEST);
    served.end().await;
}

#[tokio::test]
async fn a_budget_that_is_spent_ends_the_explanation_early_and_says_so() {
    const SIDE: usize = 64;
    let mut served = Served::start().await;
    // Some ten milliseconds for each background row.
    let slow = resident("m@4", &task(), &chain(SIDE, 200), SIDE);
    served.serving.switch(&task(), slow, None, 6, false);
    let body =
        json!({ "instances": [vec![0.5; SIDE]], "parameters": { "budget_ms": 1, "permutations": 1024 } });
    let got = served.send("POST", "/v1/models/meter:explain", &[], body.to_string()).await;
    assert_eq!(got.status, StatusCode::OK, "{:?}", got.body);
    let explanation = &got.json()["explanations"][0];
    assert_eq!(explanation["complete"], false, "{explanation}");
    contributions(explanation);
    served.end().await;
}
