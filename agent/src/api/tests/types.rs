//! Every element type, in and out, as JSON and as binary, through models that give back what they get.

use super::*;
use crate::serve::onnx::identity;

/// ONNX element type, its name here, three values as JSON (where it has such a form), and their bytes.
fn table() -> Vec<(i64, &'static str, Option<Value>, Vec<u8>)> {
    fn le<const N: usize>(values: [[u8; N]; 3]) -> Vec<u8> {
        values.as_flattened().to_vec()
    }
    vec![
        (9, "BOOL", Some(json!([true, false, true])), vec![1, 0, 1]),
        (2, "UINT8", Some(json!([0, 7, 255])), vec![0, 7, 255]),
        (4, "UINT16", Some(json!([0, 7, 65535])), le([0_u16, 7, 65535].map(u16::to_le_bytes))),
        (12, "UINT32", Some(json!([0, 7, u32::MAX])), le([0, 7, u32::MAX].map(u32::to_le_bytes))),
        (13, "UINT64", Some(json!([0, 7, u64::MAX])), le([0, 7, u64::MAX].map(u64::to_le_bytes))),
        (3, "INT8", Some(json!([-128, 0, 127])), le([-128_i8, 0, 127].map(i8::to_le_bytes))),
        (5, "INT16", Some(json!([-32768, 0, 7])), le([-32768_i16, 0, 7].map(i16::to_le_bytes))),
        (6, "INT32", Some(json!([i32::MIN, 0, 7])), le([i32::MIN, 0, 7].map(i32::to_le_bytes))),
        (7, "INT64", Some(json!([i64::MIN, 0, 7])), le([i64::MIN, 0, 7].map(i64::to_le_bytes))),
        // 1.0, -2.0 and 0.5 in half precision.
        (10, "FP16", None, le([0x3c00_u16, 0xc000, 0x3800].map(u16::to_le_bytes))),
        (1, "FP32", Some(json!([0.1, -2.0, 0.5])), le([0.1_f32, -2.0, 0.5].map(f32::to_le_bytes))),
        (11, "FP64", Some(json!([0.1, -2.0, 0.5])), le([0.1_f64, -2.0, 0.5].map(f64::to_le_bytes))),
    ]
}

#[tokio::test]
async fn every_type_goes_in_and_out_as_json_and_as_binary() {
    let mut served = Served::start().await;
    for (onnx, name, values, bytes) in table() {
        let model = regression(resident("m@4", &task(), &identity(onnx, 3), 0));
        served.serving.switch(&task(), model, None, 6, false);
        let meta = served.send("GET", "/v2/models/meter", &[], "").await.json();
        assert_eq!(meta["outputs"], json!([{ "name": "y", "datatype": name, "shape": [-1, 3] }]), "{meta}");
        let head = json!({
            "inputs": [{ "name": "x", "shape": [1, 3], "datatype": name, "parameters": { "binary_data_size": bytes.len() } }],
            "outputs": [{ "name": "y", "parameters": { "binary_data": true } }],
        })
        .to_string();
        let length = head.len().to_string();
        let body = [head.as_bytes(), &bytes].concat();
        let header = [("Inference-Header-Content-Length", length.as_str())];
        let got = served.send("POST", "/v2/models/meter/infer", &header, body).await;
        assert_eq!(got.status, StatusCode::OK, "{name}: {:?}", got.body);
        assert!(got.body.ends_with(&bytes), "{name}: {:?}", got.body);
        let raw = [("content-type", "application/octet-stream")];
        let got = served.send("POST", "/v2/models/meter/versions/m%404/infer", &raw, bytes.clone()).await;
        assert!(got.status == StatusCode::OK && got.body.ends_with(&bytes), "{name}, raw: {:?}", got.body);
        let data = values.clone().unwrap_or(json!([1, -2, 0.5]));
        let asked = json!({ "inputs": [{ "name": "x", "shape": [1, 3], "datatype": name, "data": data }] });
        let got = served.infer(&asked).await;
        match values {
            Some(values) => {
                assert_eq!(got.json()["outputs"][0]["data"], values, "{name}");
                // The same with each row in an array of its own.
                let nested = json!({ "inputs": [{ "name": "x", "shape": [1, 3], "datatype": name, "data": [values] }] });
                assert_eq!(served.infer(&nested).await.json()["outputs"], got.json()["outputs"], "{name}");
            }
            None => {
                assert!(got.json()["error"].as_str().unwrap().contains("binary"), "{name}: {:?}", got.body)
            }
        }
    }
    served.end().await;
}

#[tokio::test]
async fn types_that_no_model_takes_are_refused_by_name() {
    let mut served = Served::start().await;
    for (kind, data, problem) in [
        ("BF16", json!([1, 2, 3]), "FP32"),
        ("BYTES", json!(["a", "b", "c"]), "BYTES where FP32 belongs"),
        ("BYTES", json!(["a", "b"]), "2 values where the shape has 3"),
        ("STRING", json!(["a", "b", "c"]), "no datatype"),
    ] {
        let asked = json!({ "inputs": [{ "name": "x", "shape": [1, 3], "datatype": kind, "data": data }] });
        let got = served.infer(&asked).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST);
        assert!(got.json()["error"].as_str().unwrap().contains(problem), "{:?}", got.body);
    }
    served.end().await;
}
