//! Text in and out.

use super::*;
use crate::serve::onnx::texts;

/// A model of so many words a row, which gives them back.
async fn served(columns: usize) -> Served {
    let served = Served::start().await;
    let model = regression(resident("m@4", &task(), &texts(columns, &["red", "grün", ""]), 0));
    served.serving.switch(&task(), model, None, 6, false);
    served
}

/// Each behind its length.
fn packed(words: &[&str]) -> Vec<u8> {
    words.iter().flat_map(|word| [&(word.len() as u32).to_le_bytes(), word.as_bytes()].concat()).collect()
}

#[tokio::test]
async fn text_goes_in_and_out_as_json_and_as_binary() {
    let mut served = served(3).await;
    let words = ["red", "", "gr\u{fc}n"];
    let meta = served.send("GET", "/v2/models/meter", &[], "").await.json();
    assert_eq!(meta["inputs"], json!([{ "name": "x", "datatype": "BYTES", "shape": [-1, 3] }]));
    let asked = json!({ "inputs": [{ "name": "x", "shape": [1, 3], "datatype": "BYTES", "data": [words] }] });
    let got = served.infer(&asked).await;
    let want = json!([{ "name": "y", "datatype": "BYTES", "shape": [1, 3], "data": words }]);
    assert_eq!(got.json()["outputs"], want, "{:?}", got.body);

    let bytes = packed(&words);
    let head = json!({
        "inputs": [{ "name": "x", "shape": [1, 3], "datatype": "BYTES", "parameters": { "binary_data_size": bytes.len() } }],
        "outputs": [{ "name": "y", "parameters": { "binary_data": true } }],
    })
    .to_string();
    let length = head.len().to_string();
    let header = [("Inference-Header-Content-Length", length.as_str())];
    let body = [head.as_bytes(), &bytes].concat();
    let got = served.send("POST", "/v2/models/meter/infer", &header, body).await;
    assert!(got.status == StatusCode::OK && got.body.ends_with(&bytes), "{:?}", got.body);

    // A body without a length for each of three texts does not say where they end.
    let raw = [("content-type", "application/octet-stream")];
    let got = served.send("POST", "/v2/models/meter/infer", &raw, bytes).await;
    assert!(got.json()["error"].as_str().unwrap().contains("takes 3 texts"), "{:?}", got.body);
    served.end().await;
}

#[tokio::test]
async fn a_raw_body_is_one_text() {
    let mut served = served(1).await;
    for word in ["red", "gr\u{fc}n", ""] {
        let raw = [("content-type", "application/octet-stream")];
        let got = served.send("POST", "/v2/models/meter/infer", &raw, word).await;
        assert!(got.status == StatusCode::OK && got.body.ends_with(&packed(&[word])), "{:?}", got.body);
    }
    served.end().await;
}

#[tokio::test]
async fn a_word_that_the_model_has_no_answer_to_is_the_callers_fault() {
    let mut served = served(1).await;
    let ask = |word: &str| {
        json!({ "inputs": [{ "name": "x", "shape": [1, 1], "datatype": "BYTES", "data": [word] }] })
            .to_string()
    };
    // By name, as the constant answers otherwise.
    let path = "/v2/models/meter/versions/4/infer";
    for _ in 0..10 {
        assert_eq!(served.send("POST", path, &[], ask("red")).await.status, StatusCode::OK);
        let got = served.send("POST", path, &[], ask("blue")).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST);
        assert!(got.json()["error"].as_str().unwrap().contains("no word"), "{:?}", got.body);
    }
    served.end().await;
}
