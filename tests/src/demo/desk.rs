//! What the operator makes at her desk while the fleet goes on, for the acts to come. She has the pool that the first
//! models were trained on and knows nothing of how the cameras age.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::{Image, NEW, views};
use dunlin_tests::operator::{push, push_file, train};
use dunlin_tests::wide::widen;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::world::World;

/// Width that makes the network about 10 MB.
const WIDE_UNITS: usize = 20_000;

/// Releases that are pushed and that nobody has approved yet.
pub(crate) struct Made {
    /// Its labels were swapped.
    pub(crate) bad: String,
    /// Its file will be changed after it was signed.
    pub(crate) tampered: String,
    /// Digest of that file.
    pub(crate) digest: String,
    /// For cameras as they were mounted; one of them is large.
    pub(crate) next: Vec<String>,
}

/// The work at the desk, under way.
pub(crate) type Desk = JoinHandle<Result<Made>>;

/// Begins the work at the desk.
pub(crate) fn begin(world: &mut World) {
    let (controller, folder) = (world.controller.seat(), world.out.join("world"));
    let images = world.pools.training.clone();
    world.desk = Some(tokio::spawn(async move { work(&controller, &folder, &images).await }));
}

/// What came of it.
pub(crate) async fn made(world: &mut World) -> Result<Made> {
    world.desk.take().context("the work at the desk")?.await.context("the work at the desk")?
}

async fn work(controller: &Controller, folder: &Path, images: &[Image]) -> Result<Made> {
    // An honest mistake: the labels of half of the classes were swapped before training.
    let mut swapped = views(images, NEW, 1, 3);
    for image in &mut swapped {
        image.digit = (image.digit + 5) % 10;
    }
    let job = folder.join("bad-model");
    let candidate = one(&train(controller, &job, &swapped, &["logistic"], 7).await?)?;
    let bad = push(controller, &job, id(&candidate)?, "meter-swapped", &candidate).await?;

    let job = folder.join("tampered-model");
    let candidate = one(&train(controller, &job, &views(images, NEW, 1, 4), &["logistic"], 11).await?)?;
    let tampered = push(controller, &job, id(&candidate)?, "meter-tampered", &candidate).await?;
    let digest =
        candidate["files"]["model.onnx"]["digest"].as_str().context("the model's digest")?.to_owned();

    let next = next_models(controller, folder.join("next-model"), images).await?;
    Ok(Made { bad, tampered, digest, next })
}

async fn next_models(controller: &Controller, job: PathBuf, images: &[Image]) -> Result<Vec<String>> {
    let result = train(controller, &job, &views(images, NEW, 2, 5), &["logistic", "mlp"], 3).await?;
    let mut releases = Vec::new();
    for candidate in result["candidates"].as_array().context("candidates")? {
        let family = candidate["family"].as_str().context("family")?;
        let mut file = job.join("candidates").join(id(candidate)?).join("model.onnx");
        if family == "mlp" {
            // Same answers, many megabytes: a download long enough to be cut.
            let wide = widen(&std::fs::read(&file)?, WIDE_UNITS)?;
            file = job.join("wide.onnx");
            std::fs::write(&file, wide)?;
        }
        releases.push(push_file(controller, &job, &file, &format!("meter-next-{family}"), candidate).await?);
    }
    Ok(releases)
}

fn one(result: &Value) -> Result<Value> {
    result["candidates"].as_array().and_then(|all| all.first()).cloned().context("a candidate")
}

fn id(candidate: &Value) -> Result<&str> {
    candidate["id"].as_str().context("id")
}
