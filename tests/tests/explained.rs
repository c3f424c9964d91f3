//! Models of the trainer behind the explain verb of the local API.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use std::sync::Arc;

use dunlin_agent::api::{self, Api, Door};
use dunlin_agent::serve::{Limits, Serving};
use dunlin_learn::data::Table;
use dunlin_learn::rng::Rng;
use dunlin_learn::{Config, fit};
use dunlin_tests::served;
use serde_json::{Value, json};

const TASK: &str = "meter";
const FEATURES: usize = 5;
const ROWS: usize = 300;
const BACKGROUND_ROWS: usize = 8;

/// Rows whose classes hang on several features together.
fn table(classes: usize) -> Table {
    let mut rng = Rng::new(5, "explained");
    let x: Vec<f32> = (0..ROWS * FEATURES).map(|_| (rng.unit() * 4.0 - 2.0) as f32).collect();
    let class = |row: &[f32]| ((row[0] * row[1] + row[2]).max(0.0) as u32).min(classes as u32 - 1);
    let y = x.chunks_exact(FEATURES).map(class).collect();
    Table { width: FEATURES, classes, x, y, order: (0..ROWS as i64).collect(), dropped: Default::default() }
}

fn numbers(of: &Value) -> Vec<f64> {
    of.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[tokio::test]
async fn the_trainers_trees_are_explained_from_their_nodes() {
    let serving = Serving::new(Limits::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/models/{TASK}:explain", listener.local_addr().unwrap());
    let api = Api::new(Arc::clone(&serving), Arc::new(dunlin_agent::clock::now), api::Limits::default());
    let server = tokio::spawn(api.serve(Door::Tcp(listener), std::future::pending()));
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let boosted = Config::Gbdt { trees: 20, depth: 3, rate: 0.3, l2: 1.0 };
    let cases = [
        (boosted.clone(), 2, "tree", "margin"),
        (boosted, 3, "tree", "margin"),
        (Config::Logistic { l2: 1e-3 }, 3, "permutation", "output"),
    ];
    for (generation, (config, classes, method, explains)) in (1..).zip(cases) {
        let table = table(classes);
        let onnx = fit(&config, &table, 3).unwrap().onnx();
        let mut model =
            served::resident(&format!("m@{generation}"), TASK, &onnx, &table.x, FEATURES).unwrap();
        let bundle = Arc::get_mut(&mut model.bundle).unwrap();
        bundle.signature.labels = (0..classes).map(|class| format!("c{class}")).collect();
        model.background = table.x[..BACKGROUND_ROWS * FEATURES].into();
        let scores = model.model.run_f32(table.row(9), 1).unwrap();
        serving.switch(&TASK.parse().unwrap(), model, None, generation, false);

        let body = json!({ "instances": [table.row(9)], "parameters": { "classes": "all" } });
        let got = client.post(&url).json(&body).send().await.unwrap();
        assert_eq!(got.status(), 200, "{:?}", got.text().await);
        let got: Value = got.json().await.unwrap();
        let row = &got["explanations"][0];
        assert_eq!((&row["method"], &row["explains"]), (&json!(method), &json!(explains)), "{got}");
        assert_eq!(row["background_rows"], BACKGROUND_ROWS);
        let outputs = row["outputs"].as_array().unwrap();
        assert_eq!(outputs.len(), classes);
        for output in outputs {
            let gain = output["value"].as_f64().unwrap() - output["base_value"].as_f64().unwrap();
            assert!((numbers(&output["contributions"]).iter().sum::<f64>() - gain).abs() < 1e-5, "{got}");
        }
        // The scores are what the API says they are made of.
        let values = outputs.iter().map(|output| output["value"].as_f64().unwrap());
        let link = |x: f64| if explains == "margin" { 1.0 / (1.0 + (-x).exp()) } else { x };
        let linked: Vec<f64> = values.map(link).collect();
        let total: f64 = linked.iter().sum();
        for (score, linked) in scores.iter().zip(linked) {
            assert!((f64::from(*score) - linked / total).abs() < 1e-5, "{got} against {scores:?}");
        }
    }
    server.abort();
}
