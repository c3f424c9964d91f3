use serde_json::{Value, json};

/// Asks an agent such as `http://127.0.0.1:8090` about rows of 64 pixels; gives who answered, and the scores.
pub async fn ask(agent: &str, rows: &[[f32; 64]]) -> anyhow::Result<(String, Vec<f64>)> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let body = json!({
        "inputs": [{ "name": "x", "shape": [rows.len(), 64], "datatype": "FP32", "data": rows.as_flattened() }],
    });
    let response = client.post(format!("{agent}/v2/models/meter/infer")).json(&body).send().await?;
    let (status, answer) = (response.status(), response.json::<Value>().await?);
    anyhow::ensure!(status.is_success(), "{status}: {}", answer["error"]);
    let scores = answer["outputs"][0]["data"].as_array().into_iter().flatten().filter_map(Value::as_f64);
    Ok((answer["model_version"].to_string(), scores.collect()))
}
